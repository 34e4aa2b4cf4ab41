"""transformers' ``generate`` over static batches, in the order of the requests, padded on the left."""

from __future__ import annotations

import torch
from transformers import AutoModelForCausalLM

from benchmarks.peers.contestants.protocol import Job, Start, serve

BATCH = 32


class Transformers:
    cold_by = "keeps nothing between batches"

    def __init__(self, start: Start) -> None:
        torch.set_num_threads(start.threads)
        self.model = AutoModelForCausalLM.from_pretrained(start.model, dtype=torch.bfloat16).eval()
        self.model.generation_config.eos_token_id = None
        self.kv_tokens = start.kv_tokens
        self.settings = [f"static batches of {BATCH} or as many as fit the pool", "bfloat16"]

    def cold(self, job: Job) -> None:
        self._generate([list(range(1, 65))], [4])

    def answer(self, job: Job) -> list[list[int]]:
        size = BATCH if self.kv_tokens is None else max(1, min(BATCH, self.kv_tokens // job.longest))
        answers: list[list[int]] = []
        for first in range(0, len(job.prompts), size):
            batch = slice(first, first + size)
            answers += self._generate(job.prompts[batch], job.outputs[batch])
        return answers

    @torch.inference_mode()
    def _generate(self, prompts: list[list[int]], outputs: list[int]) -> list[list[int]]:
        width, most = max(map(len, prompts)), max(outputs)
        ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        found = self.model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=most,
            min_new_tokens=most,
            do_sample=False,
            pad_token_id=0,
        )
        # A static batch goes on until its longest answer is whole; what nobody asked for is not counted.
        return [row[width : width + output].tolist() for row, output in zip(found, outputs)]


if __name__ == "__main__":
    serve(Transformers)

"""vLLM's CPU build, offline; with zentorch where that is installed beside it."""

from __future__ import annotations

import os
from typing import Any

from benchmarks.peers.contestants.protocol import Job, Start, serve

BLOCK = 32
"""Tokens of a KV block where the pool is stated."""


class Vllm:
    cold_by = "reset_prefix_cache"

    def __init__(self, start: Start) -> None:
        binding = ",".join(str(cpu) for cpu in sorted(os.sched_getaffinity(0))[: start.threads])
        environment = {
            "VLLM_CPU_OMP_THREADS_BIND": binding,
            "VLLM_CPU_KVCACHE_SPACE": "4",
            "VLLM_NO_USAGE_STATS": "1",
            "HF_HUB_OFFLINE": "1",
        }
        os.environ.update(environment)
        from vllm import LLM, SamplingParams

        asked: dict[str, Any] = {
            "dtype": "bfloat16",
            "skip_tokenizer_init": True,
            "enable_prefix_caching": True,
            "max_num_batched_tokens": 2048,
            "max_num_seqs": 256,
            "max_model_len": start.longest,
            "enforce_eager": start.variant.get("eager", False),
        }
        if start.kv_tokens is not None:
            asked |= {"block_size": BLOCK, "num_gpu_blocks_override": start.kv_tokens // BLOCK}
        self.llm = LLM(model=start.model, seed=0, **asked)
        self.params = SamplingParams
        self.settings = [f"{name}={value}" for name, value in (asked | environment).items()]

    def cold(self, job: Job) -> None:
        self._generate([list(range(1, 65))], [4])
        if not self.llm.reset_prefix_cache():
            raise RuntimeError("the prefix cache could not be reset")

    def answer(self, job: Job) -> list[list[int]]:
        return self._generate(job.prompts, job.outputs)

    def _generate(self, prompts: list[list[int]], outputs: list[int]) -> list[list[int]]:
        asked = [
            self.params(temperature=0.0, max_tokens=output, ignore_eos=True, detokenize=False)
            for output in outputs
        ]
        inputs = [{"prompt_token_ids": prompt} for prompt in prompts]
        return [
            list(found.outputs[0].token_ids) for found in self.llm.generate(inputs, asked, use_tqdm=False)
        ]


if __name__ == "__main__":
    serve(Vllm)

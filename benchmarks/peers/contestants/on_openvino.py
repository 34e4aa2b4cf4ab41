"""OpenVINO GenAI's continuous batching pipeline."""

from __future__ import annotations

import numpy as np
import openvino
import openvino_genai

from benchmarks.peers.contestants.protocol import Job, Start, serve

BLOCK = 32
"""Tokens of a KV block of the CPU plugin."""


class OpenVino:
    cold_by = "a pipeline made anew"

    def __init__(self, start: Start) -> None:
        self.model = start.model
        self.properties = {
            "INFERENCE_PRECISION_HINT": "bf16",
            "INFERENCE_NUM_THREADS": start.threads,
            "KV_CACHE_PRECISION": "bf16",
        }
        self.scheduler = openvino_genai.SchedulerConfig()
        asked = {
            "enable_prefix_caching": True,
            "dynamic_split_fuse": True,
            "max_num_batched_tokens": 2048,
            "max_num_seqs": 256,
        }
        asked |= {"cache_size": 4} if start.kv_tokens is None else {"num_kv_blocks": start.kv_tokens // BLOCK}
        for name, value in asked.items():
            setattr(self.scheduler, name, value)
        try:
            self.pipeline = self._pipeline()
        except RuntimeError:
            # The other type of 16 bits: a processor without AVX-512 is refused a cache in bf16.
            self.properties["KV_CACHE_PRECISION"] = "f16"
            self.pipeline = self._pipeline()
        self.settings = [f"{name}={value}" for name, value in (self.properties | asked).items()]

    def _pipeline(self) -> openvino_genai.ContinuousBatchingPipeline:
        return openvino_genai.ContinuousBatchingPipeline(self.model, self.scheduler, "CPU", self.properties)

    def cold(self, job: Job) -> None:
        del self.pipeline
        self.pipeline = self._pipeline()
        self._generate([list(range(1, 65))], [4])

    def answer(self, job: Job) -> list[list[int]]:
        return self._generate(job.prompts, job.outputs)

    def _generate(self, prompts: list[list[int]], outputs: list[int]) -> list[list[int]]:
        inputs = [openvino.Tensor(np.array([prompt], dtype=np.int64)) for prompt in prompts]
        found = self.pipeline.generate(inputs, [_greedy(output) for output in outputs])
        return [list(result.m_generation_ids[0]) for result in found]


def _greedy(output: int) -> openvino_genai.GenerationConfig:
    config = openvino_genai.GenerationConfig()
    config.max_new_tokens = output
    config.ignore_eos = True
    config.do_sample = False
    return config


if __name__ == "__main__":
    serve(OpenVino)

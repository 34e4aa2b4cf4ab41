"""shoal as a contestant: its own engine with its compiled kernels, planning inside the clock."""

from __future__ import annotations

import time

import numpy as np

from benchmarks.peers.contestants.protocol import Job, Start, serve
from shoal.core.config import EngineConfig
from shoal.core.request import Request, SamplingParams
from shoal.engine.build import Prepared, assemble, prepare, start
from shoal.engine.engine import Engine
from shoal.reuse.requests import plan_requests

POOL = 4 * 2**30
"""Bytes of KV where the job names no pool."""
ROWS = 1024
"""Most rows a step."""


class Shoal:
    cold_by = "scheduler, memory and prefix index made anew around the loaded model"

    def __init__(self, begin: Start) -> None:
        self.rows = begin.variant.get("rows", ROWS)
        self.prepared = self._prepared(begin)
        self.executor = start(self.prepared).executor
        self.settings = self.prepared.description.split(" · ")[1:]
        self.engine: Engine | None = None

    def _prepared(self, begin: Start) -> Prepared:
        def plan(kv_memory: int) -> Prepared:
            return prepare(
                EngineConfig(
                    model=begin.model,
                    dtype="bfloat16",
                    kernels="compiled",
                    threads=begin.threads,
                    kv_memory=kv_memory,
                    max_model_len=begin.longest,
                    max_num_batched_tokens=self.rows,
                )
            )

        found = plan(POOL)
        if begin.kv_tokens is None:
            return found
        assert found.architecture is not None
        return plan(found.architecture.kv_bytes_per_token(2) * begin.kv_tokens)

    def cold(self, job: Job) -> None:
        prepared = self.prepared
        self._answers(self._engine(), [_request(0, list(range(64)), 4)])
        self.engine = assemble(prepared.config, self.executor, prepared.model, prepared.cost)

    def _engine(self) -> Engine:
        prepared = self.prepared
        return assemble(prepared.config, self.executor, prepared.model, prepared.cost)

    def answer(self, job: Job) -> list[list[int]]:
        assert self.engine is not None
        asked = [_request(i, *pair) for i, pair in enumerate(zip(job.prompts, job.outputs))]
        prepared = self.prepared
        planned = plan_requests(
            prepared.reuse, asked, self.engine.memory.page_size, prepared.model.max_model_len
        )
        answers = self._answers(self.engine, list(planned.requests))
        return [answers[i] for i in range(len(asked))]

    def _answers(self, engine: Engine, requests: list[Request]) -> dict[int, list[int]]:
        engine.add_all(requests, time.perf_counter())
        found = {}
        while not engine.idle:
            for finished in engine.step(time.perf_counter()).finished:
                if finished.error is not None:
                    raise finished.error
                found[int(finished.request.id)] = list(finished.tokens)
        return found


def _request(number: int, prompt: list[int], output: int) -> Request:
    params = SamplingParams(temperature=0.0, max_tokens=output, ignore_eos=True)
    return Request(id=str(number), prompt=np.array(prompt, dtype=np.int32), params=params)


if __name__ == "__main__":
    serve(Shoal)

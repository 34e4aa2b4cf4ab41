"""Scheduler overhead: schedule + update on the null executor, beside an object-per-sequence twin.

    python benchmarks/overhead.py [--steps N]

Prints the median milliseconds of a step at 32, 256 and 2,000 running sequences in steady decode, pages,
prefix index and end checks included, the executor's own time excluded.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time

import numpy as np

from shoal.core.policies import make
from shoal.core.request import Request, SamplingParams
from shoal.core.table import SequenceTable
from shoal.engine.engine import Engine
from shoal.engine.null_executor import NullExecutor
from shoal.memory.kv import KVMemory
from shoal.schedule.scheduler import Scheduler

PAGE_SIZE = 16
BUDGETS_MS = {32: 0.2, 256: 0.5, 2000: 2.0}


def build(running: int, prompt: int, output: int) -> Engine:
    pages = running * (-(-(prompt + output) // PAGE_SIZE) + 1)
    table = SequenceTable()
    policies = {seam: make(seam, name) for seam, name in DEFAULTS.items()}
    for policy in policies.values():
        policy.bind(None, np.random.default_rng(0))
    memory = KVMemory(table, pages, PAGE_SIZE, policies["retention"])
    scheduler = Scheduler(
        table,
        memory,
        policies["order"],
        policies["admission"],
        policies["victim"],
        max_running=running,
        max_length=prompt + output + 1,
    )
    executor = NullExecutor(pages, PAGE_SIZE, 32_000, time.perf_counter)
    return Engine(table, memory, scheduler, executor)


DEFAULTS = {
    "order": "fcfs",
    "admission": "sarathi-serve:rows=8192",
    "victim": "last",
    "retention": "lru",
}


def columns(running: int, steps: int) -> list[float]:
    """Milliseconds of schedule + update per step, all sequences decoding."""
    prompt = 48
    engine = build(running, prompt, steps + 64)
    rng = np.random.default_rng(0)
    for i in range(running):
        engine.add(
            Request(
                id=str(i),
                prompt=rng.integers(0, 32_000, prompt + i % PAGE_SIZE).astype(np.int32),
                params=SamplingParams(temperature=0.0, max_tokens=steps + 40, ignore_eos=True),
            ),
            0.0,
        )
    while engine.scheduler.waiting or np.any(
        engine.table.known[engine.scheduler.running] - engine.table.computed[engine.scheduler.running] > 1
    ):
        engine.step(0.0)
    took = []
    for step in range(steps):
        start = time.perf_counter()
        plans = engine.scheduler.schedule(float(step))
        planned = time.perf_counter()
        engine.executor.submit(plans[0])
        (result,) = engine.executor.poll()
        computed = time.perf_counter()
        engine._deliver(result, engine.scheduler.update(result, float(step)), [])
        took.append(1e3 * (planned - start + time.perf_counter() - computed))
    return took


class _Sequence:
    """What one sequence looks like where every sequence is an object."""

    def __init__(self, ids: list[int]) -> None:
        self.ids = ids
        self.computed = len(ids) - 1
        self.pages = list(range(-(-len(ids) // PAGE_SIZE)))
        self.limit = 1 << 30
        self.stop_ids = {-1}


def objects(running: int, steps: int) -> list[float]:
    """The twin: the same duties, one Python object a sequence and one loop over them."""
    sequences = [_Sequence([1] * (48 + i % PAGE_SIZE)) for i in range(running)]
    index: dict[tuple[int, tuple[int, ...]], int] = {}
    tokens = [7] * running
    took, free = [], iter(range(1 << 40))
    for _ in range(steps):
        start = time.perf_counter()
        rows = []
        for slot, sequence in enumerate(sequences):
            if sequence.computed // PAGE_SIZE >= len(sequence.pages):
                sequence.pages.append(next(free))
            if (sequence.computed + 1) % PAGE_SIZE == 0:
                key = (sequence.pages[-2], tuple(sequence.ids[-PAGE_SIZE:]))
                index[key] = sequence.pages[-1]
            rows.append((slot, sequence.ids[-1], sequence.computed, 1, list(sequence.pages)))
        for sequence, token in zip(sequences, tokens):
            sequence.computed += 1
            sequence.ids.append(token)
            if token in sequence.stop_ids or len(sequence.ids) >= sequence.limit:
                raise AssertionError
        took.append(1e3 * (time.perf_counter() - start))
    return took


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=400)
    steps = parser.parse_args().steps
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    print(f"{'running':>8} {'columns ms':>11} {'p95':>7} {'objects ms':>11} {'budget ms':>10}")
    report = []
    for running, budget in BUDGETS_MS.items():
        count = steps if running < 2000 else max(100, steps // 4)
        ours, twin = columns(running, count), objects(running, min(count, 100))
        median, p95 = statistics.median(ours), float(np.percentile(ours, 95))
        report.append({"running": running, "ms": median, "p95_ms": p95, "budget_ms": budget})
        verdict = "ok" if median < budget else "OVER"
        print(
            f"{running:>8} {median:>11.3f} {p95:>7.3f} {statistics.median(twin):>11.3f}"
            f" {budget:>10.1f} {verdict}"
        )
    print(json.dumps({"bench": "overhead", "rows": report}))
    return 0 if all(row["ms"] < row["budget_ms"] for row in report) else 1


if __name__ == "__main__":
    raise SystemExit(main())

"""Output tokens per second of the five jobs, and what share that is of the machine's arithmetic limit.

    python benchmarks/bench.py [--jobs shared,single] [--quick] [--dtype float32] [--repeat 3]

Loading and warming up are outside the clock. The last line is the result as JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.jobs import JOBS, LLAMA_135M, Job
from benchmarks.limit import Limits
from shoal.core.config import EngineConfig
from shoal.core.request import Request, SamplingParams
from shoal.engine.build import Prepared, prepare, start
from shoal.engine.engine import Engine
from shoal.reuse.requests import plan_requests

POOL = 4 * 2**30
"""Bytes of KV where the job names no pool: more than any of them needs when prefixes are shared."""


def prepared(folder: str, job: Job, options: argparse.Namespace) -> Prepared:
    """An engine's plan for this job; the pool is exact where the job says how many tokens it holds."""

    def plan(kv_memory: int, length: int | None) -> Prepared:
        return prepare(
            EngineConfig(
                model=folder,
                load_format="dummy",
                dtype=options.dtype,
                threads=options.threads,
                kv_memory=kv_memory,
                max_model_len=length,
                max_num_batched_tokens=options.rows,
                policy=options.policy,
                reuse=options.reuse,
            )
        )

    found = plan(POOL, None)
    if job.kv_tokens is None:
        return found
    assert found.architecture is not None
    item = 2 if found.dtype == "bfloat16" else 4
    return plan(found.architecture.kv_bytes_per_token(item) * job.kv_tokens, min(2048, job.kv_tokens))


def request(name: str, prompt: Any, output: int) -> Request:
    params = SamplingParams(temperature=0.0, max_tokens=output, ignore_eos=True)
    return Request(id=name, prompt=prompt, params=params)


def finish(engine: Engine) -> int:
    """Step until nothing is left; returns the tokens produced."""
    tokens = 0
    while not engine.idle:
        for answer in engine.step(time.perf_counter()).finished:
            if answer.error is not None:
                raise answer.error
            tokens += len(answer.tokens)
    return tokens


def measure(job: Job, plan: Prepared) -> dict[str, Any]:
    """One cold run of a job on an engine of its own."""
    engine = start(plan)
    engine.add(request("warm-up", np.arange(64, dtype=np.int32), 4), time.perf_counter())
    finish(engine)
    before = engine.scheduler.counters.computed, engine.scheduler.counters.steps
    begin = time.perf_counter()
    asked = [request(str(i), *pair) for i, pair in enumerate(zip(job.prompts, job.outputs, strict=True))]
    # A job is planned before it runs, and planning is part of its time.
    planned = plan_requests(plan.reuse, asked, engine.memory.page_size, plan.model.max_model_len)
    for item in planned.requests:
        engine.add(item, time.perf_counter())
    tokens = finish(engine)
    seconds = time.perf_counter() - begin
    if tokens != sum(job.outputs):
        raise SystemExit(f"{job.name}: {tokens} tokens came, {sum(job.outputs)} were asked for")
    counters = engine.scheduler.counters
    return {
        "seconds": seconds,
        "computed": counters.computed - before[0],
        "cached": counters.cached,
        "preemptions": counters.preemptions,
        "steps": counters.steps - before[1],
    }


def bench(job: Job, folder: str, limits: Limits, options: argparse.Namespace) -> dict[str, Any]:
    """The median of ``--repeat`` runs beside the limit."""
    plan = prepared(folder, job, options)
    runs = [measure(job, plan) for _ in range(options.repeat)]
    seconds = statistics.median(run["seconds"] for run in runs)
    limit = limits.of(job)
    output = sum(job.outputs)
    return {
        "job": job.name,
        "requests": len(job.prompts),
        "output_tokens": output,
        "tokens_per_second": output / seconds,
        "limit_tokens_per_second": output / limit.seconds,
        "share": limit.seconds / seconds,
        **runs[-1],
        "seconds": seconds,
    }


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--jobs", default=",".join(JOBS), help=f"some of {','.join(JOBS)}")
    parser.add_argument("--quick", action="store_true", help="small versions of the jobs")
    parser.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16"])
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--rows", type=int, default=512, help="most rows a step")
    parser.add_argument("--policy", default=None, help="a published system")
    parser.add_argument("--reuse", default=None, help="reuse policy")
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.jobs = options.jobs.split(",")
    if unknown := set(options.jobs) - set(JOBS):
        parser.error(f"unknown jobs: {', '.join(sorted(unknown))}")
    return options


def show(results: list[dict[str, Any]], title: str) -> None:
    table = Table(title=title, title_justify="left")
    columns = ("job", "requests", "tokens/s", "limit", "share", "rows computed", "from cache", "preempted")
    for name in columns:
        table.add_column(name, justify="left" if name == "job" else "right")
    for found in results:
        table.add_row(
            found["job"],
            f"{found['requests']:,}",
            f"{found['tokens_per_second']:,.1f}",
            f"{found['limit_tokens_per_second']:,.1f}",
            f"{found['share']:.0%}",
            f"{found['computed']:,}",
            f"{found['cached']:,}",
            f"{found['preemptions']:,}",
        )
    Console(width=110).print(table)


def main() -> None:
    options = arguments()
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(LLAMA_135M))
        jobs = {name: JOBS[name](np.random.default_rng(options.seed), options.quick) for name in options.jobs}
        first = prepared(folder, next(iter(jobs.values())), options)
        print(first.description, flush=True)
        limits = Limits(getattr(torch, first.dtype), first.threads)
        results = []
        for job in jobs.values():
            results.append(bench(job, folder, limits, options))
            show(results[-1:], "")
    size = "quick" if options.quick else "full"
    show(results, f"llama135m, {first.dtype}, {first.threads} threads, {size} jobs")
    rates = limits.rates()
    print(", ".join(f"{name} {value:.0f}" for name, value in rates.items()))
    head = {"bench": "jobs", "model": "llama135m", "dtype": first.dtype, "threads": first.threads}
    print(json.dumps({**head, "size": size, "rates": rates, "jobs": results}))


if __name__ == "__main__":
    main()

"""Running a job with a clock: seconds, counters, and once more with the stages of its steps."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np

from shoal.bench.jobs import Job
from shoal.bench.limit import Limit, Rates, limit_of
from shoal.bench.stages import Stages
from shoal.bench.work import least_work
from shoal.core.config import EngineConfig
from shoal.core.errors import InternalError
from shoal.core.request import Request, SamplingParams
from shoal.engine.build import Prepared, prepare, start
from shoal.engine.engine import Engine
from shoal.reuse.requests import plan_requests

POOL = 4 * 2**30
"""Bytes of KV where neither the job nor the caller names a pool: more than any of the five needs."""
ITEM = {"float32": 4, "bfloat16": 2}


@dataclass
class Measured:
    """What a job took.

    Attributes:
        seconds: the median of ``runs``.
        computed, cached, preemptions, steps: rows computed, taken from the cache, sequences that gave their
            pages back, steps; of the last run.
        stages: seconds by stage of one more run, of which a clock looked at every part.
        watched_seconds, watched_steps: of that run.
    """

    name: str
    requests: int
    output_tokens: int
    seconds: float
    runs: list[float]
    computed: int
    cached: int
    preemptions: int
    steps: int
    stages: dict[str, float] = field(default_factory=dict)
    watched_seconds: float = 0.0
    watched_steps: int = 0
    limit: Limit | None = None

    @property
    def rate(self) -> float:
        """Produced tokens a second."""
        return self.output_tokens / self.seconds

    @property
    def share(self) -> float | None:
        """Of the limit."""
        return self.limit.seconds / self.seconds if self.limit else None


def prepared_for(job: Job, config: EngineConfig) -> Prepared:
    """An engine for this job; the pool is exact where the job says how many tokens it holds.

    Raises:
        OperatorError: as ``shoal.engine.build.prepare``.
    """
    if config.kv_memory is not None:
        return prepare(config)
    found = prepare(msgspec.structs.replace(config, kv_memory=POOL))
    if job.kv_tokens is None or found.architecture is None:
        return found
    token = found.architecture.kv_bytes_per_token(ITEM[found.dtype])
    length = min(found.architecture.longest, job.kv_tokens, config.max_model_len or job.kv_tokens)
    return prepare(msgspec.structs.replace(config, kv_memory=token * job.kv_tokens, max_model_len=length))


def measure(job: Job, prepared: Prepared, repeat: int) -> Measured:
    """``repeat`` cold runs, each on an engine of its own, and one more that is looked at.

    Raises:
        InternalError: another number of tokens came than was asked for.
    """
    runs = [_run(job, prepared) for _ in range(repeat)]
    with Stages() as stages:
        watched = _run(job, prepared, stages)
        found = stages.found()
    last = runs[-1]
    return Measured(
        name=job.name,
        requests=len(job.prompts),
        output_tokens=sum(job.outputs),
        seconds=statistics.median(run["seconds"] for run in runs),
        runs=[run["seconds"] for run in runs],
        **{name: last[name] for name in ("computed", "cached", "preemptions", "steps")},
        stages=found,
        watched_seconds=watched["seconds"],
        watched_steps=watched["steps"],
    )


def limited(measured: Measured, job: Job, prepared: Prepared, rates: Rates) -> Measured:
    """The same with its limit on this machine."""
    assert prepared.architecture is not None
    work = least_work(job.prompts, job.outputs)
    together = min(job.side_by_side, prepared.config.max_num_seqs)
    measured.limit = limit_of(work, together, prepared.architecture, rates, ITEM[prepared.dtype])
    return measured


def request(name: str, prompt: Any, output: int) -> Request:
    """Greedy, and as long as asked."""
    params = SamplingParams(temperature=0.0, max_tokens=output, ignore_eos=True)
    return Request(id=name, prompt=prompt, params=params)


def requests(job: Job) -> list[Request]:
    """Of the whole job, in its order."""
    return [request(str(i), *pair) for i, pair in enumerate(zip(job.prompts, job.outputs, strict=True))]


def finish(engine: Engine) -> int:
    """Step until nothing is left; returns the tokens produced. Raises what a request failed with."""
    tokens = 0
    while not engine.idle:
        for answer in engine.step(time.perf_counter()).finished:
            if answer.error is not None:
                raise answer.error
            tokens += len(answer.tokens)
    return tokens


def _run(job: Job, prepared: Prepared, stages: Stages | None = None) -> dict[str, Any]:
    """One cold run on an engine of its own. Planning which prompts share what is part of it."""
    engine = start(prepared)
    engine.add(request("warm-up", np.arange(64, dtype=np.int32), 4), time.perf_counter())
    finish(engine)
    counters = engine.scheduler.counters
    before = counters.computed, counters.steps
    if stages is not None:
        stages.watch_engine(engine)
    begin = time.perf_counter()
    longest = prepared.model.max_model_len
    planned = plan_requests(prepared.reuse, requests(job), engine.memory.page_size, longest)
    for item in planned.requests:
        engine.add(item, time.perf_counter())
    tokens = finish(engine)
    seconds = time.perf_counter() - begin
    if tokens != sum(job.outputs):
        raise InternalError(f"{job.name}: {tokens} tokens came, {sum(job.outputs)} were asked for")
    return {
        "seconds": seconds,
        "computed": counters.computed - before[0],
        "cached": counters.cached,
        "preemptions": counters.preemptions,
        "steps": counters.steps - before[1],
    }

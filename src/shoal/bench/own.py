"""A file of prompts as a benchmark: the very run that ``shoal run`` does, with a clock at every part."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from shoal.bench.jobs import Job as Shape
from shoal.bench.measure import Measured
from shoal.bench.stages import Stages
from shoal.core.errors import OperatorError
from shoal.engine.build import Prepared
from shoal.engine.engine import Engine
from shoal.jobs.job import Job, Stopping
from shoal.jobs.plan import Planner
from shoal.jobs.runner import run_job


class _Witness:
    """Implements ``shoal.jobs.job.Watcher``: looks at the engine from the first step on, and notes what it
    was asked and what it answered."""

    def __init__(self, stages: Stages) -> None:
        self.stages = stages
        self.prompts: list[Any] = []
        self.outputs: list[int] = []
        self.began = self.ended = 0.0
        self.engine: Engine | None = None

    def begin(self, engine: Engine) -> None:
        self.engine = engine
        step = engine.step

        def noted(now: float) -> Any:
            output = step(now)
            for answer in output.finished:
                if len(answer.tokens):
                    self.prompts.append(answer.request.prompt)
                    self.outputs.append(len(answer.tokens))
            return output

        engine.step = noted  # type: ignore[method-assign]
        self.stages.watch_engine(engine)
        self.stages.watch_job()
        self.began = time.perf_counter()

    def running(self, status: Any, now: float) -> None:
        self.ended = time.perf_counter()

    def preparing(self, done: int, size: int, rows: int, bad: int, tokens: int) -> None: ...

    def planning(self, done: int, rows: int) -> None: ...

    def measuring(self, what: str, share: float) -> None: ...

    def planned(self, plan: Any) -> None: ...

    def say(self, text: str) -> None: ...


def measure_rows(
    task: Job, planner: Planner, start: Callable[[Prepared], Engine], stopping: Stopping
) -> tuple[Measured, Shape]:
    """Answer the rows of ``task`` once, into a folder that is removed, and say what it took; with the shape
    of what was computed, folded rows once.

    Raises:
        OperatorError: as ``run_job``, or no row was answered.
        Interrupted: asked to stop.
    """
    with TemporaryDirectory() as folder, Stages() as stages:
        witness = _Witness(stages)
        output = Path(folder, "answers.jsonl")
        run_job(replace(task, output=output), planner.prepared, start, witness, stopping, planner=planner)
        found = stages.found()
    if witness.engine is None or not witness.outputs:
        raise OperatorError("no row was answered", where=str(task.input), remedy="run it, and see why")
    counters = witness.engine.scheduler.counters
    seconds = witness.ended - witness.began
    measured = Measured(
        name=task.input.name,
        requests=len(witness.outputs),
        output_tokens=sum(witness.outputs),
        seconds=seconds,
        runs=[seconds],
        computed=counters.computed,
        cached=counters.cached,
        preemptions=counters.preemptions,
        steps=counters.steps,
        stages=found,
        watched_seconds=seconds,
        watched_steps=counters.steps,
    )
    return measured, Shape(task.input.name, witness.prompts, witness.outputs)

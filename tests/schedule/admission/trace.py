"""What every step of an engine computed, and for whom."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from shoal.core.request import Finished
from shoal.engine.engine import Engine
from tests.engine.harness import expected, null_engine, request


@dataclass(frozen=True)
class Run:
    """Rows ``start .. start + rows - 1`` of a sequence with so many prompt tokens."""

    handle: int
    start: int
    rows: int
    prompt: int

    @property
    def of_prompt(self) -> bool:
        return self.start < self.prompt


@dataclass(frozen=True)
class Step:
    """ready: handles of sequences in the running set whose only row to do comes after their prompt.
    waiting: sequences waiting before the step."""

    runs: list[Run]
    ready: set[int]
    waiting: int

    @property
    def rows(self) -> int:
        return sum(run.rows for run in self.runs)

    @property
    def prompts(self) -> list[Run]:
        return [run for run in self.runs if run.of_prompt]

    @property
    def answers(self) -> list[Run]:
        return [run for run in self.runs if not run.of_prompt]


def watch(engine: Engine) -> list[Step]:
    """A list that grows by every step the engine plans."""
    steps: list[Step] = []
    scheduler, table = engine.scheduler, engine.table
    schedule = scheduler.schedule

    def watched(now: float):
        running = scheduler.running
        after = table.computed[running] >= table.prompt[running]
        single = table.known[running] - table.computed[running] == 1
        ready = set(table.handle[running[after & single]].tolist())
        waiting = scheduler.waiting
        plans = schedule(now)
        for plan in plans:
            plan.check(engine.memory.page_size)
            columns = (
                table.handle[plan.sequence],
                plan.position[plan.first_row],
                plan.rows,
                table.prompt[plan.sequence],
            )
            steps.append(Step([Run(*map(int, run)) for run in zip(*columns)], ready, waiting))
        return plans

    scheduler.schedule = watched
    return steps


def mixed(rng: np.random.Generator, count: int, longest: int = 60) -> list:
    """Requests of all lengths, no two with a page in common."""
    return [
        request(
            f"r{i}",
            rng.integers(1, 1000, rng.integers(1, longest)),
            max_tokens=int(rng.integers(1, 20)),
            ignore_eos=True,
        )
        for i in range(count)
    ]


def run(admission, seed: int, *, count: int = 12, late: bool = True, **options) -> tuple[list[Step], Engine]:
    """Random requests, arriving over time, to their end under ``admission``; checks every answer."""
    defaults = {"pages": 240, "page_size": 4, "max_length": 96, "vocabulary": 1000, "reuse": False}
    engine = null_engine(admission=admission, **(defaults | options))
    rng = np.random.default_rng(seed)
    requests = mixed(rng, count)
    coming, answers = list(reversed(requests)), dict[str, Finished]()
    steps, now = watch(engine), 0.0
    while coming or not engine.idle:
        while coming and (engine.idle or not late or rng.random() < 0.3):
            engine.add(coming.pop(), now)
        for finished in engine.step(now).finished:
            answers[finished.request.id] = finished
        now += 1.0
        assert now < 10_000
    engine.check()
    for item in requests:
        assert answers[item.id].tokens.tolist() == expected(engine, item)
    return steps, engine


def computed_once(steps: list[Step]) -> bool:
    """Whether each sequence's rows were computed in order, none twice, none left out."""
    reached: dict[int, int] = {}
    for step in steps:
        for item in step.runs:
            if item.start != reached.get(item.handle, 0):
                return False
            reached[item.handle] = item.start + item.rows
    return True

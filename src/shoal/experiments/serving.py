"""Serving on one engine: requests that come over time, and what those who wait for their tokens see."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from shoal.core.cost import Cost, shape_of
from shoal.core.executor import Executor
from shoal.core.plan import StepPlan, StepResult
from shoal.core.request import Finished, Request
from shoal.engine.engine import Engine
from shoal.engine.priced import JumpingClock

F64 = npt.NDArray[np.float64]


class Clock(Protocol):
    """Seconds, and a way to leave out those in which nobody has anything to do."""

    def __call__(self) -> float: ...

    def jump_to(self, time: float) -> None: ...


class WallClock:
    """Wall time from 0, without the stretches that were jumped over."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._skipped = 0.0

    def __call__(self) -> float:
        return time.perf_counter() - self._began + self._skipped

    def jump_to(self, time: float) -> None:
        self._skipped += max(0.0, time - self())


class Arrival(NamedTuple):
    """A request comes when so many seconds have passed and so many steps were made."""

    request: Request
    seconds: float = 0.0
    step: int = 0


class Step(NamedTuple):
    """One turn of the engine. ``rows``: computed. ``passed_over``: running sequences that had one row to
    compute and got no token. ``wall``: the seconds it took, whatever the engine's clock shows."""

    begin: float
    end: float
    rows: int
    passed_over: int
    wall: float


@dataclass(slots=True)
class Served:
    """What came of it: every step, and by request id when it came, its tokens, when each was there, and the
    answer. margins: where the executor records them, how close the two best logits of each token were."""

    steps: list[Step] = field(default_factory=list)
    arrived: dict[str, float] = field(default_factory=dict)
    tokens: dict[str, list[int]] = field(default_factory=dict)
    times: dict[str, list[float]] = field(default_factory=dict)
    margins: dict[str, list[float]] = field(default_factory=dict)
    finished: dict[str, Finished] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """From the first step to the end of the last."""
        return self.steps[-1].end - self.steps[0].begin

    def retimed(self, seconds: Sequence[float]) -> Served:
        """The same course where each step takes so long; between steps, time passes as it did."""
        begin = np.array([step.begin for step in self.steps])
        end = np.array([step.end for step in self.steps])
        idle = np.append(begin[0], begin[1:] - end[:-1])
        ends = np.cumsum(idle + seconds)
        was = np.stack([begin, end], axis=1).ravel()
        now = np.stack([ends - seconds, ends], axis=1).ravel()
        steps = [
            step._replace(begin=first, end=last)
            for step, (first, last) in zip(self.steps, now.reshape(-1, 2).tolist(), strict=True)
        ]
        arrived = {name: float(np.interp(at, was, now)) for name, at in self.arrived.items()}
        times = {name: np.interp(at, was, now).tolist() for name, at in self.times.items()}
        return replace(self, steps=steps, arrived=arrived, times=times)

    def gaps(self, *names: str) -> F64:
        """Seconds between two tokens of a sequence, of all or the named ones: (at, gap), shape (2, m)."""
        times = [np.array(self.times[name]) for name in names or self.times]
        at = np.concatenate([each[1:] for each in times])
        return np.stack([at, np.concatenate([np.diff(each) for each in times])])

    def first_token(self, name: str) -> float:
        """Seconds from a request's arrival to its first token."""
        return self.times[name][0] - self.arrived[name]

    def first_tokens(self) -> F64:
        return np.array([self.first_token(name) for name in self.times])


class Noting:
    """An executor that keeps the margins of its last result."""

    def __init__(self, inner: Executor) -> None:
        self.inner = inner
        self.margins: npt.NDArray[np.float32] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def poll(self) -> list[StepResult]:
        results = list(self.inner.poll())
        self.margins = results[-1].margins if results else None
        return results


class OnTableTime(Noting):
    """Computes every step, and lets it take what a cost model says on ``clock``: whatever the machine's speed
    of the moment, requests that come at given times find the same engine."""

    def __init__(self, inner: Executor, cost: Cost, clock: JumpingClock) -> None:
        super().__init__(inner)
        self.cost = cost
        self.clock = clock

    def submit(self, plan: StepPlan) -> None:
        self.inner.submit(plan)
        self.clock.advance(self.cost.step(shape_of(plan)))


def serve(engine: Engine, clock: Clock, arrivals: Iterable[Arrival], *, check: bool = False) -> Served:
    """Feed requests, in the order given, as they come, and step until every one has its answer.

    Args:
        check: balance the engine's books after every step.

    Raises:
        AssertionError: they did not balance.
    """
    served, coming, names = Served(), deque(arrivals), dict[int, str]()
    while coming or not engine.idle:
        if engine.idle:
            clock.jump_to(coming[0].seconds)
        while coming and (
            engine.idle or (coming[0].seconds <= clock() and coming[0].step <= len(served.steps))
        ):
            arrival = coming.popleft()
            name = arrival.request.id
            served.arrived[name] = clock() if arrival.step else arrival.seconds
            served.times[name], served.tokens[name], served.margins[name] = [], [], []
            names[engine.add(arrival.request, clock())] = name
        _step(engine, clock, served, names)
        if check:
            engine.check()
    return served


def _step(engine: Engine, clock: Clock, served: Served, names: dict[int, str]) -> None:
    counters = engine.scheduler.counters
    ready, computed = _ready(engine), counters.computed
    begin, started = clock(), time.perf_counter()
    output = engine.step(begin)
    wall, end = time.perf_counter() - started, clock()
    for handle, token in zip(output.handles.tolist(), output.tokens.tolist(), strict=True):
        served.tokens[names[handle]].append(token)
        served.times[names[handle]].append(end)
    if isinstance(engine.executor, Noting) and engine.executor.margins is not None:
        for handle, margin in zip(output.handles.tolist(), engine.executor.margins.tolist(), strict=True):
            served.margins[names[handle]].append(margin)
    for answer in output.finished:
        served.finished[answer.request.id] = answer
    missing = len(ready.difference(output.handles.tolist()))
    served.steps.append(Step(begin, end, counters.computed - computed, missing, wall))


def _ready(engine: Engine) -> set[int]:
    """Handles of the running sequences with one row to compute."""
    table, running = engine.table, engine.scheduler.running
    one = table.known[running] - table.computed[running] == 1
    return set(table.handle[running[one]].tolist())


def differing(one: Served, other: Served, close: float = 0.0) -> tuple[int, int]:
    """(answers that differ, answers excused): excused is one whose two best logits lay within ``close``
    where the two answers part."""
    differ = excused = 0
    for name, tokens in one.tokens.items():
        others = other.tokens[name]
        if tokens == others:
            continue
        at = next((i for i, (a, b) in enumerate(zip(tokens, others, strict=False)) if a != b), None)
        margins = [each.margins[name] for each in (one, other) if each.margins[name]]
        near = at is not None and any(margin[at] <= close for margin in margins)
        excused += near
        differ += not near
    return differ, excused


def percentile(values: F64, share: float) -> float:
    return float(np.percentile(values, share))

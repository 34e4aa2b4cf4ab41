"""Simulated time: an executor that charges a clock for each step instead of computing it.

The scheduler, memory and policies in front of it are the real ones; only the seconds are a cost model's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np

from shoal.core.cost import PLAIN, Cost, StepShape, choice_of, shape_of
from shoal.core.errors import InternalError
from shoal.core.plan import SAMPLE, StepPlan, StepResult
from shoal.core.request import Finished, Request
from shoal.engine.engine import Engine, StepOutput
from shoal.engine.null_executor import NullExecutor


class JumpingClock:
    """Seconds that pass only when somebody says so."""

    def __init__(self, now: float = 0.0) -> None:
        self._now = now

    def __call__(self) -> float:
        return self._now

    def advance(self, seconds: float) -> None:
        """Raises InternalError for a time that would run backwards."""
        if not seconds >= 0.0:
            raise InternalError(f"a clock was asked to advance by {seconds} s")
        self._now += seconds

    def jump_to(self, time: float) -> None:
        """Forward to ``time``; a time that has passed already changes nothing."""
        self._now = max(self._now, time)


class PricedExecutor:
    """Implements ``shoal.core.executor.Executor``: a step takes what ``cost`` says, on ``clock``.

    Args:
        pages, page_size: of the KV pool that the engine in front of it keeps books of.
        arithmetic: tokens are the null executor's, a function of all ids before them, so that answers can
            be compared; otherwise every token is ``token``, which costs next to nothing.
        token: the token that every row chooses without arithmetic.
        reserved: with arithmetic, ids below this are never produced.
        watch: shown each plan when it is submitted.
    """

    invariant = True

    def __init__(
        self,
        cost: Cost,
        clock: JumpingClock,
        pages: int,
        page_size: int,
        vocabulary: int,
        *,
        arithmetic: bool = False,
        token: int = 0,
        reserved: int = 0,
        watch: Callable[[StepPlan], None] | None = None,
    ) -> None:
        self.cost = cost
        self.clock = clock
        self.pages = pages
        self.page_size = page_size
        self.vocabulary = vocabulary
        self.token = token
        self.watch = watch
        self.shape: StepShape | None = None
        """Of the last step."""
        self._choice = np.full(64, PLAIN, dtype=np.int32)
        self._null = (
            NullExecutor(pages, page_size, vocabulary, clock, reserved=reserved) if arithmetic else None
        )
        self._ready: list[StepResult] = []

    def open(self, slot: int, request: Request) -> None:
        if slot >= len(self._choice):
            longer = np.full(2 * slot, PLAIN, dtype=np.int32)
            longer[: len(self._choice)] = self._choice
            self._choice = longer
        self._choice[slot] = choice_of(request.params)

    def close(self, slot: int) -> None:
        pass

    def submit(self, plan: StepPlan) -> None:
        if self.watch is not None:
            self.watch(plan)
        self.shape = shape_of(plan, self._choice)
        self.clock.advance(self.cost.step(self.shape))
        if self._null is not None:
            self._null.submit(plan)
            self._ready += self._null.poll()
            return
        target = plan.target[plan.emit != 0]
        tokens = np.where(target == SAMPLE, np.int32(self.token), target)
        self._ready.append(StepResult(plan.step, tokens, self.clock()))

    def poll(self) -> list[StepResult]:
        ready, self._ready = self._ready, []
        return ready


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One step of a simulated run: planned at ``begin``, its tokens there at ``end``, both seconds."""

    begin: float
    end: float
    shape: StepShape
    output: StepOutput


@dataclass(slots=True)
class Run:
    """What a simulated run brought: the answers as they came, and, where asked for, its steps."""

    finished: list[Finished] = field(default_factory=list)
    steps: list[StepRecord] = field(default_factory=list)
    seconds: float = 0.0


def run_to_end(
    engine: Engine,
    clock: JumpingClock,
    arrivals: Iterable[tuple[float, Request]],
    *,
    record: bool = False,
) -> Run:
    """Feed requests at their times, ascending, and step until every one has its answer.

    Args:
        engine: its executor is a ``PricedExecutor`` over ``clock``.
        arrivals: (seconds, request); a request that comes in the middle of a step is seen after it, and
            counts as arrived at its own time.
        record: keep every step.

    Returns:
        Its ``seconds`` are those from the clock's time at the call to its time at the end.

    Raises:
        CallerError: a request can never be answered.
    """
    found, began = Run(), clock()
    coming = iter(arrivals)
    following = next(coming, None)
    while following is not None or not engine.idle:
        if following is not None and engine.idle:
            clock.jump_to(following[0])
        while following is not None and following[0] <= clock():
            engine.add(following[1], following[0])
            following = next(coming, None)
        record_of = step(engine, clock)
        found.finished += record_of.output.finished
        if record:
            found.steps.append(record_of)
    found.seconds = clock() - began
    return found


def step(engine: Engine, clock: JumpingClock) -> StepRecord:
    """One turn of an engine over a ``PricedExecutor`` and ``clock``.

    Raises:
        InternalError: the engine has work, but its scheduler planned none.
    """
    executor = engine.executor
    assert isinstance(executor, PricedExecutor), "simulated time needs a priced executor"
    begin, executor.shape = clock(), None
    output = engine.step(begin)
    if executor.shape is None and not output.finished:
        raise InternalError("the scheduler planned nothing although sequences wait")
    return StepRecord(begin, clock(), executor.shape or StepShape(0, 0, 0, 0, 0), output)

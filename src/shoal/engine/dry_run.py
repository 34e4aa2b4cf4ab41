"""What a run will cost, by running it: the real scheduler, memory and policies on simulated time.

The requests are the real ones, so prefixes match as they will; only their answers are of an expected length.
What the scheduler itself takes is measured while it decides here, and is part of the prediction.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from shoal.core.cost import Cost
from shoal.core.errors import CallerError
from shoal.core.plan import StepPlan
from shoal.core.policy import SEAMS, Policy
from shoal.core.request import Request
from shoal.engine.build import assemble
from shoal.engine.engine import Engine
from shoal.engine.priced import JumpingClock, PricedExecutor, step

if TYPE_CHECKING:
    from shoal.core.config import EngineConfig
    from shoal.engine.build import Prepared

STRETCHES = 6
"""Places of a large job that are looked at."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """What running some requests to their ends takes.

    Attributes:
        seconds: from the first step to the last answer, scheduling included.
        steps: of the engine.
        computed: rows, prompt tokens and produced tokens that are fed back.
        prompt: of these, tokens of prompts.
        emitted: produced tokens.
        preemptions: sequences that will have to yield.
        peak_pages: most pages held at once.
        refused: requests that the engine will refuse.
        exact: the whole job was run through; otherwise it was extrapolated from stretches of it.
    """

    seconds: float
    steps: int
    computed: int
    prompt: int
    emitted: int
    preemptions: int
    peak_pages: int
    refused: int = 0
    exact: bool = True


def expected(request: Request, answer: int) -> Request:
    """The same request, with an answer of just ``answer`` tokens, for a dry run."""
    changes: dict[str, Any] = {
        "max_tokens": max(1, answer),
        "min_tokens": 0,
        "ignore_eos": True,
        "stop": (),
        "stop_token_ids": (),
        "logprobs": None,
    }
    return msgspec.structs.replace(request, params=msgspec.structs.replace(request.params, **changes))


def predict(
    prepared: Prepared,
    cost: Cost,
    requests: Iterable[Request],
    *,
    timer: Callable[[], float] = time.perf_counter,
) -> Prediction:
    """Run ``requests`` through, in order, as a job does.

    Args:
        cost: prices the steps. Policies are told of ``prepared.cost``, as they are in the real run.
        requests: of one answer each (``fan_out``), made by ``expected``.
        timer: measures what scheduling takes; ``lambda: 0.0`` leaves it out.
    """
    rehearsal = _Rehearsal(prepared, cost, timer)
    rehearsal.feed(iter(requests))
    rehearsal.drain()
    return rehearsal.prediction()


def predict_job(
    prepared: Prepared,
    cost: Cost,
    count: int,
    read: Callable[[int, int], Iterable[Request]],
    computed: int,
    emitted: int,
    *,
    budget: float = 5.0,
    timer: Callable[[], float] = time.perf_counter,
) -> Prediction:
    """The same for a job of any size, in about twice ``budget`` seconds at most.

    Where running all of it through takes longer than ``budget``, stretches of the job spread evenly over its
    order are run through instead. Each gives the seconds of a computed row in the middle of the work, and
    the rows that its requests compute; the first, weighted with the second, is multiplied with what the
    whole job computes. What the end of the job takes beyond that, when fewer and fewer run, is added once.

    Args:
        count: how many requests there are, in planned order.
        read: ``read(start, stop)`` gives the requests ``start : stop`` of that order, as for ``predict``.
        computed: rows that the whole job computes by its plan: prompt tokens, and produced tokens that are
            fed back (all but the last of each answer).
        emitted: tokens that it produces.
        budget: seconds of ``timer``.
    """
    rehearsal = _Rehearsal(prepared, cost, timer)
    if rehearsal.feed(iter(read(0, count)), budget) and rehearsal.drain(budget):
        return rehearsal.prediction()
    size = max(1, min(count, rehearsal.fed) // STRETCHES)
    places = [round(i * (count - size) / max(1, STRETCHES - 1)) for i in range(STRETCHES)]
    found = [_Rehearsal(prepared, cost, timer).stretch(read(at, at + size)) for at in places]
    return _extrapolate(found, count, computed, emitted)


@dataclass(frozen=True, slots=True)
class _Stretch:
    """A stretch of a job: all of it, seconds and steps of a row in its middle, and the seconds that its end
    took beyond that."""

    whole: Prediction
    requests: int
    row_seconds: float
    row_steps: float
    tail: float


class _Mark(NamedTuple):
    """How far a rehearsal had come."""

    seconds: float
    computed: int
    steps: int


class _Rehearsal:
    """An engine on simulated time that is fed through a window."""

    def __init__(self, prepared: Prepared, cost: Cost, timer: Callable[[], float]) -> None:
        config = _fresh(prepared.config)
        model = prepared.model
        self.clock = JumpingClock()
        executor = PricedExecutor(
            cost, self.clock, prepared.pages, config.page_size, model.vocabulary, watch=self._watch
        )
        self.engine: Engine = assemble(config, executor, model, prepared.cost)
        self.window = max(512, 2 * config.max_num_seqs)
        self.timer = timer
        self.began = timer()
        self.fed = self.finished = self.refused = self.in_flight = self.peak = 0
        self.marks = [_Mark(0.0, 0, 0)]
        self.full = self.marks[0]

    @property
    def seconds(self) -> float:
        return self.clock() + self.timer() - self.began

    def feed(self, requests: Iterator[Request], budget: float = float("inf")) -> bool:
        """Step while requests come; False if that took more than ``budget``."""
        while True:
            while self.in_flight < self.window:
                request = next(requests, None)
                if request is None:
                    return True
                self._add(request)
            self._step()
            if self.timer() - self.began > budget:
                return False

    def drain(self, budget: float = float("inf")) -> bool:
        """Step until nobody is left; False if that took more than ``budget``."""
        while not self.engine.idle:
            self._step()
            if self.timer() - self.began > budget:
                return False
        return True

    def stretch(self, requests: Iterable[Request]) -> _Stretch:
        """Run through, and look at the middle, where neither the first prompts fill the steps alone nor the
        last answers run out: after a quarter of the work that was done while somebody waited."""
        self.feed(iter(requests))
        self.drain()
        whole, full = self.prediction(), self.full
        begin = next(mark for mark in self.marks if mark.computed >= full.computed // 4)
        if full.computed <= begin.computed:
            begin, full = self.marks[0], self.marks[-1]
        rows = max(1, full.computed - begin.computed)
        row_seconds = (full.seconds - begin.seconds) / rows
        tail = whole.seconds - full.seconds - row_seconds * (whole.computed - full.computed)
        return _Stretch(whole, self.fed, row_seconds, (full.steps - begin.steps) / rows, max(0.0, tail))

    def prediction(self) -> Prediction:
        counters = self.engine.scheduler.counters
        fed_back = counters.emitted - self.finished
        return Prediction(
            seconds=self.seconds,
            steps=counters.steps,
            computed=counters.computed,
            prompt=counters.computed - fed_back,
            emitted=counters.emitted,
            preemptions=counters.preemptions,
            peak_pages=self.peak,
            refused=self.refused,
        )

    def _add(self, request: Request) -> None:
        self.fed += 1
        try:
            self.engine.add(request, self.clock())
        except CallerError:
            self.refused += 1
        else:
            self.in_flight += 1

    def _step(self) -> None:
        finished = len(step(self.engine, self.clock).output.finished)
        self.finished += finished
        self.in_flight -= finished
        scheduler = self.engine.scheduler
        self.marks.append(_Mark(self.seconds, scheduler.counters.computed, scheduler.counters.steps))
        if scheduler.waiting:
            self.full = self.marks[-1]

    def _watch(self, plan: StepPlan) -> None:
        self.peak = max(self.peak, self.engine.memory.ledger.held)


def _fresh(config: EngineConfig) -> EngineConfig:
    """The same configuration with policies of its own: a rehearsal must leave no trace in the real ones."""
    changes: dict[str, Any] = {
        name: type(value)(**{parameter: getattr(value, parameter) for parameter in value.parameters()})
        for name in (*SEAMS, "policy")
        if isinstance(value := getattr(config, name), Policy)
    }
    return msgspec.structs.replace(config, **changes)


def _extrapolate(found: list[_Stretch], count: int, computed: int, emitted: int) -> Prediction:
    rows = max(1, sum(stretch.whole.computed for stretch in found))
    share = count / max(1, sum(stretch.requests for stretch in found))

    def weighted(what: Callable[[_Stretch], float]) -> float:
        return sum(what(stretch) * stretch.whole.computed for stretch in found) / rows

    return Prediction(
        seconds=weighted(lambda stretch: stretch.row_seconds) * computed
        + sum(stretch.tail for stretch in found) / len(found),
        steps=round(weighted(lambda stretch: stretch.row_steps) * computed),
        computed=computed,
        prompt=computed - (emitted - count),
        emitted=emitted,
        preemptions=round(share * sum(stretch.whole.preemptions for stretch in found)),
        peak_pages=max(stretch.whole.peak_pages for stretch in found),
        refused=round(share * sum(stretch.whole.refused for stretch in found)),
        exact=False,
    )

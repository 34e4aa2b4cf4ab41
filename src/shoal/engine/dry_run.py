"""What a run will cost, by running it: the real scheduler, memory and policies on simulated time.

The requests are the real ones, so prefixes match as they will; only their answers are of an expected length.
What the scheduler itself takes is measured while it decides here, and is part of the prediction.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import msgspec

from shoal.core.cost import Cost
from shoal.core.errors import CallerError
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
    """A stretch of a job: all of it, the seconds of a row in its middle, and what its end took beyond."""

    whole: Prediction
    requests: int
    row_seconds: float
    tail: float


class _Rehearsal:
    """An engine on simulated time that is fed through a window."""

    def __init__(self, prepared: Prepared, cost: Cost, timer: Callable[[], float]) -> None:
        config = _fresh(prepared.config)
        model = prepared.model
        self.clock = JumpingClock()
        executor = PricedExecutor(cost, self.clock, prepared.pages, config.page_size, model.vocabulary)
        self.engine: Engine = assemble(config, executor, model, prepared.cost)
        self.window = max(512, 2 * config.max_num_seqs)
        self.timer = timer
        self.began = timer()
        self.fed = self.finished = self.refused = self.in_flight = self.peak = 0
        self.marks: list[tuple[float, int]] = []

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
        """Run through, and look at the middle: from a quarter of the work done while requests came, when
        neither the first prompts fill the steps alone nor the last answers run out."""
        self.feed(iter(requests))
        fed_at, fed_rows = self.seconds, self._computed
        self.drain()
        whole = self.prediction()
        begin_at, begin_rows = next((m for m in self.marks if m[1] >= fed_rows // 4), (0.0, 0))
        rows = fed_rows - begin_rows
        if rows <= 0:
            return _Stretch(whole, self.fed, whole.seconds / max(1, whole.computed), 0.0)
        row_seconds = (fed_at - begin_at) / rows
        tail = whole.seconds - fed_at - row_seconds * (whole.computed - fed_rows)
        return _Stretch(whole, self.fed, row_seconds, max(0.0, tail))

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

    @property
    def _computed(self) -> int:
        return self.engine.scheduler.counters.computed

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
        self.peak = max(self.peak, self.engine.memory.ledger.held)
        self.marks.append((self.seconds, self._computed))


def _fresh(config: EngineConfig) -> EngineConfig:
    """The same configuration with policies of its own: a rehearsal must leave no trace in the real ones."""
    changes: dict[str, Any] = {
        name: type(value)(**{parameter: getattr(value, parameter) for parameter in value.parameters()})
        for name in (*SEAMS, "policy")
        if isinstance(value := getattr(config, name), Policy)
    }
    return msgspec.structs.replace(config, **changes)


def _extrapolate(found: list[_Stretch], count: int, computed: int, emitted: int) -> Prediction:
    rows = sum(stretch.whole.computed for stretch in found)
    seen = sum(stretch.requests for stretch in found)
    rate = sum(stretch.row_seconds * stretch.whole.computed for stretch in found) / max(1, rows)
    tail = sum(stretch.tail for stretch in found) / len(found)
    whole = found[0].whole
    return replace(
        whole,
        seconds=rate * computed + tail,
        steps=round(sum(stretch.whole.steps for stretch in found) * computed / max(1, rows)),
        computed=computed,
        prompt=computed - (emitted - count),
        emitted=emitted,
        preemptions=round(sum(stretch.whole.preemptions for stretch in found) * count / max(1, seen)),
        peak_pages=max(stretch.whole.peak_pages for stretch in found),
        refused=round(sum(stretch.whole.refused for stretch in found) * count / max(1, seen)),
        exact=False,
    )

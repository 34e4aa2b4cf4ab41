"""Measuring what steps cost here: synthetic plans through the ordinary executor, timed one by one.

Measured is what a plan of the scheduler is made of: so many rows at the beginning of a prompt, next tokens
of sequences of several lengths, chunks in the middle of prompts, many short stretches, and the choice of
tokens. A cost table is then fitted to all of them together.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from statistics import median

import numpy as np

from shoal.core.cost import DRAWN, MASKED, PLAIN, CostTable, StepShape, shape_of
from shoal.core.errors import InternalError
from shoal.core.executor import Executor
from shoal.core.fitting import fit
from shoal.core.plan import EMIT_NOTHING, EMIT_TOKEN, I32, NO_MOVES, SAMPLE, StepPlan
from shoal.core.request import Constraint, Request, SamplingParams

BUDGET = 20.0
"""Seconds that a calibration may take, roughly: a step on its way is finished."""
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
EMITS = (1, 8, 32, 64, 128)
TOUCHED = 256 << 20
"""Bytes of K/V that are written before any is read: much more than a processor's cache."""
PLACES = 32
"""Sequences in a step where each has one place of its own and none can be shared."""
REPEATS, ENOUGH = 5, 0.4
"""A step is repeated so often, or until its repeats took so many seconds."""
LARGEST = 0.15
"""Share of the budget that one step may take."""
LOOK = 3.0
"""Seconds that a look at the machine's speed of the moment may take."""
ENDLESS = Constraint(kind="regex", value="(yes|no|maybe)*")
PARAMS = {
    PLAIN: SamplingParams(temperature=0.0, max_tokens=None, ignore_eos=True),
    DRAWN: SamplingParams(temperature=1.0, max_tokens=None, ignore_eos=True),
    MASKED: SamplingParams(temperature=0.0, max_tokens=None, ignore_eos=True, constraint=ENDLESS),
}

Progress = Callable[[str, float], None]
"""Told what is measured next, and the share of the budget spent; it may raise to stop at once."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """Rows of one sequence in a synthetic step; the last of them may choose a token."""

    start: int
    rows: int
    emits: bool = False


Probe = list[Stretch]


@dataclass(slots=True)
class Calibration:
    """Every measured step as (shape, median seconds), the table fitted to them, and the seconds it took."""

    steps: list[tuple[StepShape, float]] = field(default_factory=list)
    table: CostTable = field(default_factory=lambda: CostTable(row_counts=(), row_seconds=()))
    seconds: float = 0.0


def calibrate(
    executor: Executor,
    longest: int,
    token_bytes: int,
    *,
    budget: float = BUDGET,
    masks: bool = False,
    progress: Progress = lambda what, share: None,
    clock: Callable[[], float] = time.perf_counter,
) -> Calibration:
    """Measure, within about ``budget`` seconds, and fit.

    Args:
        executor: writes over its pages, so nobody may rely on what they hold, and no slot is open.
        longest: tokens of the longest sequence. Where a page is as long, each sequence has a place of its
            own, and the places of a step lie side by side.
        token_bytes: bytes of K/V a token.
        masks: whether choices under a constraint are measured too.

    Raises:
        InternalError: the executor could not compute a step.
        CallerError: the executor knows no masks.
    """
    return _Bench(executor, longest, token_bytes, budget, progress, clock).run(masks)


def pace(
    executor: Executor,
    longest: int,
    token_bytes: int,
    table: CostTable,
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Seconds that steps take at this moment for each second that ``table`` says, from a few of them.

    A machine that others use too is faster at one time than at another, and all kinds of steps share that.
    Arguments and errors are those of ``calibrate``.
    """
    return _Bench(executor, longest, token_bytes, LOOK, lambda what, share: None, clock).pace(table)


class _Bench:
    """One calibration on its way."""

    def __init__(
        self,
        executor: Executor,
        longest: int,
        token_bytes: int,
        budget: float,
        progress: Progress,
        clock: Callable[[], float],
    ) -> None:
        self.executor = executor
        self.longest = self.depth = longest
        self.most_runs = executor.pages * executor.page_size
        self.budget = budget
        self.enough = ENOUGH * min(1.0, budget / BUDGET)
        self.progress = progress
        self.clock = clock
        self.began = clock()
        tokens = TOUCHED // max(1, token_bytes)
        self.pages = max(1, min(executor.pages, tokens // executor.page_size))
        if executor.page_size >= longest:
            self.pages = self.most_runs = min(executor.pages, PLACES)
            self.depth = max(1, min(longest, tokens // self.pages))
        self.found: list[tuple[StepShape, float]] = []
        self.step = 0

    def run(self, masks: bool) -> Calibration:
        self._touch()
        most = self._rows()
        reached = [n for n in ROWS if n <= most]
        for kind, probes in self._others(most, masks):
            self._choices(kind, probes)
        emits = [n for n in EMITS if n <= max(shape.emits for shape, _ in self.found)]
        table = fit(self.found, reached, emits)
        return Calibration(self.found, table, self.clock() - self.began)

    def pace(self, table: CostTable) -> float:
        self.enough = LOOK / 4
        self._touch()
        rows = max(n for n in ROWS if n == 1 or (n <= min(self.depth, 256) and table.rows(n) < LOOK / 8))
        deep = min(self.depth - 1, 1000)
        self._choices(
            PLAIN, [[Stretch(0, rows)], _chunk(rows, deep), _next_tokens(8, [deep // 2]), [Stretch(0, rows)]]
        )
        return median(took / table.step(shape) for shape, took in self.found)

    def _touch(self) -> None:
        """Write something finite into the pages that will be read, so that reading them is reading memory."""
        self._measure([Stretch(0, 1)], "warming up", repeats=1)
        size = min(self.executor.page_size, self.depth)
        self._submit(_plan([Stretch(0, size)], self.executor.page_size, self.pages, self._next()))
        moves = np.array([[0, page, size] for page in range(1, self.pages)], dtype=np.int32).reshape(-1, 3)
        one = _plan([Stretch(0, 1)], self.executor.page_size, self.pages, self._next(), moves)
        self._submit(one)
        self.found.clear()

    def _rows(self) -> int:
        """T(n) for growing n, while that is affordable; returns the largest."""
        most = 0
        for rows in ROWS:
            if rows > self.depth or (most and not self._affordable(2.2 * self.found[-1][1])):
                break
            self._measure([Stretch(0, rows)], f"{rows} rows")
            most = rows
        return most

    def _others(self, most: int, masks: bool) -> Iterator[tuple[int, list[Probe]]]:
        """The other steps by the way their rows choose, most telling first."""
        deep = min(self.depth - 1, 1000)
        middle, near = deep // 2, min(self.depth - 1, 48)
        # Sequences of one length are read together, those of many lengths in many small products.
        spread = range(near, deep, max(1, (deep - near) // 8))
        prompts_and_tokens = _next_tokens(24, range(near, deep, max(1, deep // 24)))
        prompts_and_tokens += _chunk(min(256, most), middle)
        yield (
            PLAIN,
            [
                _next_tokens(32, [middle]),
                _chunk(min(128, most), deep),
                _next_tokens(8, spread),
                _next_tokens(8, [near]),
            ],
        )
        if masks:
            yield MASKED, [_next_tokens(8, [near])]
        yield DRAWN, [_next_tokens(8, [near])]
        yield (
            PLAIN,
            [
                prompts_and_tokens,
                [Stretch(min(768, deep), min(48, most), True)] * 8,
                _next_tokens(64, [near]),
                _next_tokens(1, [middle]),
                _next_tokens(128, [near]),
                _next_tokens(24, spread),
                _next_tokens(8, [deep]),
                [Stretch(min(400, deep), min(24, most), True)] * 6,
                [Stretch(0, min(32, most), True)] * 12,
                _next_tokens(16, [deep], emits=False),
                _next_tokens(4, spread),
                _next_tokens(2, [near]),
            ],
        )

    def _choices(self, kind: int, probes: list[Probe]) -> None:
        """Measure steps whose rows choose in this way; what does not fit length or budget is left out."""
        opened: list[int] = []
        try:
            for slot in range(min(self.most_runs, max(map(len, probes)))):
                self.executor.open(slot, _request(slot, kind))
                opened.append(slot)
            for probe in probes:
                fitting = [s for s in probe if s.rows > 0 and s.start + s.rows <= self.depth]
                fitting = fitting[-self.most_runs :]
                if fitting and self._affordable(self._guess(fitting)):
                    self._measure(fitting, f"{len(fitting)} sequences", kind)
        finally:
            for slot in opened:
                self.executor.close(slot)

    def _guess(self, probe: Probe) -> float:
        """About what a step will take, by its rows."""
        rows = sum(stretch.rows for stretch in probe)
        prompts = sorted((shape.rows, took) for shape, took in self.found if shape.runs == 1) or [(1, 0.0)]
        return 1.5 * float(np.interp(rows, [count for count, _ in prompts], [took for _, took in prompts]))

    def _affordable(self, seconds: float) -> bool:
        left = self.budget - (self.clock() - self.began)
        return seconds <= LARGEST * self.budget and 2.0 * seconds <= left

    def _measure(self, probe: Probe, what: str, kind: int = PLAIN, repeats: int = REPEATS) -> None:
        """Once to warm up, then the median of some repeats; where one alone is long, it is not repeated."""
        self.progress(what, min(1.0, (self.clock() - self.began) / self.budget))
        plan = _plan(probe, self.executor.page_size, self.pages, self._next())
        first = self._submit(plan)
        took: list[float] = []
        while len(took) < repeats and sum(took) + first < self.enough:
            took.append(self._submit(plan))
        choice = np.full(plan.run_count, kind, dtype=np.int32)
        self.found.append((shape_of(plan, choice), median(took or [first])))

    def _submit(self, plan: StepPlan) -> float:
        """Seconds of a step."""
        begin = self.clock()
        self.executor.submit(plan)
        (result,) = self.executor.poll()
        took = self.clock() - begin
        for error in result.failures.values():
            raise InternalError(f"a step of the calibration failed: {error}") from error
        return max(took, 1e-9)

    def _next(self) -> int:
        self.step += 1
        return self.step


def _next_tokens(count: int, depths: list[int] | range, emits: bool = True) -> Probe:
    return [Stretch(depths[i % len(depths)], 1, emits) for i in range(count)]


def _chunk(rows: int, start: int) -> Probe:
    return [Stretch(max(0, start - rows), rows)]


def _request(slot: int, kind: int) -> Request:
    return Request(id=f"calibration-{slot}", prompt=np.zeros(1, dtype=np.int32), params=PARAMS[kind])


def _plan(probe: Probe, page_size: int, pages: int, step: int, moves: I32 = NO_MOVES) -> StepPlan:
    """The plan of a synthetic step: stretch i is slot i; their pages lie side by side, and begin again at the
    first when the pool is used up."""
    start = np.array([stretch.start for stretch in probe], dtype=np.int32)
    rows = np.array([stretch.rows for stretch in probe], dtype=np.int32)
    first = (rows.cumsum() - rows).astype(np.int32)
    position = np.arange(rows.sum(), dtype=np.int32) + (start - first).repeat(rows)
    emit = np.full(len(position), EMIT_NOTHING, dtype=np.int32)
    emit[first + rows - 1] = [EMIT_TOKEN if stretch.emits else EMIT_NOTHING for stretch in probe]
    count = (-(-(start + rows) // page_size)).astype(np.int32)
    return StepPlan(
        step=step,
        token=np.zeros(len(position), dtype=np.int32),
        position=position,
        emit=emit,
        target=np.full(len(position), SAMPLE, dtype=np.int32),
        sequence=np.arange(len(probe), dtype=np.int32),
        first_row=first,
        rows=rows,
        first_page=(count.cumsum() - count).astype(np.int32),
        page_count=count,
        pages=np.arange(count.sum(), dtype=np.int32) % np.int32(pages),
        moves=moves,
    )

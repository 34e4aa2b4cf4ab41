"""What a step costs: the shape of its work, and models of its seconds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import msgspec
import numpy as np

from shoal.core.plan import I32, SAMPLE, StepPlan
from shoal.core.request import SamplingParams

PLAIN, DRAWN, MASKED = 0, 1, 2
"""How a token is chosen: the largest logit; a draw; under a mask or penalties. The last two may be added."""


class StepShape(NamedTuple):
    """The work of one step in plain numbers.

    rows, runs, emits: rows computed, sequences, rows that choose a token. gathered: slots of K/V that the
    runs read, each run's from its first to its last position. pairs: (row, slot it sees) pairs.
    drawn, masked: of the rows that choose, those that draw, and those under a mask or penalties.
    """

    rows: int
    runs: int
    emits: int
    gathered: int
    pairs: int
    drawn: int = 0
    masked: int = 0


def shape_of(plan: StepPlan, choice: I32 | None = None) -> StepShape:
    """The shape of a plan, windows of layers left out of account.

    Args:
        choice: for each slot a sum of DRAWN and MASKED; None is plain everywhere.
    """
    end = plan.position[plan.first_row] + plan.rows
    shape = StepShape(
        rows=plan.row_count,
        runs=plan.run_count,
        emits=int(np.count_nonzero(plan.emit)),
        gathered=int(end.sum()),
        pairs=int(plan.position.sum()) + plan.row_count,
    )
    if choice is None or not shape.emits:
        return shape
    chosen = (plan.emit != 0) & (plan.target == SAMPLE)
    kinds = choice[plan.sequence].repeat(plan.rows)[chosen]
    drawn, masked = np.count_nonzero(kinds & DRAWN), np.count_nonzero(kinds & MASKED)
    return shape._replace(drawn=int(drawn), masked=int(masked))


def prompt_shape(rows: int) -> StepShape:
    """A step of the first ``rows`` rows of a prompt, of which none emits."""
    return StepShape(rows, 1, 0, rows, rows * (rows + 1) // 2)


def choice_of(params: SamplingParams) -> int:
    """A sum of DRAWN and MASKED."""
    penalties = params.repetition_penalty, params.presence_penalty, params.frequency_penalty
    changed = params.constraint is not None or params.logit_bias or penalties != (1.0, 0.0, 0.0)
    return (PLAIN if params.greedy else DRAWN) + (MASKED if changed else PLAIN)


class Cost(Protocol):
    """Predicts seconds."""

    def step(self, shape: StepShape) -> float:
        """Seconds for a step of this shape."""

    def rows(self, count: int) -> float:
        """Seconds for a step of ``count`` rows at the beginning of a prompt, of which none emits: T(n)."""


class ConstantCost(msgspec.Struct, frozen=True):
    """Every step takes the same time, whatever is in it."""

    seconds: float

    def step(self, shape: StepShape) -> float:
        return self.seconds

    def rows(self, count: int) -> float:
        return self.seconds


@dataclass(frozen=True, slots=True)
class Paced:
    """Another cost at the machine's speed of the moment: ``factor`` times as long."""

    cost: Cost
    factor: float

    def step(self, shape: StepShape) -> float:
        return self.factor * self.cost.step(shape)

    def rows(self, count: int) -> float:
        return self.factor * self.cost.rows(count)


class CostTable(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds measured on one machine, for one model, type, number of threads and layout.

    The seconds of a step are the sum of what its rows take in everything but attention, what its choices
    take, and of the products below. No part is negative, so more work never costs less.

    Attributes:
        row_counts, row_seconds: all but attention at these numbers of rows, ascending; what every step
            costs, however little it computes, is part of each.
        emit_counts, emit_seconds: the head and a plain choice for so many rows, ascending.
        run, gathered, pair: seconds for each run but the first, slot read beyond the rows' own, and
            row-slot pair.
        drawn, masked: what such a choice takes beyond a plain one.
    """

    row_counts: tuple[int, ...]
    row_seconds: tuple[float, ...]
    emit_counts: tuple[int, ...] = ()
    emit_seconds: tuple[float, ...] = ()
    run: float = 0.0
    gathered: float = 0.0
    pair: float = 0.0
    drawn: float = 0.0
    masked: float = 0.0

    def rows(self, count: int) -> float:
        return self.step(prompt_shape(count))

    def step(self, shape: StepShape) -> float:
        return (
            between(shape.rows, self.row_counts, self.row_seconds)
            + between(shape.emits, self.emit_counts, self.emit_seconds)
            + self.run * further_runs(shape)
            + self.gathered * earlier_slots(shape)
            + self.pair * shape.pairs
            + self.drawn * shape.drawn
            + self.masked * shape.masked
        )


def further_runs(shape: StepShape) -> int:
    """All but the first, which is part of what every step costs."""
    return max(0, shape.runs - 1)


def earlier_slots(shape: StepShape) -> int:
    """Slots read that no row of this step has just written."""
    return max(0, shape.gathered - shape.rows)


def between(count: int, counts: tuple[int, ...], seconds: tuple[float, ...]) -> float:
    """Linear between measured points; beyond the last at the rate of the last stretch, and nothing for
    nothing."""
    if not counts or count <= 0:
        return 0.0
    if count > counts[-1]:
        return seconds[-1] + (count - counts[-1]) * last_slope(counts, seconds)
    return float(np.interp(count, counts, seconds))


def last_slope(counts: tuple[int, ...], seconds: tuple[float, ...]) -> float:
    """Seconds for each further count beyond the last measured one."""
    if len(counts) == 1:
        return seconds[0] / counts[0]
    return (seconds[-1] - seconds[-2]) / (counts[-1] - counts[-2])

"""What a step costs: the shape of its work, and a table of seconds measured on this machine."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import msgspec
import numpy as np

from shoal.core.plan import StepPlan


class StepShape(NamedTuple):
    """The work of one step in plain numbers.

    rows, runs, emits: rows computed, sequences, rows that choose a token. gathered: slots of K/V that the
    runs read, each run's from its first to its last position. pairs: (row, slot it sees) pairs.
    """

    rows: int
    runs: int
    emits: int
    gathered: int
    pairs: int


def shape_of(plan: StepPlan) -> StepShape:
    """The shape of a plan, windows of layers left out of account."""
    end = plan.position[plan.first_row] + plan.rows
    return StepShape(
        rows=plan.row_count,
        runs=plan.run_count,
        emits=int(np.count_nonzero(plan.emit)),
        gathered=int(end.sum()),
        pairs=int(plan.position.sum()) + plan.row_count,
    )


class Cost(Protocol):
    """Predicts seconds."""

    def step(self, shape: StepShape) -> float:
        """Seconds for a step of this shape."""

    def rows(self, count: int) -> float:
        """Seconds for a step of ``count`` rows at the beginning of a prompt, of which none emits: T(n)."""


class CostTable(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds measured on one machine, for one model, type, number of threads and layout.

    Attributes:
        row_counts, row_seconds: T(n) at these numbers of rows, ascending.
        emit_counts, emit_seconds: choosing tokens for so many rows.
        run, gathered, pair: seconds for each further run, slot read, and row-slot pair.
    """

    row_counts: tuple[int, ...]
    row_seconds: tuple[float, ...]
    emit_counts: tuple[int, ...]
    emit_seconds: tuple[float, ...]
    run: float = 0.0
    gathered: float = 0.0
    pair: float = 0.0

    def rows(self, count: int) -> float:
        return _between(count, self.row_counts, self.row_seconds)

    def step(self, shape: StepShape) -> float:
        return (
            self.rows(shape.rows)
            + _between(shape.emits, self.emit_counts, self.emit_seconds)
            + self.run * shape.runs
            + self.gathered * shape.gathered
            + self.pair * shape.pairs
        )


def _between(count: int, counts: tuple[int, ...], seconds: tuple[float, ...]) -> float:
    """Linear between measured points, proportional beyond the last."""
    if not counts or count <= 0:
        return 0.0
    if count > counts[-1]:
        return seconds[-1] * count / counts[-1]
    return float(np.interp(count, counts, seconds))

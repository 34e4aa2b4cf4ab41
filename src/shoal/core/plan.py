"""What one step computes, and what came of it: frozen integers, no tensor, no live object, no phase.

A batch is rows over pages. A *row* is one position to compute; a *run* is the rows of one sequence in
this step, consecutive in the row columns and ascending in position. A prefill chunk is a run of many
rows, a decode is a run of one, and nothing here or downstream says which is which.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]

EMIT_NOTHING, EMIT_TOKEN, EMIT_LOGPROBS = 0, 1, 2
SAMPLE = -1
"""In ``target``: choose the token; any other value is a known next token that is only scored."""


NO_MOVES: I32 = np.zeros((0, 3), dtype=np.int32)
NO_MOVES.setflags(write=False)
NO_PLACES: I32 = np.zeros(0, dtype=np.int32)
NO_PLACES.setflags(write=False)
UNMAP = -1
"""In the page column of ``maps``: nothing is mapped there any more."""


def _freeze(value: Any) -> None:
    for name in value.__slots__:
        array = getattr(value, name)
        if type(array) is np.ndarray:
            array.setflags(write=False)


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One step's work. R rows, N runs, P page references.

    Row columns, shape (R,), int32:
        token: id whose embedding enters the model.
        position: logical index in its sequence; K/V go there, and it may read indices 0..position.
        emit: EMIT_NOTHING, EMIT_TOKEN or EMIT_LOGPROBS.
        target: for an emitting row, SAMPLE or the known next id to score.
    Run columns, shape (N,), int32:
        sequence: slot of the sequence in the table; names its sampling state in the executor.
        first_row, rows: the run's rows are ``first_row : first_row + rows``.
        first_page, page_count: its page ids are ``pages[first_page : first_page + page_count]``; they
            hold logical indices 0 .. page_count * page_size - 1 and cover every row of the run.
    pages: shape (P,), int32, page ids; what no run names is slack.
    moves: shape (M, 3), int32: source page, target page, slots to copy (from the page's first on) in every
        layer, before anything is computed. No page is source and target.
    place: shape (N,), int32, where the layout maps pages into places: the run's place, whose page i is the
        run's page i. Elsewhere (0,).
    maps: shape (M, 3), int32: place, index, page: what is to be mapped there (or UNMAP), in this order,
        before anything is computed.
    ahead: the same, for steps to come: made while this one is computed, which reads none of it.
    """

    step: int
    token: I32
    position: I32
    emit: I32
    target: I32
    sequence: I32
    first_row: I32
    rows: I32
    first_page: I32
    page_count: I32
    pages: I32
    moves: I32 = field(default_factory=lambda: NO_MOVES)
    place: I32 = field(default_factory=lambda: NO_PLACES)
    maps: I32 = field(default_factory=lambda: NO_MOVES)
    ahead: I32 = field(default_factory=lambda: NO_MOVES)

    def __post_init__(self) -> None:
        _freeze(self)

    @property
    def row_count(self) -> int:
        return len(self.token)

    @property
    def run_count(self) -> int:
        return len(self.sequence)

    def run_of_row(self) -> I32:
        """For each row the index of its run, shape (R,), int32."""
        return np.repeat(np.arange(self.run_count, dtype=np.int32), self.rows)

    def emitting_rows(self) -> I64:
        """Indices of the rows that emit, ascending, shape (E,)."""
        return np.flatnonzero(self.emit)

    def only(self, run: int) -> StepPlan:
        """The plan of one run alone, its moves and maps done."""
        first, rows = int(self.first_row[run]), int(self.rows[run])
        page, count = int(self.first_page[run]), int(self.page_count[run])
        part, pages, one = slice(first, first + rows), slice(page, page + count), slice(run, run + 1)
        start = np.zeros(1, dtype=np.int32)
        return StepPlan(
            step=self.step,
            token=self.token[part],
            position=self.position[part],
            emit=self.emit[part],
            target=self.target[part],
            sequence=self.sequence[one],
            first_row=start,
            rows=self.rows[one],
            first_page=start.copy(),
            page_count=self.page_count[one],
            pages=self.pages[pages],
            place=self.place[one],
        )

    def check(self, page_size: int) -> None:
        """Raise AssertionError unless the columns agree with each other."""
        assert self.run_count == 0 or self.first_row[0] == 0
        assert np.array_equal(self.first_row + self.rows, np.append(self.first_row[1:], self.row_count))
        assert np.all(self.rows > 0)
        assert len(np.unique(self.sequence)) == self.run_count
        assert len(np.unique(self.place)) == len(self.place) in (0, self.run_count), "a place for each run"
        last = self.position[self.first_row + self.rows - 1]
        assert np.all(self.page_count * page_size > last), "a row lies outside its run's pages"
        inside = np.ones(self.row_count, dtype=bool)
        inside[self.first_row] = False
        assert np.all(np.diff(self.position, prepend=-1)[inside] == 1), "rows of a run are consecutive"


@dataclass(frozen=True, slots=True)
class ScoredTokens:
    """Log-probabilities of E' rows that asked for them (EMIT_LOGPROBS), in row order.

    row: shape (E',), int64, the row in the plan. logprob: (E',), float32, of the chosen or target token.
    rank: (E',), int32, 1 for the best. top_ids, top_logprobs: (E', K), best first; K is the most any
    row asked for, and readers cut to what their request asked.
    """

    row: I64
    logprob: F32
    rank: I32
    top_ids: I32
    top_logprobs: F32


@dataclass(frozen=True, slots=True)
class StepResult:
    """What an executor returns for one plan.

    tokens: shape (E,), int32, one for each emitting row in row order; for a scored row its target.
    ready: seconds on the engine's clock when the tokens existed.
    scored: present if a row asked for log-probabilities.
    margins: shape (E,), float32 or None: distance of the two best (perturbed) logits, where recorded.
    complete: shape (E,), bool or None: after this token the row's constraint allows nothing more.
    failures: run index -> what went wrong; the tokens of such a run mean nothing.
    """

    step: int
    tokens: I32
    ready: float
    scored: ScoredTokens | None = None
    margins: F32 | None = None
    complete: npt.NDArray[np.bool_] | None = None
    failures: dict[int, Exception] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _freeze(self)

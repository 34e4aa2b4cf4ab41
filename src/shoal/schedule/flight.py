"""A step on its way: the plan made from slots and rows, and which sequences end when its result is in."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from shoal.core.plan import EMIT_LOGPROBS, I32, I64, SAMPLE, StepPlan, StepResult
from shoal.core.request import FinishReason
from shoal.core.table import SequenceTable
from shoal.memory.layout import Layout

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Lineup:
    """What never changes of the sequences in ``slots`` while they run, gathered once and kept as long as
    the same ones run. Each (N,); ``stop_ids`` (N, widest).

    ``index`` is 0..N-1, ``sample`` all SAMPLE, ``everyone`` all True. ``moves`` is the token store's: after
    another move ``base`` and ``room`` are out of date.
    """

    slots: I32
    base: I64
    room: I64
    prompt: I32
    limit: I32
    emit: I32
    stop_ids: I32
    index: I32
    sample: I32
    everyone: Bools
    scores: bool
    moves: int

    @classmethod
    def of(cls, table: SequenceTable, slots: I32) -> Lineup:
        return cls(
            slots=slots,
            base=table.base[slots],
            room=table.room[slots],
            prompt=table.prompt[slots],
            limit=table.limit[slots],
            everyone=np.ones(len(slots), dtype=bool),
            emit=table.emit[slots],
            stop_ids=table.stop_ids[slots],
            index=np.arange(len(slots), dtype=np.int32),
            sample=np.full(len(slots), SAMPLE, dtype=np.int32),
            scores=bool(table.scores_prompt[slots].any()),
            moves=table.tokens.moves,
        )


@dataclass(frozen=True, slots=True)
class Flight:
    """A submitted plan and what its result will mean. N runs, S of them choose a token.

    lineup: of the N runs. end: (N,), int32, computed tokens once the result is in. sampling: (N,), bool,
    the runs that reach the last known token. token_index: (S,), int64, where their tokens stand among the
    result's; None if the result's tokens are just theirs and S is N.
    """

    plan: StepPlan
    lineup: Lineup
    end: I32
    sampling: Bools
    token_index: I64 | None

    def without(self, table: SequenceTable, runs: list[int]) -> Flight:
        """The same with these runs left out; the plan stays what was submitted."""
        count = len(self.end)
        good = np.ones(count, dtype=bool)
        good[runs] = False
        index = np.zeros(count, dtype=np.int64)
        index[self.sampling] = np.arange(count) if self.token_index is None else self.token_index
        kept = good & self.sampling
        lineup = Lineup.of(table, self.lineup.slots[good])
        return Flight(self.plan, lineup, self.end[good], kept[good], index[kept])

    def chosen(self, table: SequenceTable, result: StepResult) -> tuple[Lineup, I32, I32, Bools | None]:
        """Of the S runs: their lineup, tokens known before, new tokens, and whose constraint is complete."""
        if self.token_index is None:
            return self.lineup, self.end, result.tokens, result.complete
        complete = None if result.complete is None else result.complete[self.token_index]
        lineup = Lineup.of(table, self.lineup.slots[self.sampling])
        return lineup, self.end[self.sampling], result.tokens[self.token_index], complete


def take_off(
    table: SequenceTable, memory: Layout, lineup: Lineup, rows: I32, step: int, even: bool
) -> Flight:
    """The plan that computes the next ``rows`` known tokens of each sequence; their pages are there.

    ``even`` says that each has one row to do and does it.
    """
    slots = lineup.slots
    start = table.computed[slots]
    end = start + rows
    sampling = lineup.everyone if even else end == table.known[slots]
    emit = lineup.emit if even or sampling.all() else lineup.emit * sampling
    total = len(slots) if even else int(rows.sum())
    token_index = None
    if total == len(slots):
        first, position, target = lineup.index, start, lineup.sample
        token = table.tokens.ids[lineup.base + start]
    else:
        last = rows.cumsum(dtype=np.int32)
        first = last - rows
        position = np.arange(total, dtype=np.int32)
        position += (start - first).repeat(rows)
        token = table.tokens.ids[lineup.base.repeat(rows) + position]
        target = np.full(total, SAMPLE, dtype=np.int32)
        emit_of_run, emit = emit, np.zeros(total, dtype=np.int32)
        emit[last - 1] = emit_of_run
    if lineup.scores:
        target, emit = target.copy(), emit.copy()
        for i in table.scores_prompt[slots].nonzero()[0].tolist():
            _score_prompt(table, int(slots[i]), int(start[i]), int(first[i]), int(rows[i]), emit, target)
    if lineup.scores or emit is not lineup.emit:
        token_index = ((emit != 0).cumsum() - 1)[first + rows - 1][sampling]
    moves = memory.moves()
    first_page, page_count, pages = memory.gather(slots)
    mapping = memory.mapping(slots, end)
    plan = StepPlan(
        step=step,
        token=token,
        position=position,
        emit=emit,
        target=target,
        sequence=slots,
        first_row=first,
        rows=rows,
        first_page=first_page,
        page_count=page_count,
        pages=pages,
        moves=moves,
        place=mapping.place,
        maps=mapping.maps,
        ahead=mapping.ahead,
    )
    return Flight(plan, lineup, end, sampling, token_index)


def _score_prompt(
    table: SequenceTable, slot: int, start: int, first: int, rows: int, emit: I32, target: I32
) -> None:
    """Rows whose next token is in the prompt score it."""
    count = min(rows, int(table.prompt[slot]) - 1 - start)
    if count > 0:
        emit[first : first + count] = EMIT_LOGPROBS
        target[first : first + count] = table.ids(slot, start + 1, start + 1 + count)


def ends(
    table: SequenceTable, lineup: Lineup, tokens: I32, known: I32, complete: Bools | None
) -> list[tuple[int, FinishReason, int | None]]:
    """Which sequences end with these new ``tokens``: (slot, reason, the id that ended it).

    known: (m,), tokens each knows now. complete: (m,) or None, the constraint allows nothing more.
    """
    over, stops = known >= lineup.limit, lineup.stop_ids == tokens[:, None]
    if complete is None and not over.any() and not stops.any():
        return []
    stopped = stops.any(axis=1)
    over |= stopped
    if complete is not None:
        over |= complete
    ended: list[tuple[int, FinishReason, int | None]] = []
    for i in over.nonzero()[0].tolist():
        slot = int(lineup.slots[i])
        if stopped[i] and known[i] > table.floor[slot]:
            ended.append((slot, FinishReason.STOP, int(tokens[i])))
        elif complete is not None and complete[i]:
            ended.append((slot, FinishReason.STOP, None))
        elif known[i] >= lineup.limit[i]:
            ended.append((slot, FinishReason.LENGTH, None))
    return ended

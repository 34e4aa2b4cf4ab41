"""A step on its way: the plan made from slots and rows, and which sequences end when its result is in."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from shoal.core.plan import EMIT_LOGPROBS, I32, I64, SAMPLE, StepPlan
from shoal.core.request import FinishReason
from shoal.core.table import SequenceTable
from shoal.memory.kv import KVMemory

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Flight:
    """A submitted plan and what its result will mean. N runs, S of them choose a token.

    slots, rows: (N,), int32. sampling: (N,), bool, the runs that reach the last known token. token_index:
    (S,), int64, where their tokens stand among the result's.
    """

    plan: StepPlan
    slots: I32
    rows: I32
    sampling: Bools
    token_index: I64

    def without(self, runs: list[int]) -> Flight:
        """The same with these runs left out; the plan stays what was submitted."""
        good = np.ones(len(self.slots), dtype=bool)
        good[runs] = False
        index = np.zeros(len(self.slots), dtype=np.int64)
        index[self.sampling] = self.token_index
        kept = good & self.sampling
        return Flight(self.plan, self.slots[good], self.rows[good], kept[good], index[kept])


def take_off(table: SequenceTable, memory: KVMemory, slots: I32, rows: I32, step: int) -> Flight:
    """The plan that computes the next ``rows`` known tokens of each of ``slots``, whose pages are there."""
    start = table.computed[slots]
    last = rows.cumsum(dtype=np.int32)
    total = int(last[-1])
    first = last - rows
    sampling = start + rows == table.known[slots]
    target = np.full(total, SAMPLE, dtype=np.int32)
    token_index = np.arange(np.count_nonzero(sampling))
    if total == len(slots):
        position = start
        token = table.tokens.ids[table.base[slots] + start]
        emit = table.emit[slots] * sampling
    else:
        position = np.arange(total, dtype=np.int32)
        position += (start - first).repeat(rows)
        token = table.tokens.ids[table.base[slots].repeat(rows) + position]
        emit = np.zeros(total, dtype=np.int32)
        emit[last - 1] = table.emit[slots] * sampling
    scoring = table.scores_prompt[slots]
    if scoring.any():
        for i in scoring.nonzero()[0].tolist():
            _score_prompt(table, int(slots[i]), int(start[i]), int(first[i]), int(rows[i]), emit, target)
        token_index = ((emit != 0).cumsum() - 1)[last - 1][sampling]
    first_page, page_count, pages = memory.gather(slots)
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
    )
    return Flight(plan, slots, rows, sampling, token_index)


def _score_prompt(
    table: SequenceTable, slot: int, start: int, first: int, rows: int, emit: I32, target: I32
) -> None:
    """Rows whose next token is in the prompt score it."""
    count = min(rows, int(table.prompt[slot]) - 1 - start)
    if count > 0:
        emit[first : first + count] = EMIT_LOGPROBS
        target[first : first + count] = table.ids(slot, start + 1, start + 1 + count)


def ends(
    table: SequenceTable, slots: I32, tokens: I32, known: I32, complete: Bools | None
) -> list[tuple[int, FinishReason, int | None]]:
    """Which of ``slots`` end with these new ``tokens``: (slot, reason, the id that ended it).

    known: (m,), tokens each knows now. complete: (m,) or None, the constraint allows nothing more.
    """
    over = known >= table.limit[slots]
    stopped = (table.stop_ids[slots] == tokens[:, None]).any(axis=1)
    over |= stopped
    if complete is not None:
        over |= complete
    ended: list[tuple[int, FinishReason, int | None]] = []
    for i in over.nonzero()[0].tolist():
        slot = int(slots[i])
        if stopped[i] and known[i] > table.floor[slot]:
            ended.append((slot, FinishReason.STOP, int(tokens[i])))
        elif complete is not None and complete[i]:
            ended.append((slot, FinishReason.STOP, None))
        elif known[i] >= table.limit[slot]:
            ended.append((slot, FinishReason.LENGTH, None))
    return ended

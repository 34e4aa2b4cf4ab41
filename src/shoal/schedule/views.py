"""What policies are shown: columns and plain numbers taken from table and memory."""

from __future__ import annotations

import numpy as np

from shoal.core.plan import I32
from shoal.core.policy import Load, Newcomer, SequenceView
from shoal.core.table import SequenceTable
from shoal.memory.layout import Layout


def sequences(table: SequenceTable, slots: I32, now: float) -> SequenceView:
    return SequenceView(
        now=now,
        handle=table.handle[slots],
        arrived=table.arrived[slots],
        prompt=table.prompt[slots],
        known=table.known[slots],
        computed=table.computed[slots],
        limit=table.limit[slots],
        preemptions=table.preemptions[slots],
    )


def load(memory: Layout, todo: I32, waiting: int, now: float) -> Load:
    """``todo``: rows that each running sequence has to do, (N,), int32."""
    singles = int(np.count_nonzero(todo == 1))
    return Load(
        now=now,
        running=len(todo),
        waiting=waiting,
        singles=singles,
        backlog=int(todo.sum()) - singles if singles < len(todo) else 0,
        free_pages=memory.available,
        total_pages=memory.ledger.total,
    )


def newcomer(table: SequenceTable, memory: Layout, slot: int, hits: list[int]) -> Newcomer:
    """``hits``: listed pages that hold its first tokens."""
    known = int(table.known[slot])
    return Newcomer(
        handle=int(table.handle[slot]),
        prompt=int(table.prompt[slot]),
        known=known,
        limit=int(table.limit[slot]),
        pages=memory.pages_for(known) - len(hits) + memory.idle_among(hits),
        growth=growth_of(table, memory, slot),
    )


def growth_of(table: SequenceTable, memory: Layout, slot: int) -> int:
    """Pages that a waiting sequence's answer may need beside those of its known tokens."""
    return memory.pages_for(int(table.limit[slot])) - memory.pages_for(int(table.known[slot]))


def growth(table: SequenceTable, memory: Layout, running: I32) -> int:
    """Pages that the running sequences may still come to need."""
    limit = -(-table.limit[running] // memory.page_size)
    return int((limit - table.pages[running]).sum())

"""The plain layout of KV memory: one buffer of C places, one place a sequence, those in use side by side.

A place is a page as long as the longest sequence. A sequence holds one from its first row to its end, so
nothing is looked up, nothing shared, and nothing runs out midway. Places in use form the window [lo, hi);
an end in its middle leaves a hole, and the fewest copies that close all holes go with the next plan
(Flover, arXiv 2305.13484: memory shuffling). The rows of a step then lie side by side, and attention
reads them where they are.

Only K/V lies in places. What else belongs to a sequence (lengths, ids, sampling state) is kept under its
slot of the sequence table, which never moves; the one thing to change with a move is the place noted here.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from shoal.core.plan import I32, I64, NO_MOVES
from shoal.core.policy import Policy
from shoal.core.table import SequenceTable
from shoal.memory.kv import NEVER
from shoal.memory.layout import NO_MAPPING, Mapping
from shoal.memory.ledger import Ledger

NOBODY = -1


def compaction(occupied: npt.NDArray[np.bool_]) -> tuple[int, I32]:
    """Where the occupied places can lie side by side with the fewest moves, the lowest such window.

    Args:
        occupied: (C,), which places are in use; n of them.

    Returns:
        (lo, moves): the window is [lo, lo + n); moves is (m, 2), int32, from a place outside to a free
        place inside, both ascending, so no place is source and target. m is n less the most that any
        window of n places holds, and no choice of moves is shorter.
    """
    count = int(np.count_nonzero(occupied))
    if not count:
        return 0, np.zeros((0, 2), dtype=np.int32)
    before = np.concatenate([[0], np.cumsum(occupied)])
    lo = int(np.argmax(before[count:] - before[:-count]))
    inside = np.zeros(len(occupied), dtype=bool)
    inside[lo : lo + count] = True
    pairs = [np.flatnonzero(occupied & ~inside), np.flatnonzero(~occupied & inside)]
    return lo, np.stack(pairs, axis=1).astype(np.int32)


class SlotMemory:
    """A place for each sequence; the face is that of ``shoal.memory.layout.Layout``.

    The table's columns ``pages``, ``border`` and ``node`` belong to this class; no other writes them.

    Args:
        table: the engine's sequences.
        places: C, places in the buffer; the plan's pages.
        length: token positions a place, the longest sequence; the plan's page size.
        compact: close holes. Without it they stay until their place is taken again or lies at an end of
            the window.

    Attributes:
        lo, hi: the window: every place in use lies in [lo, hi), and ``lo`` and ``hi - 1`` are in use.
        moved: sequences moved since the start.
    """

    def __init__(self, table: SequenceTable, places: int, length: int, *, compact: bool = True) -> None:
        self.table = table
        self.page_size = length
        self.compact = compact
        self.ledger = Ledger(places)
        self.lo = self.hi = self.moved = 0
        self._holder = np.full(places, NOBODY, dtype=np.int32)
        self._place = np.zeros(0, dtype=np.int32)
        self._unsaid = NO_MOVES

    @property
    def policies(self) -> tuple[Policy, ...]:
        """None: there is nothing to choose."""
        return ()

    @property
    def available(self) -> int:
        """Places that nobody holds."""
        return self.ledger.free

    @property
    def span(self) -> int:
        """Places from the first in use to the last: the rows of a step fused over the window as it lies."""
        return self.hi - self.lo

    def pages_for(self, tokens: int) -> int:
        """Places that ``tokens`` positions take: one, for as many as a sequence may have."""
        return -(-tokens // self.page_size)

    def soon(self, running: int) -> int:
        """Who runs has its place."""
        return 0

    def open(self, slot: int) -> None:
        """A new sequence, which holds nothing yet."""
        self.table.border[slot] = NEVER
        if slot >= len(self._place):
            more = np.zeros(len(self.table.requests) - len(self._place), dtype=np.int32)
            self._place = np.concatenate([self._place, more])

    def missing(self, slots: I32, tokens: I32) -> tuple[I64, I32]:
        """Which of ``slots`` have no place yet (indices, ascending), and how many each lacks: one."""
        who = (self.table.pages[slots] == 0).nonzero()[0]
        return who, np.ones(len(who), dtype=np.int32)

    def find(self, slot: int) -> list[int]:
        """Nothing is shared."""
        return []

    def idle_among(self, pages: list[int]) -> int:
        return 0

    def adopt(self, slot: int, pages: list[int], now: float) -> int:
        return 0

    def grow(self, slots: I32, missing: I32) -> None:
        """Give each of ``slots`` a place: a hole, else the next above the window, else the next below."""
        places = self._next_places(len(slots))
        self.ledger.claim(places)
        self._holder[places] = slots
        self._place[slots] = places
        self.table.pages[slots] = 1
        self._measure()

    def publish(self, slot: int, tokens: int, now: float) -> None:
        raise AssertionError("a place is never listed for others")

    def release(self, slot: int, now: float) -> None:
        """Give back the place of ``slot``, if it has one."""
        if self.table.pages[slot] == 0:
            return
        self.table.pages[slot] = self.table.computed[slot] = 0
        place = self._place[slot : slot + 1]
        self._holder[place] = NOBODY
        self.ledger.drop(place)
        self._measure()

    def give_way(self, slot: int, now: float) -> None:
        self.release(slot, now)

    def came(self, slot: int, now: float) -> None:
        """Nothing was kept for it."""

    def forget(self, nodes: range, now: float) -> None:
        """Nothing was kept for anybody."""

    def break_pins(self, n: int) -> None:
        """There are none."""

    def moves(self) -> I32:
        """Close the holes; what is to be copied before the step that is being planned, (M, 3), int32: from
        place, to place, positions.

        Only computed tokens are copied, and a sequence without any just changes its place. Copies of a step
        that failed are said again, first: nobody has written to their sources, so twice is as good as once,
        and a step that was broken off may not have made them.
        """
        if not self.compact or self.hi - self.lo == self.ledger.held:
            return self._unsaid
        self.lo, pairs = compaction(self._holder != NOBODY)
        self.hi = self.lo + self.ledger.held
        source, target = pairs.T
        slots = self._holder[source]
        self._holder[target], self._holder[source] = slots, NOBODY
        self._place[slots] = target
        self.ledger.claim(target)
        self.ledger.drop(source)
        self.moved += len(slots)
        tokens = self.table.computed[slots]
        copies = np.column_stack([pairs, tokens])[tokens > 0]
        self._unsaid = np.concatenate([self._unsaid, copies])
        return self._unsaid

    def confirm(self) -> None:
        """The step has succeeded, its copies are made."""
        self._unsaid = NO_MOVES

    def retract(self) -> None:
        """Runs of the step have failed and are released."""

    def gather(self, slots: I32) -> tuple[I32, I32, I32]:
        """The place of each sequence: (first, count, pages)."""
        first = np.arange(len(slots), dtype=np.int32)
        return first, self.table.pages[slots], self._place[slots]

    def mapping(self, slots: I32, end: I32) -> Mapping:
        """Pages are read where they lie."""
        return NO_MAPPING

    def check(self) -> None:
        """Raise AssertionError unless sequences and places in use are one to one and the window is right."""
        self.ledger.check()
        table = self.table
        active = np.flatnonzero(table.state)
        holders = active[table.pages[active] > 0]
        assert np.all(table.pages[holders] == 1)
        assert np.all(table.computed[holders] <= self.page_size)
        used = np.flatnonzero(self._holder != NOBODY)
        assert np.array_equal(np.sort(self._holder[used]), holders), "a place for each, and nobody else"
        assert np.array_equal(self._place[self._holder[used]], used)
        assert np.array_equal(self.ledger.count, self._holder != NOBODY)
        window = (int(used[0]), int(used[-1]) + 1) if len(used) else (self.lo, self.lo)
        assert (self.lo, self.hi) == window

    def _next_places(self, count: int) -> I32:
        free = self._holder == NOBODY
        index = np.arange(self.lo, self.lo + len(free))
        # Counted from the window's beginning; places below it come last, the nearest first.
        around = np.concatenate([index[index < len(free)], np.arange(self.lo - 1, -1, -1)])
        return around[free[around]][:count].astype(np.int32)

    def _measure(self) -> None:
        used = np.flatnonzero(self._holder != NOBODY)
        self.lo, self.hi = (int(used[0]), int(used[-1]) + 1) if len(used) else (0, 0)

"""K/V of a sequence side by side in virtual memory: the books are those of pages, and beside them stands
where each page is mapped.

A *place* is a reserved stretch of addresses as long as the longest sequence. Each sequence that holds pages
has one, and its page i is mapped as the i-th of its place, so attention finds a position by a base address.
A page that several sequences hold is mapped in several places. Mappings outlive their sequence: what lies in
a place that nobody has is read by nobody, so it may stay, and whoever comes next starts on the free pages
that are mapped there already (Prabhu et al. 2024, "vAttention", arXiv 2405.04437: deferred reclamation).
What the next step will need is mapped beside the step before (the same: overlapped allocation).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from shoal.core.plan import I32, NO_MOVES, UNMAP
from shoal.core.policy import Retention
from shoal.core.table import SequenceTable
from shoal.memory.kv import KVMemory
from shoal.memory.layout import Mapping

NOBODY = -1


class ContiguousMemory(KVMemory):
    """Pages for sequences, and a place for each sequence that holds some.

    Args:
        table, pages, page_size, retention, reuse: as for ``KVMemory``.
        places: most sequences that hold pages at one time.
        length: tokens of the longest sequence.
        eager: map beside a step what the next one will need.
        deferred: leave mappings of sequences that are gone until the place is used again.

    Attributes:
        mapped: (places, pages a place), int32, the page that is mapped there, or UNMAP.
        now, ahead, found: pages mapped before the step that needed them, beside the step before, and taken
            because they were mapped there already, since the start.
    """

    def __init__(
        self,
        table: SequenceTable,
        pages: int,
        page_size: int,
        retention: Retention,
        reuse: bool = True,
        *,
        places: int,
        length: int,
        eager: bool = True,
        deferred: bool = True,
    ) -> None:
        super().__init__(table, pages, page_size, retention, reuse)
        self.eager = eager
        self.deferred = deferred
        self.mapped: I32 = np.full((places, self.pages_for(length)), UNMAP, dtype=np.int32)
        self.now = self.ahead = self.found = 0
        self._holder = np.full(places, NOBODY, dtype=np.int32)
        self._place = np.zeros(0, dtype=np.int32)
        self._unsaid: list[I32] = []

    @property
    def resident(self) -> int:
        """Pages that are mapped somewhere, each counted once."""
        return len(np.unique(self.mapped[self.mapped != UNMAP]))

    def open(self, slot: int) -> None:
        super().open(slot)
        if slot >= len(self._place):
            more = np.full(len(self.table.requests) - len(self._place), NOBODY, dtype=np.int32)
            self._place = np.concatenate([self._place, more])

    def adopt(self, slot: int, pages: list[int], now: float) -> int:
        first = int(self.table.pages[slot])
        if pages and first == 0:
            self._settle(slot, self.pages_for(int(self.table.known[slot])), pages)
        tokens = super().adopt(slot, pages, now)
        if pages:
            index = np.arange(first, first + len(pages))
            place = np.full(len(pages), self._place[slot])
            self.now += self._map(place, index, np.array(pages, dtype=np.int32))
        return tokens

    def release(self, slot: int, now: float) -> None:
        if self.table.pages[slot]:
            place = int(self._place[slot])
            self._holder[place] = self._place[slot] = NOBODY
            if not self.deferred:
                self._unmap(np.array([place]))
        super().release(slot, now)

    def reclaim(self) -> None:
        """Unmap whatever lies in places that nobody has."""
        self._unmap(np.flatnonzero(self._holder == NOBODY))

    def mapping(self, slots: I32, end: I32) -> Mapping:
        """Maps of a step that failed are said again, first: twice is as good as once, and a step that was
        broken off may not have made them."""
        maps = np.concatenate(self._unsaid) if self._unsaid else NO_MOVES
        before = len(self._unsaid)
        if self.eager:
            self.ahead += self._look_ahead(slots, end)
        ahead = self._unsaid[before] if len(self._unsaid) > before else NO_MOVES
        return Mapping(self._place[slots], maps, ahead)

    def confirm(self) -> None:
        super().confirm()
        self._unsaid.clear()

    def check(self) -> None:
        """Raise AssertionError unless pages are accounted for and each sequence's mapped side by side."""
        super().check()
        table = self.table
        active = np.flatnonzero(table.state)
        holders = active[table.pages[active] > 0]
        used = np.flatnonzero(self._holder != NOBODY)
        assert np.array_equal(np.sort(self._holder[used]), holders), "a place for each, and nobody else"
        assert np.array_equal(self._place[self._holder[used]], used)
        for slot, place in zip(self._holder[used].tolist(), used.tolist()):
            count = int(table.pages[slot])
            assert np.array_equal(self.mapped[place, :count], self.page_table[slot, :count])
        beginning = np.cumprod(self.mapped != UNMAP, axis=1).sum(axis=1)
        assert np.array_equal(beginning, np.count_nonzero(self.mapped != UNMAP, axis=1)), "no gaps"

    def _take(self, slots: I32, held: I32, missing: I32, total: int) -> I32:
        """Free pages, those first that are mapped already where they are needed."""
        for i in (held == 0).nonzero()[0].tolist():
            slot = int(slots[i])
            self._settle(slot, self.pages_for(int(self.table.known[slot])), [])
        place, index = self._stretch(self._place[slots], held, missing)
        new = self.mapped[place, index]
        there = self._free(new)
        # Two places may still have the same page mapped: it goes to the first.
        there &= np.isin(np.arange(total), np.unique(np.where(there, new, UNMAP), return_index=True)[1])
        self.ledger.claim(new[there])
        new[~there] = self.ledger.take(total - int(np.count_nonzero(there)))
        self.found += int(np.count_nonzero(there))
        self.now += self._map(place, index, new)
        return new

    def _look_ahead(self, slots: I32, end: I32) -> int:
        """Map free pages where the next step will want one; they stay free. Returns how many.

        A sequence goes on by as many rows as now, as far as its tokens are known, else by one, unless that
        is its last. Pages that would be taken last are chosen, so that nobody else takes them first.
        """
        table = self.table
        known, start = table.known[slots], table.computed[slots]
        goal = np.where(
            end >= known, np.minimum(end + 1, table.limit[slots] - 1), np.minimum(known, 2 * end - start)
        )
        held = table.pages[slots]
        missing = -(-goal // self.page_size) - held
        who = (missing > 0).nonzero()[0]
        if not len(who):
            return 0
        place, index = self._stretch(self._place[slots[who]], held[who], missing[who])
        there = self.mapped[place, index]
        wanting = ~self._free(there)
        pages = self.ledger.last(len(place))
        pages = pages[~np.isin(pages, there[~wanting])][: np.count_nonzero(wanting)]
        # A place is mapped from its beginning on, so what is short is short at the end.
        chosen = wanting.nonzero()[0][: len(pages)]
        return self._map(place[chosen], index[chosen], pages)

    def _settle(self, slot: int, need: int, pages: list[int]) -> None:
        """Give ``slot`` the place whose mappings, free or among ``pages`` where these will be, fit its need
        best: the fewest that are enough, else the most there are."""
        idle = (self._holder == NOBODY).nonzero()[0]
        useful = self._free(self.mapped[idle])
        useful[:, : len(pages)] |= self.mapped[idle, : len(pages)] == np.array(pages, dtype=np.int32)
        count = useful.sum(axis=1)
        enough = count >= need
        best = np.where(enough, -count, count - self.mapped.shape[1] - 1).argmax()
        self._holder[idle[best]] = slot
        self._place[slot] = idle[best]

    def _free(self, pages: I32) -> npt.NDArray[np.bool_]:
        """Which entries of ``mapped`` are pages that nobody holds and nobody can find."""
        ledger = self.ledger
        free: npt.NDArray[np.bool_] = (pages != UNMAP) & (ledger.count[pages] == 0) & ~ledger.listed[pages]
        return free

    def _stretch(self, places: I32, held: I32, missing: I32) -> tuple[I32, npt.NDArray[np.int64]]:
        """(place, index) of each missing page, sequence after sequence."""
        begin = missing.cumsum() - missing
        index = np.arange(int(missing.sum())) + (held - begin).repeat(missing)
        return places.repeat(missing), index

    def _map(self, place: I32, index: npt.NDArray[np.int64], pages: I32) -> int:
        """Say what is to be mapped where something else is; returns how many pages that are."""
        new = self.mapped[place, index] != pages
        if not new.any():
            return 0
        self.mapped[place, index] = pages
        self._unsaid.append(np.column_stack([place, index, pages])[new].astype(np.int32))
        return len(self._unsaid[-1])

    def _unmap(self, places: npt.NDArray[np.int64]) -> None:
        row, index = (self.mapped[places] != UNMAP).nonzero()
        if len(row):
            self._map(places[row].astype(np.int32), index, np.full(len(row), UNMAP, dtype=np.int32))

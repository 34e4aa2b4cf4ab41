"""The waiting line: who is next, by the order policy's keys."""

from __future__ import annotations

import heapq

import numpy as np

from shoal.core.plan import I32
from shoal.core.policy import Order
from shoal.core.table import WAITING, SequenceTable
from shoal.schedule.views import sequences


class WaitingLine:
    """Waiting sequences in order of (key, handle). Entries of those that have gone are skipped when met.

    Attributes:
        count: sequences that wait.
    """

    def __init__(self, table: SequenceTable) -> None:
        self.table = table
        self.count = 0
        self._heap: list[tuple[float, int, int]] = []
        self._new: list[int] = []

    def add(self, slot: int) -> None:
        """A new sequence; it gets its key when the next step is planned."""
        self._new.append(slot)
        self.count += 1

    def rejoin(self, slot: int) -> None:
        """A sequence that ran waits again, under the key it has."""
        self.put_back([slot])
        self.count += 1

    def leave(self, slot: int) -> None:
        """It runs, or is gone."""
        self.count -= 1
        if slot in self._new:
            self._new.remove(slot)

    def rank(self, order: Order, now: float) -> None:
        """Keys for newcomers; under a dynamic order, for everybody, those that run included."""
        table = self.table
        if order.dynamic:
            everybody = np.flatnonzero(table.state).astype(np.int32)
            table.key[everybody] = order.keys(sequences(table, everybody, now))
            self._heap = []
            self.put_back(table.slots_in(WAITING).tolist())
        elif self._new:
            new = np.array(self._new, dtype=np.int32)
            table.key[new] = order.keys(sequences(table, new, now))
            self.put_back(self._new)
        self._new.clear()

    def pop(self) -> int | None:
        """The slot that is next, or None."""
        while self._heap:
            _, handle, slot = heapq.heappop(self._heap)
            if self._is_waiting(slot, handle):
                return slot
        return None

    def put_back(self, slots: list[int]) -> None:
        """Popped ones that did not enter."""
        table = self.table
        for slot in slots:
            heapq.heappush(self._heap, (float(table.key[slot]), int(table.handle[slot]), slot))

    def check(self) -> None:
        """Raise AssertionError unless line and table agree."""
        waiting = {slot for _, handle, slot in self._heap if self._is_waiting(slot, handle)}
        assert waiting | set(self._new) == set(self.table.slots_in(WAITING).tolist())
        assert len(waiting) + len(self._new) == self.count

    def _is_waiting(self, slot: int, handle: int) -> bool:
        return bool(self.table.state[slot] == WAITING and self.table.handle[slot] == handle)


def sort_running(table: SequenceTable, running: I32) -> I32:
    """Running sequences in order of (key, handle)."""
    return running[np.lexsort((table.handle[running], table.key[running]))]

"""The books of the page pool: who holds what, and that nothing is lost.

    free + cached + held = total

A page is *held* while sequences refer to it (the count says how many), *cached* when nobody holds it but
the prefix index still lists it, and *free* otherwise.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

I32 = npt.NDArray[np.int32]


class Ledger:
    """Counts and the free list. It moves pages between the three kinds and decides nothing."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.count = np.zeros(total, dtype=np.int32)
        self.listed = np.zeros(total, dtype=np.bool_)
        self._stack = np.arange(total - 1, -1, -1, dtype=np.int32)
        self._at = np.arange(total - 1, -1, -1, dtype=np.int32)
        self.free = total
        self.cached = 0

    @property
    def held(self) -> int:
        return self.total - self.free - self.cached

    @property
    def available(self) -> int:
        """Pages that can be had: free at once, or cached and idle."""
        return self.free + self.cached

    def take(self, n: int) -> I32:
        """``n`` free pages, now held once each. The caller has made sure that they are there."""
        assert n <= self.free, "take more than is free"
        self.free -= n
        pages = self._stack[self.free : self.free + n].copy()
        self.count[pages] = 1
        return pages

    def claim(self, pages: I32) -> None:
        """These free pages (distinct ids) are now held once each: for layouts where it matters which."""
        for page in pages.tolist():
            assert not self.count[page], "claim what is held"
            assert not self.listed[page], "claim what is cached"
            self.free -= 1
            last, at = self._stack[self.free], self._at[page]
            self._stack[at], self._at[last] = last, at
            self.count[page] = 1

    def last(self, n: int) -> I32:
        """At most ``n`` free pages, those that ``take`` would give last."""
        return self._stack[: min(n, self.free)].copy()

    def hold(self, pages: I32) -> None:
        """One more holder for each of these listed pages (distinct ids)."""
        self.cached -= int(np.count_nonzero(self.count[pages] == 0))
        self.count[pages] += 1

    def drop(self, pages: I32) -> I32:
        """One holder less for each (distinct ids); returns those that became idle in the cache."""
        self.count[pages] -= 1
        gone = pages[self.count[pages] == 0]
        listed = self.listed[gone]
        self._release(gone[~listed])
        idle: I32 = gone[listed]
        self.cached += len(idle)
        return idle

    def list_page(self, page: int) -> None:
        """The prefix index now refers to this held page."""
        self.listed[page] = True

    def unlist(self, page: int) -> None:
        """The prefix index forgot this page; an idle one becomes free."""
        self.listed[page] = False
        if self.count[page] == 0:
            self.cached -= 1
            self._release(np.array([page], dtype=np.int32))

    def check(self) -> None:
        """Raise AssertionError unless the books balance."""
        idle = self.count == 0
        assert np.all(self.count >= 0)
        assert self.free == np.count_nonzero(idle & ~self.listed)
        assert self.cached == np.count_nonzero(idle & self.listed)
        free = self._stack[: self.free]
        assert len(np.unique(free)) == self.free
        assert np.array_equal(self._at[free], np.arange(self.free))
        assert np.all(idle[free] & ~self.listed[free])

    def _release(self, pages: I32) -> None:
        self._stack[self.free : self.free + len(pages)] = pages
        self._at[pages] = np.arange(self.free, self.free + len(pages))
        self.free += len(pages)

"""The prefix index: which page holds the K/V of exactly these tokens after exactly that prefix.

A tree of full pages for each domain. A node is a page; its key is (parent page, the page's token ids),
compared byte for byte, so a hit is exact and no hash can collide. A page leaves only after its children,
hence a page id in a key never comes to mean another content.

Idle pages leave in the order of the retention policy. Those it pins, and with them every page that they hang
on, are no longer available, until somebody breaks the pins.
"""

from __future__ import annotations

import heapq

import numpy as np

from shoal.core.policy import Bools, PageView, Retention
from shoal.memory.expected import UNPLANNED, Expected
from shoal.memory.ledger import I32, Ledger

ROOT = -1
"""Stands for the parent of domain 0's first pages; that of domain d is ``ROOT - d``."""


class PrefixIndex:
    """Lookup, listing and eviction order of cached pages; the ledger keeps the counts.

    Attributes:
        parent, children, depth, last_used, uses: by page; depth in tokens.
        group: by page, the planned prefix that it belongs to, or UNPLANNED.
        pinned: number of idle pages that are not available.
    """

    def __init__(self, ledger: Ledger, page_size: int, retention: Retention) -> None:
        self.ledger = ledger
        self.page_size = page_size
        self.retention = retention
        total = ledger.total
        self.expected = Expected()
        self.parent = np.full(total, ROOT, dtype=np.int32)
        self.children = np.zeros(total, dtype=np.int32)
        self.depth = np.zeros(total, dtype=np.int32)
        self.last_used = np.zeros(total, dtype=np.float64)
        self.uses = np.zeros(total, dtype=np.int32)
        self.group = np.full(total, UNPLANNED, dtype=np.int32)
        self.pinned = 0
        self.version = 0
        self._page_of: dict[bytes, int] = {}
        self._key_of: dict[int, bytes] = {}
        self._heap: list[tuple[float, int, int, int]] = []
        self._stamp = np.zeros(total, dtype=np.int64)
        self._worth = np.zeros(total, dtype=np.float64)
        self._pin = np.zeros(total, dtype=np.bool_)
        self._pinned_children = np.zeros(total, dtype=np.int32)

    def __len__(self) -> int:
        return len(self._page_of)

    def find(self, parent: int, tokens: bytes) -> int | None:
        """The page of these token ids (page_size int32 as bytes) below ``parent``, if it is listed."""
        return self._page_of.get(_key(parent, tokens))

    def match(self, parent: int, ids: I32) -> list[int]:
        """Pages of the longest listed chain below ``parent`` along the full pages of ``ids``."""
        wide = 4 * self.page_size
        text = ids.tobytes()
        found: list[int] = []
        for start in range(0, len(text) - wide + 1, wide):
            page = self._page_of.get(_key(parent, text[start : start + wide]))
            if page is None:
                break
            found.append(page)
            parent = page
        return found

    def publish(self, parent: int, tokens: bytes, page: int, now: float) -> bool:
        """List a held page under its content; False if that content is listed already."""
        key = _key(parent, tokens)
        if self._page_of.setdefault(key, page) != page:
            return False
        self._key_of[page] = key
        self.parent[page] = parent
        self.children[page] = self._pinned_children[page] = 0
        self.uses[page] = 0
        self.last_used[page] = now
        self.depth[page] = self.page_size
        if parent >= 0:
            self.children[parent] += 1
            self.depth[page] += self.depth[parent]
        self.group[page] = UNPLANNED
        self.ledger.list_page(page)
        self.version += 1
        return True

    def use(self, pages: I32, now: float) -> None:
        """Sequences take these pages from the cache."""
        idle = pages[self.ledger.count[pages] == 0].tolist()
        self.pinned -= sum(self._stays(page) for page in idle)
        self.ledger.hold(pages)
        for page in idle:
            self._set_pin(page, False)
        self.uses[pages] += 1
        self.last_used[pages] = now

    def idle(self, pages: I32, now: float) -> None:
        """Nobody holds these listed pages any more, each after the page it hangs on: they may be evicted, in
        the policy's order."""
        self.last_used[pages] = now
        self.pinned += sum(self._stays(page) for page in pages.tolist())
        self.judge(pages, now)

    def judge(self, pages: I32, now: float) -> None:
        """Ask the policy what these idle pages, each after the page it hangs on, are worth."""
        view = PageView(
            now=now,
            page=pages,
            depth=self.depth[pages],
            last_used=self.last_used[pages],
            uses=self.uses[pages],
            wanted=self.expected.wanted(self.group[pages]),
        )
        self._stamp[pages] += 1
        worth = self._worth[pages] = self.retention.worth(view)
        for page, pin in zip(pages.tolist(), np.isposinf(worth).tolist()):
            self._set_pin(page, pin)
            if self.children[page] == 0:
                self._push(page)
        for page in pages[np.isneginf(worth)][::-1].tolist():
            if self._evictable(page):
                self.forget(page)

    def evict(self, n: int) -> None:
        """Forget ``n`` idle pages, which become free, pinned ones last. The caller has made sure that there
        are as many."""
        while n:
            _, _, page, stamp = heapq.heappop(self._heap)
            if stamp == self._stamp[page] and self._evictable(page):
                self.forget(page)
                n -= 1

    def forget(self, page: int) -> None:
        """Take a childless page out of the index."""
        assert self.children[page] == 0, "a page leaves after its children"
        del self._page_of[self._key_of.pop(page)]
        self._stamp[page] += 1
        self._set_pin(page, False)
        self.ledger.unlist(page)
        parent = int(self.parent[page])
        if parent >= 0:
            self.children[parent] -= 1
            if self._evictable(parent):
                self._push(parent)

    def check(self) -> None:
        """Raise AssertionError unless index and ledger agree."""
        pages = np.fromiter(self._key_of, dtype=np.int64, count=len(self._key_of))
        assert len(pages) == len(self._page_of) == np.count_nonzero(self.ledger.listed)
        assert np.all(self.ledger.listed[pages])
        parents = self.parent[pages]
        inner = parents[parents >= 0]
        assert np.all(self.ledger.listed[inner]), "a parent outlives its children"
        counts = np.bincount(inner, minlength=self.ledger.total)
        assert np.array_equal(counts[pages], self.children[pages])
        held = pages[self.ledger.count[pages] > 0]
        above = self.parent[held]
        assert np.all(self.ledger.count[above[above >= 0]] > 0), "a held page's prefix is held"
        idle = pages[self.ledger.count[pages] == 0]
        assert not self._pin[held].any(), "only idle pages are pinned"
        assert self.pinned == sum(self._stays(page) for page in idle.tolist())
        stays = [self._stays(page) for page in pages.tolist()]
        counts = np.bincount(
            parents[np.array(stays, dtype=bool) & (parents >= 0)], minlength=len(self.parent)
        )
        assert np.array_equal(counts[pages], self._pinned_children[pages])
        ready = {page for _, _, page, stamp in self._heap if stamp == self._stamp[page]}
        for page in pages.tolist():
            assert not self._evictable(page) or page in ready, f"idle page {page} can never be evicted"

    def _evictable(self, page: int) -> bool:
        return bool(self.ledger.listed[page] and self.ledger.count[page] == 0 and self.children[page] == 0)

    def stays(self, pages: list[int]) -> Bools:
        """Which of these pages would stay pinned if nobody held them, shape (m,), bool."""
        pinned: Bools = self._pin[pages] | (self._pinned_children[pages] > 0)
        return pinned

    def _stays(self, page: int) -> bool:
        """Pinned itself, or a pinned page hangs on it."""
        return bool(self._pin[page]) or bool(self._pinned_children[page])

    def _set_pin(self, page: int, pin: bool) -> None:
        """Upwards as far as it changes anything."""
        before = self._stays(page)
        self._pin[page] = pin
        while page >= 0 and (now := self._stays(page)) != before:
            change = 1 if now else -1
            if self.ledger.count[page] == 0:
                self.pinned += change
            page = int(self.parent[page])
            if page >= 0:
                before = self._stays(page)
                self._pinned_children[page] += change

    def _push(self, page: int) -> None:
        entry = (float(self._worth[page]), -int(self.depth[page]), page, int(self._stamp[page]))
        heapq.heappush(self._heap, entry)
        if len(self._heap) > 64 + 4 * self.ledger.total:
            self._heap = [item for item in self._heap if item[3] == self._stamp[item[2]]]
            heapq.heapify(self._heap)


def _key(parent: int, tokens: bytes) -> bytes:
    return parent.to_bytes(4, "little", signed=True) + tokens

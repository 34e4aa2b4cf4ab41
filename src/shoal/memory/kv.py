"""KV memory as the scheduler sees it: page tables over one pool, with exact prefix reuse."""

from __future__ import annotations

import numpy as np

from shoal.core.plan import I32, I64, NO_MOVES
from shoal.core.policy import Retention
from shoal.core.request import SharedPrefix
from shoal.core.table import SequenceTable
from shoal.memory.expected import node_at
from shoal.memory.layout import NO_MAPPING, Mapping
from shoal.memory.ledger import Ledger
from shoal.memory.prefix import ROOT, PrefixIndex

COPIED = 1 << 17
"""Page ids that a plan may copy beside those it needs: half a megabyte."""
NEVER = 2**31 - 1
"""In column ``border``: this sequence's further pages stay its own."""


class KVMemory:
    """Pages for sequences. Asks the retention policy which cached page goes, and does the rest itself.

    The table's columns ``pages``, ``border``, ``node`` and ``shared`` belong to this class; no other writes
    them.

    Args:
        table: the engine's sequences.
        pages: pages in the pool.
        page_size: slots (token positions) a page.
        reuse: whether full pages are listed for other sequences to take.
    """

    def __init__(
        self, table: SequenceTable, pages: int, page_size: int, retention: Retention, reuse: bool = True
    ) -> None:
        self.table = table
        self.page_size = page_size
        self.reuse = reuse
        self.policies = (retention,)
        self.ledger = Ledger(pages)
        self.prefix = PrefixIndex(self.ledger, page_size, retention)
        self.page_table = np.zeros((0, 8), dtype=np.int32)
        self._fresh: list[int] = []

    @property
    def available(self) -> int:
        """Pages that can be had without breaking a pin."""
        return self.ledger.available - self.prefix.pinned

    def pages_for(self, tokens: int) -> int:
        """Pages that ``tokens`` slots take."""
        return -(-tokens // self.page_size)

    def open(self, slot: int) -> None:
        """A new sequence, which holds nothing yet."""
        self._begin(slot)
        if self.reuse:
            self.prefix.expected.announce(self._path(slot))
        rows, columns = self.page_table.shape
        if slot >= rows:
            longer = np.zeros((len(self.table.requests), columns), dtype=np.int32)
            longer[:rows] = self.page_table
            self.page_table = longer

    def _begin(self, slot: int) -> None:
        request, table = self.table.request(slot), self.table
        shared = NEVER if request.shared is None else request.shared
        table.shared[slot] = shared
        table.border[slot] = self.page_size if self.reuse and shared >= self.page_size else NEVER
        table.node[slot] = ROOT - request.domain

    def _path(self, slot: int) -> tuple[SharedPrefix, ...]:
        return self.table.request(slot).path

    def came(self, slot: int, now: float) -> None:
        """A waiting sequence is let in and has taken what it can from the cache, or will never be let in:
        what was kept for it alone is kept no longer."""
        if not self.reuse or not (path := self._path(slot)):
            return
        self._unpin(self.prefix.expected.enter(path), now)

    def forget(self, nodes: range, now: float) -> None:
        """Nobody else will come for these planned prefixes."""
        self._unpin(self.prefix.expected.forget(nodes), now)

    def _unpin(self, nodes: list[int], now: float) -> None:
        for node in nodes:
            left = (self.prefix.group == node) & self.ledger.listed & (self.ledger.count == 0)
            pages = np.flatnonzero(left).astype(np.int32)
            if len(pages):
                self.prefix.judge(pages[np.argsort(self.prefix.depth[pages], kind="stable")], now)

    def give_way(self, slot: int, now: float) -> None:
        """A running sequence gives everything back and will come again."""
        if self.reuse:
            self.prefix.expected.leave(self._path(slot))
        self.release(slot, now)

    def soon(self, running: int) -> int:
        """Pages to leave for ``running`` sequences: each will want its next one before long."""
        return running

    def break_pins(self, n: int) -> None:
        """``n`` pages more than are available become free, in the order in which pins break."""
        self.prefix.evict(self.ledger.cached - self.prefix.pinned + n)

    def moves(self) -> I32:
        """Copies that must be made before this step is computed, as in ``StepPlan.moves``; pages stay where
        they are."""
        return NO_MOVES

    def missing(self, slots: I32, tokens: I32) -> tuple[I64, I32]:
        """Which of ``slots`` lack pages to hold ``tokens`` slots (indices, ascending), and how many."""
        held = self.table.pages[slots]
        who = (tokens > held * self.page_size).nonzero()[0]
        if not len(who):
            return who, held[:0]
        return who, -(-tokens[who] // self.page_size) - held[who]

    def find(self, slot: int) -> list[int]:
        """Listed pages that hold the next tokens of this sequence, in order.

        The last known token is never taken from the cache: its row must be computed to go on. Only a
        sequence that stands at a page border, with all its pages listed, can go on from the index.
        """
        table = self.table
        start = int(table.computed[slot])
        if table.border[slot] == NEVER or start % self.page_size or table.scores_prompt[slot]:
            return []
        full = (min(int(table.known[slot]) - 1, int(table.shared[slot])) - start) // self.page_size
        if full <= 0:
            return []
        return self.prefix.match(int(table.node[slot]), table.ids(slot, start, start + full * self.page_size))

    def idle_among(self, pages: list[int]) -> int:
        """How many of these listed pages are available: taking them makes fewer available."""
        if not pages:
            return 0
        return int(np.count_nonzero((self.ledger.count[pages] == 0) & ~self.prefix.stays(pages)))

    def adopt(self, slot: int, pages: list[int], now: float) -> int:
        """Append listed pages to a sequence's table; returns the tokens that need no computing."""
        if not pages:
            return 0
        table = self.table
        first = int(table.pages[slot])
        found = np.array(pages, dtype=np.int32)
        self.prefix.use(found, now)
        self._widen(first + len(pages))
        self.page_table[slot, first : first + len(pages)] = found
        table.pages[slot] = first + len(pages)
        table.border[slot] = self._border(slot, first + len(pages))
        table.node[slot] = pages[-1]
        if path := self._path(slot):
            ends = range(first + 1, first + len(pages) + 1)
            self.prefix.group[found] = [node_at(path, end * self.page_size) for end in ends]
        tokens = len(pages) * self.page_size
        table.computed[slot] += tokens
        table.adopted[slot] += tokens
        return tokens

    def grow(self, slots: I32, missing: I32) -> None:
        """Give each of ``slots`` its missing pages, at least one; ``missing.sum()`` must be available."""
        total = sum(missing.tolist())
        if total > self.ledger.free:
            self.prefix.evict(total - self.ledger.free)
        held = self.table.pages[slots]
        grown = held + missing
        new = self._take(slots, held, missing, total)
        self.table.pages[slots] = grown
        self._widen(max(grown.tolist()))
        if total == len(slots):
            self.page_table[slots, held] = new
            return
        start = missing.cumsum() - missing
        column = np.arange(total) + (held - start).repeat(missing)
        self.page_table[slots.repeat(missing), column] = new

    def publish(self, slot: int, tokens: int, now: float) -> None:
        """List the pages of ``slot`` that will be full once ``tokens`` (at least its border) are computed.

        Called when the step that fills them is planned: K/V of all rows of a layer are written before any
        row reads, so another sequence may take the page in the very same step.
        """
        table, size = self.table, self.page_size
        node = int(table.node[slot])
        first, full = int(table.border[slot]) // size - 1, min(tokens, int(table.shared[slot])) // size
        path = self._path(slot)
        text = table.ids(slot, first * size, full * size).tobytes()
        for i, page in enumerate(self.page_table[slot, first:full].tolist()):
            if not self.prefix.publish(node, text[4 * size * i : 4 * size * (i + 1)], page, now):
                table.border[slot] = NEVER
                return
            self._fresh.append(page)
            if path:
                self.prefix.group[page] = node_at(path, (first + i + 1) * size)
            table.node[slot] = node = page
        table.border[slot] = self._border(slot, full)

    def _border(self, slot: int, listed: int) -> int:
        """Where the next page after ``listed`` ones would be full, or NEVER if it is not to be shared."""
        border = (listed + 1) * self.page_size
        return border if border <= self.table.shared[slot] else NEVER

    def release(self, slot: int, now: float) -> None:
        """Give back everything ``slot`` holds; its listed pages stay in the cache."""
        table = self.table
        if table.pages[slot] == 0:
            return
        pages = self.page_table[slot, : table.pages[slot]]
        table.pages[slot] = table.computed[slot] = 0
        self._begin(slot)
        idle = self.ledger.drop(pages)
        if len(idle):
            self.prefix.idle(idle, now)

    def confirm(self) -> None:
        """The step that fills the pages listed since the last call has succeeded."""
        self._fresh.clear()

    def retract(self) -> None:
        """Runs of that step have failed and are released: forget the pages that they alone were to fill.

        A page that a run which succeeded reads has been filled, for a run fails when one that it reads
        from in the same step does.
        """
        for page in reversed(self._fresh):
            idle = self.ledger.listed[page] and self.ledger.count[page] == 0
            if idle and self.prefix.children[page] == 0:
                self.prefix.forget(page)
        self._fresh.clear()

    def gather(self, slots: I32) -> tuple[I32, I32, I32]:
        """Page ids of each sequence, in order of its slots: (first, count, pages).

        Rows of the page table are copied as they stand, with slack between them, unless that were much.
        """
        count = self.table.pages[slots]
        wide = self.page_table.shape[1]
        if wide * len(slots) <= COPIED:
            first = np.arange(0, wide * len(slots), wide, dtype=np.int32)
            return first, count, self.page_table[slots].ravel()
        end = count.cumsum(dtype=np.int32)
        first = end - count
        index = (slots.astype(np.int64) * wide - first).repeat(count)
        index += np.arange(len(index))
        return first, count, self.page_table.ravel()[index]

    def mapping(self, slots: I32, end: I32) -> Mapping:
        """Pages are read where they lie."""
        return NO_MAPPING

    def check(self) -> None:
        """Raise AssertionError unless every page is accounted for."""
        self.ledger.check()
        self.prefix.check()
        table = self.table
        counted = np.zeros(self.ledger.total, dtype=np.int32)
        for slot in np.flatnonzero(table.state):
            pages = self.page_table[slot, : table.pages[slot]]
            assert len(np.unique(pages)) == len(pages), "a page twice in one table"
            assert table.pages[slot] * self.page_size >= table.computed[slot]
            if table.border[slot] != NEVER:
                listed = table.border[slot] // self.page_size - 1
                assert np.all(self.ledger.listed[pages[:listed]])
                own = ROOT - table.request(int(slot)).domain
                assert table.node[slot] == (pages[listed - 1] if listed else own)
            counted[pages] += 1
        assert np.array_equal(counted, self.ledger.count), "a page's count is its holders"

    def _take(self, slots: I32, held: I32, missing: I32, total: int) -> I32:
        """``total`` free pages, ``missing`` for each of ``slots`` after those that it has ``held``."""
        return self.ledger.take(total)

    def _widen(self, width: int) -> None:
        rows, columns = self.page_table.shape
        if width > columns:
            wider = np.zeros((rows, max(width, 2 * columns)), dtype=np.int32)
            wider[:, :columns] = self.page_table
            self.page_table = wider

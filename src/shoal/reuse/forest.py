"""The prefix forest of a job, from page hashes.

A node is a stretch of pages that exactly the same rows begin with, and that at least two requests (rows, or
copies of one row) read or write. Rows are compared page by page, all rows at once; a row leaves when nobody
shares its next page. Every node has a set of rows of its own, and two sets are disjoint or one holds the
other, so there are fewer than twice as many nodes as rows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from shoal.core.errors import InternalError
from shoal.core.policy import I32, Bools, ForestView
from shoal.reuse.hashes import PageHashes

CHUNK = 1 << 16
LARGE = 2**31 - 1
"""Numbers up to here fit four bytes."""


def forest_of(hashes: PageHashes, length: I32, answer: I32, copies: I32, blind: Bools) -> ForestView:
    """The forest of m rows.

    Args:
        hashes: of the rows' pages.
        length, answer, copies: (m,), as in ``ForestView``.
        blind: (m,), rows that read nothing from a cache (their prompt's own tokens are scored).

    Raises:
        InternalError: the hashes are of other rows.
    """
    size = hashes.page_size
    length = np.asarray(length, dtype=np.int32)
    if not np.array_equal(hashes.pages, length // size):
        raise InternalError("page hashes and lengths are not of the same rows")
    copies = np.asarray(copies, dtype=np.int32)
    node, parent, depth = _Growing(hashes, copies).grow()
    readable = np.where(blind, 0, np.maximum(length - 1, 0) // size * size).astype(np.int32)
    columns = (length, np.asarray(answer, dtype=np.int32), copies, readable, node, parent, depth * size)
    return ForestView(size, *(_frozen(column) for column in columns))


class _Growing:
    """The forest while it grows, one page deeper each time. Takes about 40 bytes a row beside the hashes."""

    def __init__(self, hashes: PageHashes, copies: I32) -> None:
        self.values = hashes.values
        self.pages = hashes.pages
        wide = np.int64 if len(self.values) > LARGE else np.int32
        self.start: npt.NDArray[Any] = np.cumsum(self.pages, dtype=wide)
        self.start -= self.pages
        self.copies = copies
        rows = len(copies)
        self.node = np.full(rows, -1, dtype=np.int32)
        # Room for as many nodes as there can be takes memory only where it is written.
        self.parent = np.empty(2 * rows, dtype=np.int32)
        self.depth = np.empty(2 * rows, dtype=np.int32)
        self.rows = np.empty(2 * rows, dtype=np.int32)
        self.nodes = 0

    def grow(self) -> tuple[I32, I32, I32]:
        """(deepest node of each row, parent of each node, pages down to its end)."""
        alive = np.flatnonzero(self.pages).astype(np.int32)
        deep = 0
        while len(alive):
            alive = self._deeper(alive, deep)
            deep += 1
            alive = alive[self.pages[alive] > deep]
        n = self.nodes
        return self.node, self.parent[:n].copy(), self.depth[:n].copy()

    def _deeper(self, alive: I32, deep: int) -> I32:
        """Take in page ``deep`` of the rows ``alive``, which all have it; returns those that share it."""
        alive, begins = self._sharing(alive, deep)
        if not len(alive):
            return alive
        first = np.flatnonzero(begins)
        rows = np.diff(first, append=len(alive))
        group = self.node[alive[first]]
        fresh = (group < 0) | (rows != self.rows[group])
        new = self.nodes + np.arange(np.count_nonzero(fresh), dtype=np.int32)
        self.nodes += len(new)
        self.parent[new] = group[fresh]
        self.rows[new] = rows[fresh]
        group[fresh] = new
        self.depth[group] = deep + 1
        self.node[alive] = group.repeat(rows)
        return alive

    def _sharing(self, alive: I32, deep: int) -> tuple[I32, Bools]:
        """Of these rows those whose page ``deep`` others have too, or copies of their own, sorted by it; and
        where a new page begins among them."""
        key = self.values[self.start[alive] + deep]
        order = np.argsort(key)
        begins = np.ones(len(alive) + 1, dtype=np.bool_)
        for at in range(1, len(order), CHUNK):
            sorted_keys = key[order[at - 1 : at + CHUNK]]
            begins[at : at + len(sorted_keys) - 1] = sorted_keys[1:] != sorted_keys[:-1]
        del key
        alive = alive[order]
        del order
        shared = ~(begins[:-1] & begins[1:]) | (self.copies[alive] > 1)
        return alive[shared], begins[:-1][shared]


def _frozen(column: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    column = column.view()
    column.flags.writeable = False
    return column

"""The prefix forest of a job, from page hashes.

A node is a stretch of pages that exactly the same rows begin with, and that at least two requests (rows, or
copies of one row) read or write. Rows are compared page by page, all rows at once; a row leaves when nobody
shares its next page. Every node has a set of rows of its own, and two sets are disjoint or one holds the
other, so there are fewer than twice as many nodes as rows.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from shoal.core.errors import InternalError
from shoal.core.policy import I32, I64, Bools, ForestView
from shoal.reuse.hashes import PageHashes


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
    """The forest while it grows, one page deeper each time."""

    def __init__(self, hashes: PageHashes, copies: I32) -> None:
        self.values = hashes.values
        self.pages = hashes.pages
        self.start: I64 = np.cumsum(self.pages, dtype=np.int64) - self.pages
        self.copies = copies
        rows = len(copies)
        self.node = np.full(rows, -1, dtype=np.int32)
        self.parent = np.full(2 * rows, -1, dtype=np.int32)
        self.depth = np.zeros(2 * rows, dtype=np.int32)
        self.rows = np.zeros(2 * rows, dtype=np.int32)
        self.nodes = 0

    def grow(self) -> tuple[I32, I32, I32]:
        """(deepest node of each row, parent of each node, pages down to its end)."""
        alive = np.flatnonzero(self.pages)
        deep = 0
        while len(alive):
            alive = self._deeper(alive, deep)
            deep += 1
            alive = alive[self.pages[alive] > deep]
        n = self.nodes
        return self.node, self.parent[:n].copy(), self.depth[:n].copy()

    def _deeper(self, alive: I64, deep: int) -> I64:
        """Take in page ``deep`` of the rows ``alive``, which all have it; returns those that share it."""
        key = self.values[self.start[alive] + deep]
        order = np.argsort(key)
        alive, key = alive[order], key[order]
        first = np.flatnonzero(np.concatenate([[True], key[1:] != key[:-1]]))
        rows = np.diff(first, append=len(alive))
        shared = np.add.reduceat(self.copies[alive], first, dtype=np.int64) > 1
        first, rows, alive = first[shared], rows[shared], alive[shared.repeat(rows)]
        if not len(alive):
            return alive
        group = self.node[alive[np.cumsum(rows) - rows]]
        fresh = (group < 0) | (rows != self.rows[group])
        new = self.nodes + np.arange(np.count_nonzero(fresh), dtype=np.int32)
        self.nodes += len(new)
        self.parent[new] = group[fresh]
        self.rows[new] = rows[fresh]
        group[fresh] = new
        self.depth[group] = deep + 1
        self.node[alive] = group.repeat(rows)
        return alive


def _frozen(column: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    column = column.view()
    column.flags.writeable = False
    return column

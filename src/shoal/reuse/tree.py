"""Sums, minima and orders over a forest given by its parents: level by level, without recursion."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from shoal.core.policy import F64, I32, I64, Bools, ForestView


class Tree:
    """A forest with its nodes sorted by level.

    Attributes:
        levels: node numbers by their number of ancestors, roots first.
        own: (k,), int64, tokens from a node's parent's end to its own.
    """

    def __init__(self, forest: ForestView) -> None:
        self.forest = forest
        self.parent = forest.parent
        level = np.zeros(len(self.parent), dtype=np.int32)
        nodes, above = np.arange(len(self.parent)), self.parent
        while len(nodes):
            inner = above >= 0
            nodes, above = nodes[inner], above[inner]
            level[nodes] += 1
            above = self.parent[above]
        order = np.argsort(level, kind="stable")
        self.levels: list[I64] = np.split(order, np.cumsum(np.bincount(level))[:-1]) if len(order) else []
        depth = forest.depth.astype(np.int64)
        self.own: I64 = depth - np.where(self.parent >= 0, depth[self.parent], 0) if len(order) else depth

    def above(self, values: I32, none: int) -> I32:
        """What ``values`` (k,) says of the parent of each row and node, shape (m + k,); ``none`` without."""
        padded = np.append(values, np.int32(none))
        return padded[self.parents]

    @property
    def parents(self) -> I32:
        """Rows, then nodes: the node that each hangs on, shape (m + k,)."""
        return np.concatenate([self.forest.node, self.parent])

    def at(self, rows: npt.NDArray[Any]) -> I64:
        """Sum of integers over the rows that hang on each node itself: (m,) to (k,), int64."""
        held = self.forest.node >= 0
        sums = np.zeros(len(self.parent), dtype=np.int64)
        np.add.at(sums, self.forest.node[held], rows[held].astype(np.int64))
        return sums

    def rolled_up(self, values: I64, combine: np.ufunc = np.add) -> I64:
        """Each node's value combined with those of all nodes below it, shape (k,)."""
        whole = values.copy()
        for nodes in reversed(self.levels[1:]):
            combine.at(whole, self.parent[nodes], whole[nodes])
        return whole

    def nearest(self, opened: Bools) -> I64:
        """The deepest opened node at or above each node, -1 for none, shape (k,)."""
        found = np.where(opened, np.arange(len(opened)), -1)
        for nodes in self.levels[1:]:
            found[nodes] = np.where(opened[nodes], nodes, found[self.parent[nodes]])
        return found

    def least_below(self, rows: npt.NDArray[Any]) -> I64:
        """The least of integers (m,) among the rows that begin with each node, shape (k,)."""
        held = self.forest.node >= 0
        least = np.full(len(self.parent), np.iinfo(np.int64).max)
        np.minimum.at(least, self.forest.node[held], rows[held].astype(np.int64))
        return self.rolled_up(least, np.minimum)

    def depth_first(self, keys: list[I32 | I64 | F64]) -> I64:
        """Row numbers in depth-first order, (m,), int64.

        Args:
            keys: each (m + k,), of rows and then of nodes: what stands under one node, or at the top, is
                sorted by the first of them, ties by the next, and at last by who comes first in the job.
        """
        m = len(self.forest.node)
        rows_come = np.arange(m, dtype=np.int32)
        comes = np.concatenate([rows_come, self.least_below(rows_come).astype(np.int32)])
        order = np.lexsort((comes, *reversed(keys), self.parents))
        # A million rows are planned in about 60 bytes each only if nothing is kept that is done with.
        del comes
        keys.clear()
        size = np.concatenate([np.ones(m, dtype=np.int32), self._rows_below()])[order]
        begin = np.cumsum(size, dtype=np.int64)
        begin -= size
        first = np.flatnonzero(np.diff(self.parents[order], prepend=-2))
        begin -= begin[first].repeat(np.diff(first, append=len(order)))
        place = np.empty(len(order), dtype=np.int64)
        place[order] = begin
        del order, begin, size
        rows, nodes = place[:m], np.append(place[m:], 0)
        for level in self.levels[1:]:
            nodes[level] += nodes[self.parent[level]]
        rows += nodes[self.forest.node]
        result = np.empty(m, dtype=np.int64)
        result[rows] = rows_come
        return result

    def _rows_below(self) -> I32:
        """How many rows begin with each node, shape (k,), int32."""
        return self.rolled_up(self.at(np.ones(len(self.forest.node), dtype=np.int32))).astype(np.int32)

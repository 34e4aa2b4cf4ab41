"""How many requests still to come begin with each planned prefix."""

from __future__ import annotations

import numpy as np

from shoal.core.request import SharedPrefix
from shoal.memory.ledger import I32

UNPLANNED = -1


class Expected:
    """Counts by the plan's node numbers. A request counts until it is let in, and again once it lost its
    pages."""

    def __init__(self) -> None:
        self._to_come: dict[int, int] = {}
        self._announced: dict[int, int] = {}

    def announce(self, path: tuple[SharedPrefix, ...]) -> None:
        """A request of the plan has arrived; with the first of a prefix all its members are expected."""
        for prefix in path:
            left = self._announced.get(prefix.node, prefix.members)
            if left == prefix.members:
                self._to_come[prefix.node] = self._to_come.get(prefix.node, 0) + prefix.members
            if left > 1:
                self._announced[prefix.node] = left - 1
            else:
                self._announced.pop(prefix.node, None)

    def enter(self, path: tuple[SharedPrefix, ...]) -> list[int]:
        """One of them is let in, or will never be; returns the nodes that nobody else will come for."""
        over = []
        for prefix in path:
            left = self._to_come.get(prefix.node, 0) - 1
            if left > 0:
                self._to_come[prefix.node] = left
            else:
                self._to_come.pop(prefix.node, None)
                over.append(prefix.node)
        return over

    def leave(self, path: tuple[SharedPrefix, ...]) -> None:
        """One gave its pages back and will come again."""
        for prefix in path:
            self._to_come[prefix.node] = self._to_come.get(prefix.node, 0) + 1

    def forget(self, nodes: range) -> list[int]:
        """Nobody else will come for these; returns those that somebody was expected for."""
        left = [node for node in self._to_come if node in nodes]
        for node in left:
            del self._to_come[node]
        for node in [node for node in self._announced if node in nodes]:
            del self._announced[node]
        return left

    def wanted(self, nodes: I32) -> I32:
        """For each node (or UNPLANNED) the requests to come, shape as ``nodes``, int32."""
        if not self._to_come:
            return np.zeros(len(nodes), dtype=np.int32)
        return np.array([self._to_come.get(node, 0) for node in nodes.tolist()], dtype=np.int32)


def node_at(path: tuple[SharedPrefix, ...], tokens: int) -> int:
    """The planned prefix that a page ending after ``tokens`` belongs to: the shortest that covers it."""
    for prefix in path:
        if tokens <= prefix.tokens:
            return prefix.node
    return UNPLANNED

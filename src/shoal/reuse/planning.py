"""A job's plan: who shares what, and exactly how many prompt tokens will be computed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from shoal.core.errors import InternalError
from shoal.core.policy import I32, I64, ForestView, Grouping, Reuse
from shoal.core.request import SharedPrefix
from shoal.reuse.tree import Tree


class Group(NamedTuple):
    """A shared prefix, for people.

    tokens: from the start of the prompt. members: requests. saved: prompt tokens that they do not compute
    because of it, or, where prefixes are nested, because of its own part of it. example: the first row of the
    job that begins with it.
    """

    node: int
    tokens: int
    members: int
    saved: int
    example: int


@dataclass(frozen=True, slots=True)
class JobPlan:
    """What each of m rows shares, derived on demand from columns.

    Attributes:
        order: (m,), int64, rows in the order in which they are to run.
        nested: whether rows share at any depth, or within their one group only.
        pinned: all that is shared is planned, so that nothing else in the cache can displace it. Otherwise
            ``total`` holds as long as the cache keeps everything.
        node: (m,), int32, the deepest opened node that a row begins with, -1 for none.
        above: (k,), int32, the next opened node above a node, -1 for none.
        depth, members: (k,), int32, tokens; requests that share it.
        computed: (m,), int32, prompt tokens that the first request of a row computes.
        total: prompt tokens computed in all; ``tokens``: without any sharing.
        largest: shared prefixes that save most, first the best.
    """

    order: I64
    nested: bool
    pinned: bool
    node: I32
    above: I32
    depth: I32
    members: I32
    computed: I32
    total: int
    tokens: int
    largest: tuple[Group, ...]
    first_node: int

    @property
    def saved(self) -> int:
        """Prompt tokens that need no computing."""
        return self.tokens - self.total

    def domain(self, row: int) -> int:
        """The row's ``Request.domain``."""
        return 0 if self.nested else self.first_node + int(self.node[row]) + 1 if self.node[row] >= 0 else 0

    def shared(self, row: int) -> int | None:
        """The row's ``Request.shared``: the tokens of its group's prefix, 0 without a group."""
        if self.nested:
            return None
        node = self.node[row]
        return int(self.depth[node]) if node >= 0 else 0

    def path(self, row: int) -> tuple[SharedPrefix, ...]:
        """The row's ``Request.path``."""
        found: list[SharedPrefix] = []
        node = int(self.node[row])
        while node >= 0:
            found.append(SharedPrefix(self.first_node + node, int(self.depth[node]), int(self.members[node])))
            node = int(self.above[node]) if self.nested else -1
        return tuple(reversed(found))


def make_plan(policy: Reuse, forest: ForestView, first_node: int = 0, most_groups: int = 20) -> JobPlan:
    """Ask the policy, and count what its answer costs.

    The count assumes that nobody is preempted and that what is shared stays until the last member has it.

    Args:
        first_node: added to node numbers, so that those of several plans of one job differ.
        most_groups: length of ``JobPlan.largest``.

    Raises:
        InternalError: the policy's answer is no order of the rows, or opens other nodes than there are.
    """
    grouping = policy.plan(forest)
    _check(policy, forest, grouping)
    tree = Tree(forest)
    requests = tree.at(forest.copies)
    nearest = tree.nearest(grouping.opened)
    node = np.append(nearest, -1).astype(np.int32)[forest.node]
    if grouping.nested:
        members = tree.rolled_up(requests)
        shared, prefix = members > 1, tree.own
    else:
        members = _gathered(requests, nearest)
        shared, prefix = grouping.opened & (members > 1), forest.depth.astype(np.int64)
    computed, again = _computed(tree, grouping, node)
    several = np.flatnonzero(forest.copies > 1)
    more = (forest.copies[several] - 1).astype(np.int64)
    requested = int(forest.length.sum(dtype=np.int64)) + int((more * forest.length[several]).sum())
    return JobPlan(
        order=grouping.order,
        nested=grouping.nested,
        pinned=not grouping.nested or bool(grouping.opened.all()),
        node=node,
        above=np.append(nearest, -1)[forest.parent].astype(np.int32),
        depth=forest.depth,
        members=members.astype(np.int32),
        computed=computed,
        total=int(computed.sum(dtype=np.int64)) + int((more * again[several]).sum()),
        tokens=requested,
        largest=_largest(tree, node, members, np.where(shared, prefix, 0), most_groups, first_node),
        first_node=first_node,
    )


def _check(policy: Reuse, forest: ForestView, grouping: Grouping) -> None:
    m, k = len(forest.length), len(forest.parent)
    seen = np.zeros(m, dtype=bool)
    if grouping.order.shape == (m,) and (not m or 0 <= grouping.order.min() <= grouping.order.max() < m):
        seen[grouping.order] = True
    if not seen.all() or grouping.opened.shape != (k,):
        raise InternalError(
            f"{policy!r} answered no order of {m} rows and {k} nodes", remedy="correct the policy"
        )


def _gathered(values: I64, group: I64) -> I64:
    """Values of nodes, added up at the opened node that each belongs to."""
    sums = np.zeros(len(values), dtype=np.int64)
    np.add.at(sums, group[group >= 0], values[group >= 0])
    return sums


def _computed(tree: Tree, grouping: Grouping, node: I32) -> tuple[I32, I32]:
    """Prompt tokens that each row's first request computes, and each further one: (m,), (m,).

    A row reads what earlier rows of its domain have begun with. Of the nodes above a row those that it is the
    first to touch are the deepest ones, so it reads as far as the parent of the highest of them.
    """
    forest = tree.forest
    length, readable = forest.length, forest.readable
    rank = np.empty(len(length), dtype=np.int32)
    rank[grouping.order] = np.arange(len(length), dtype=np.int32)
    depth = np.append(forest.depth, np.int32(0))
    if grouping.nested:
        node = forest.node
        first = tree.least_below(rank)
        before = np.append(first, -1)[tree.parent]
        top = np.flatnonzero(first != before)
        reach = depth[tree.parent[top]]
    else:
        first = np.full(len(depth), len(rank), dtype=np.int64)
        np.minimum.at(first, node, rank)
        first = first[:-1]
        top = np.flatnonzero(first < len(rank))
        reach = np.zeros(len(top), dtype=np.int32)
    again = length - np.minimum(readable, depth[node])
    computed = again.copy()
    row = grouping.order[first[top]]
    computed[row] = length[row] - np.minimum(readable[row], reach)
    return computed, again


def _largest(
    tree: Tree, node: I32, members: I64, prefix: I64, most: int, first_node: int
) -> tuple[Group, ...]:
    saved = (members - 1) * prefix
    best = np.argsort(-saved, kind="stable")[:most]
    example = tree.least_below(np.arange(len(node), dtype=np.int32))
    return tuple(
        Group(first_node + v, int(tree.forest.depth[v]), int(members[v]), int(saved[v]), int(example[v]))
        for v in best[saved[best] > 0].tolist()
    )

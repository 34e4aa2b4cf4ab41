"""One prefix a request: which nodes of a forest to open when a request may reuse exactly one of them.

Opening node v for m requests computes its D(v) tokens (from the start of the prompt) once and saves the other
m - 1 from computing them. BatchLLM (arXiv 2412.03594) flattens a forest so by a rule of thumb,
``published``. ``flatten`` finds the best choice: with A(v, d) the most that the requests below v can save
when the nearest opened node above v ends after d tokens,

    A(row, d) = copies * min(d, readable)
    A(v, d)   = max( sum of A(c, d) over the children and rows c of v,
                     sum of A(c, D(v)) - D(v) )                            saved in all: sum of A(root, 0)

where a node is left closed when both are equal. A node has a few pairs (v, d), one for each node above it.
"""

from __future__ import annotations

import numpy as np

from shoal.core.policy import I64, Bools, ForestView
from shoal.reuse.tree import Tree


def flatten(forest: ForestView) -> tuple[Bools, int]:
    """The best nodes to open, (k,), and the tokens that they save.

    A prompt that ends with a node computes the node's last page in any case; when it runs first in its group,
    opening the node costs only what it could have read itself. The same holds for a row on the node that
    reads nothing; further down such a row counts for nothing, and the saving is then stated too low.
    """
    tree = Tree(forest)
    ends = _ends(tree)
    full, last, price = _credits(tree)
    below = [np.zeros((len(nodes), i + 2), dtype=np.int64) for i, nodes in enumerate(tree.levels)]
    opens: list[Bools] = []
    place = np.zeros(len(forest.parent), dtype=np.int64)
    for nodes in tree.levels:
        place[nodes] = np.arange(len(nodes))
    for i in range(len(tree.levels) - 1, -1, -1):
        nodes, sums = tree.levels[i], below[i]
        sums[:, :-1] += full[nodes][:, None] * ends[i][:, :-1]
        sums[:, -1] += last[nodes]
        closed, opened = sums[:, :-1], (sums[:, -1] - price[nodes])[:, None]
        opens.insert(0, opened > closed)
        best = np.maximum(closed, opened)
        if i:
            np.add.at(below[i - 1], place[tree.parent[nodes]], best)
    saved = int(best.sum()) if len(forest.parent) else 0
    return _chosen(tree, opens), saved


def _ends(tree: Tree) -> list[I64]:
    """For the nodes of each level: 0, and the depths of all nodes from the root down to themselves."""
    ends: list[I64] = []
    place = np.zeros(len(tree.parent), dtype=np.int64)
    for nodes in tree.levels:
        own = tree.forest.depth[nodes].astype(np.int64)[:, None]
        above = ends[-1][place[tree.parent[nodes]]] if ends else np.zeros_like(own)
        ends.append(np.concatenate([above, own], axis=1))
        place[nodes] = np.arange(len(nodes))
    return ends


def _credits(tree: Tree) -> tuple[I64, I64, I64]:
    """For each node: requests on it that can read all that lies above it, tokens of it that those on it can
    read together, and the tokens that opening it costs."""
    forest = tree.forest
    depth = np.append(forest.depth.astype(np.int64), 0)
    above = np.append(depth[tree.parent], 0)[forest.node]
    credit = np.minimum(forest.readable, depth[forest.node])
    price = depth.copy()
    np.minimum.at(price, forest.node, credit)
    return tree.at(forest.copies * (credit >= above)), tree.at(forest.copies * credit), price[:-1]


def _chosen(tree: Tree, opens: list[Bools]) -> Bools:
    """From the roots down: what is open decides what is best below it."""
    opened = np.zeros(len(tree.parent), dtype=bool)
    state = np.zeros(len(tree.parent), dtype=np.int64)
    for i, nodes in enumerate(tree.levels):
        above = tree.parent[nodes]
        if i:
            state[nodes] = np.where(opened[above], i, state[above])
        opened[nodes] = opens[i][np.arange(len(nodes)), state[nodes]]
    return opened


def published(forest: ForestView) -> Bools:
    """The published rule: bottom-up, a child g of c becomes a group of its own, beside c, when

        (requests of g - 1) * (tokens of g beyond c) > tokens of c

    where the tokens of c are what it costs to compute c again for g; the others stay with c. Groups of one
    request are dissolved. A plain walk over the nodes, for comparison.
    """
    tree = Tree(forest)
    direct = tree.at(forest.copies).tolist()
    own = tree.own.tolist()
    groups: list[list[tuple[int, int, int]]] = [[] for _ in own]
    top: list[tuple[int, int, int]] = []
    for c in range(len(own) - 1, -1, -1):
        stays, forked = direct[c], []
        for node, tokens, requests in groups[c]:
            if (requests - 1) * tokens > own[c]:
                forked.append((node, own[c] + tokens, requests))
            else:
                stays += requests
        home = groups[int(forest.parent[c])] if forest.parent[c] >= 0 else top
        home += [*forked, (c, own[c], stays)]
    opened = np.zeros(len(own), dtype=bool)
    opened[[node for node, _, requests in top if requests > 1]] = True
    return opened


def saving(forest: ForestView, opened: Bools) -> int:
    """Tokens that one level with these nodes open saves, the row that reads least of a group going first."""
    tree = Tree(forest)
    group = np.append(tree.nearest(opened), -1)[forest.node]
    depth = np.append(forest.depth.astype(np.int64), 0)
    credit = np.minimum(forest.readable, depth[group])
    least = np.full(len(depth), np.iinfo(np.int64).max)
    np.minimum.at(least, group, credit)
    used = np.unique(group)
    return int((credit * forest.copies).sum() - least[used].sum())


def all_levels(forest: ForestView) -> int:
    """Tokens saved when every node is computed once for all requests that begin with it: the most that any
    plan can save.

    Of the requests that begin with a page those that cannot read it compute it; if all can, one does.
    """
    tree = Tree(forest)
    requests = tree.rolled_up(tree.at(forest.copies))
    blind = tree.rolled_up(tree.at(forest.copies * (forest.readable == 0)))
    depth = np.append(forest.depth, 0)
    ends = tree.at(forest.copies * ((forest.readable < depth[forest.node]) & (forest.readable > 0)))
    page = forest.page_size
    whole = (requests - np.maximum(blind, 1)) * (tree.own - page)
    final = (requests - np.maximum(blind + ends, 1)) * page
    return int((whole + final).sum())

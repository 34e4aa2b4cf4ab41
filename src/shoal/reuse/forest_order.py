"""The whole forest: every shared prefix is computed once, at every depth."""

from __future__ import annotations

import numpy as np

from shoal.core.policy import F64, I32, I64, ForestView, Grouping, Reuse
from shoal.reuse.tree import Tree


class ForestOrder(Reuse):
    """Rows run depth first and share every prefix that two requests have in common, so that no order and no
    other grouping computes fewer prompt tokens.

    At every level those go first that give the most tokens for the prompt tokens they compute

        R = sum of answers / (tokens of the prefix + sum of the rows' own tokens)

    (BatchLLM, arXiv 2412.03594, which orders its groups so): their long answers then run beside the prompts
    of those behind, instead of alone at the end. A row that computes shared pages in any case, because it
    may not read them, goes before those that can read them then.

    Args:
        reorder: sort by R; otherwise groups stand in the order of their first rows.
    """

    def __init__(self, reorder: bool = True) -> None:
        self.reorder = reorder

    def plan(self, forest: ForestView) -> Grouping:
        tree = Tree(forest)
        keys: list[I32 | I64 | F64] = [_reads(tree)]
        if self.reorder:
            keys.append(-_ratio(tree))
        opened = np.ones(len(forest.parent), dtype=bool)
        return Grouping(tree.depth_first(keys), opened, nested=True)


def _reads(tree: Tree) -> I32:
    """For rows and nodes: what can be read at most of the prefix that it hangs on, by the row in it that can
    read least."""
    readable = tree.forest.readable
    least = np.concatenate([readable, tree.least_below(readable).astype(np.int32)])
    return np.minimum(least, tree.above(tree.forest.depth, 0))


def _ratio(tree: Tree) -> F64:
    """R of each row and each node, shape (m + k,), float64."""
    forest = tree.forest
    distinct = forest.length - tree.above(forest.depth, 0)[: len(forest.length)]
    prompts = np.concatenate([distinct, tree.rolled_up(tree.own + tree.at(distinct))])
    del distinct
    answers = forest.answer.astype(np.int64) * forest.copies
    ratio: F64 = np.concatenate([answers, tree.rolled_up(tree.at(answers))]).astype(np.float64)
    del answers
    ratio /= np.maximum(prompts, 1)
    return ratio

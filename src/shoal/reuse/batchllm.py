"""BatchLLM: prefix groups of one level, run back to back, in batches sized by memory."""

from __future__ import annotations

from typing import Annotated

import numpy as np

from shoal.core.policy import (
    F64,
    I64,
    Admission,
    Budget,
    ForestView,
    Grouping,
    Load,
    Newcomer,
    PageView,
    Range,
    Retention,
    Reuse,
)
from shoal.reuse.one_level import flatten
from shoal.reuse.tree import Tree


class BatchLLM(Reuse, Admission, Retention):
    """Global prefix sharing and throughput-oriented token batching (Zheng et al., MLSys 2026, arXiv
    2412.03594).

    *Reuse*: every request shares at most one prefix with its group. The groups that save most are found
    exactly (``one_level.flatten``) and run one after the other, those first that give the most tokens for
    the prompt tokens that they compute, R = sum of answers / (prefix + sum of the rows' own tokens); a row
    without a group is one with an empty prefix. Wrong guesses of answers harm the order alone.

    *Retention*: a group's prefix stays until its last member has it, and nothing else stays at all.

    *Admission*: every running sequence with one row to do gets it; prompts fill what is left of ``rows``. A
    newcomer enters while the pages in use, those still promised to running sequences, and its own stay below
    a share of the pool. No number of sequences is a limit here; the engine's ``max_num_seqs`` is one, so
    raise it until memory decides.

    Args:
        rows: most rows in a step.
        threshold: share of the pages that may be in use or promised when somebody enters; 1 with reserve 0
            leaves the question to whether the known tokens fit.
        reserve: share of the pages that answers may still come to need which counts as promised. Less lets
            more sequences run, at the risk that some lose their pages and are computed again.
        reorder: sort groups by R; otherwise they stand in the order of their first rows.
    """

    def __init__(
        self,
        rows: Annotated[int, Range(1, 1 << 20, scale="log")] = 2048,
        threshold: Annotated[float, Range(0.0, 1.0)] = 0.95,
        reserve: Annotated[float, Range(0.0, 1.0)] = 1.0,
        reorder: bool = True,
    ) -> None:
        self.rows = rows
        self.threshold = threshold
        self.reserve = reserve
        self.reorder = reorder

    def plan(self, forest: ForestView) -> Grouping:
        opened, _ = flatten(forest)
        rows = np.arange(len(forest.length))
        node = np.append(Tree(forest).nearest(opened), -1)[forest.node]
        prefix = np.append(forest.depth, 0)[node]
        # A row alone is a group: numbered after the nodes.
        group = np.where(node >= 0, node, len(opened) + rows)
        first = np.full(len(opened) + len(rows), len(rows))
        np.minimum.at(first, group, rows)
        keys: list[I64 | F64] = [first[group]]
        if self.reorder:
            keys.append(-_ratio(forest, group, prefix, len(first)))
        # Who cannot read all of the prefix computes it anyway, for those who can.
        order = np.lexsort((rows, np.minimum(forest.readable, prefix), *keys))
        return Grouping(order, opened, nested=False)

    def budget(self, load: Load) -> Budget:
        rows = max(self.rows, load.singles)
        return Budget(rows=rows, singles=load.singles, chunk=rows)

    def enters(self, load: Load, newcomer: Newcomer) -> bool:
        used = load.total_pages - load.free_pages + newcomer.pages
        promised = self.reserve * (load.growth + newcomer.growth)
        return used + promised <= self.threshold * load.total_pages

    def worth(self, view: PageView) -> F64:
        return np.where(view.wanted > 0, np.inf, -np.inf)


def _ratio(forest: ForestView, group: I64, prefix: I64, groups: int) -> F64:
    """R of each row's group, shape (m,), float64."""
    copies = forest.copies.astype(np.int64)
    answers = np.bincount(group, forest.answer * copies, minlength=groups)
    own = np.bincount(group, (forest.length - prefix) * copies, minlength=groups)
    shared = np.zeros(groups)
    shared[group] = prefix
    ratio: F64 = answers[group] / np.maximum(shared + own, 1)[group]
    return ratio

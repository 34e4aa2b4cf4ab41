"""Equal beginnings side by side, the rest left to the cache."""

from __future__ import annotations

import numpy as np

from shoal.core.policy import ForestView, Grouping, Reuse
from shoal.reuse.tree import Tree


class SortedPrompts(Reuse):
    """Rows run as if their prompts were sorted: those with equal beginnings together, at every depth, groups
    in the order of their first rows. Nothing is pinned.
    """

    def plan(self, forest: ForestView) -> Grouping:
        opened = np.zeros(len(forest.parent), dtype=bool)
        return Grouping(Tree(forest).depth_first([]), opened, nested=True)

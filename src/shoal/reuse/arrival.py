"""Rows as they come."""

from __future__ import annotations

import numpy as np

from shoal.core.policy import ForestView, Grouping, Reuse


class Arrival(Reuse):
    """Rows run in the order of the file; what the cache happens to keep is shared, nothing is planned."""

    def plan(self, forest: ForestView) -> Grouping:
        opened = np.zeros(len(forest.parent), dtype=bool)
        return Grouping(np.arange(len(forest.length)), opened, nested=True)

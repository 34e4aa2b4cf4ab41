"""Least recently used goes first."""

from __future__ import annotations

from shoal.core.policy import F64, PageView, Retention


class LRU(Retention):
    """The page that was read longest ago goes first (ties: the deepest)."""

    def worth(self, view: PageView) -> F64:
        return view.last_used

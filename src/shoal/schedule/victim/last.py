"""The last in order yields."""

from __future__ import annotations

from shoal.core.policy import SequenceView, Victim


class Last(Victim):
    """Whoever would be served last gives its pages back, so those who came first always get on."""

    def choose(self, candidates: SequenceView) -> int:
        return len(candidates) - 1

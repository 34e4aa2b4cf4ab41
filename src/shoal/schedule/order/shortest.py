"""Shortest known work first."""

from __future__ import annotations

import numpy as np

from shoal.core.policy import F64, Order, SequenceView


class Shortest(Order):
    """Fewest tokens first: prompt plus the most that may be produced.

    Lowers the mean waiting time (Smith 1956, shortest processing time first) and lets long sequences
    wait for as long as shorter ones arrive: for jobs, not for open traffic.
    """

    def keys(self, view: SequenceView) -> F64:
        return view.limit.astype(np.float64)

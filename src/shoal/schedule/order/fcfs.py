"""First come, first served."""

from __future__ import annotations

import numpy as np

from shoal.core.policy import F64, Order, SequenceView


class FCFS(Order):
    """In order of arrival. The fair default, and the one under which nobody starves."""

    def keys(self, view: SequenceView) -> F64:
        return view.handle.astype(np.float64)

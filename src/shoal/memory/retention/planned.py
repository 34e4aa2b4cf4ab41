"""What a job's plan still wants stays; of the rest the least recently used goes first."""

from __future__ import annotations

import numpy as np

from shoal.core.policy import F64, PageView, Retention


class Planned(Retention):
    """Pages that requests to come begin with are pinned until the last of them has them."""

    def worth(self, view: PageView) -> F64:
        return np.where(view.wanted > 0, np.inf, view.last_used)

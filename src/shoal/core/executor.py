"""The seam between deciding and computing. The model, a cost model, or nothing at all stands behind it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from shoal.core.plan import StepPlan, StepResult
from shoal.core.request import Request


class Executor(Protocol):
    """Turns step plans into tokens.

    Attributes:
        pages: number of KV pages it holds memory for.
        page_size: slots (token positions) a page.
        vocabulary: ids run from 0 to vocabulary - 1.
        invariant: whether a row's value is the same bits in any company.
    """

    pages: int
    page_size: int
    vocabulary: int
    invariant: bool

    def open(self, slot: int, request: Request) -> None:
        """A sequence moves into ``slot``; sampling state (penalties, grammar) starts with its request.

        Raises:
            CallerError: this request can never be computed here.
        """

    def close(self, slot: int) -> None:
        """The sequence in ``slot`` is gone."""

    def submit(self, plan: StepPlan) -> None:
        """Take a plan; a simple executor finishes it before returning."""

    def poll(self) -> Iterable[StepResult]:
        """Results that became ready since the last call."""

"""Whole prompts beside everybody's next token, with room reserved for the longest answer: Orca."""

from __future__ import annotations

from typing import Annotated

from shoal.core.policy import Admission, Budget, Load, Newcomer, Range

UNLIMITED = 1 << 30


class WholePrompt(Admission):
    """Iteration-level batching without chunks: who enters computes its whole prompt in that step, beside the
    next token of everybody who runs, so the step lasts as long as the prompt.

    A newcomer enters if the pages for its prompt and its longest answer are free beyond those that the
    running ones may still come to need; so nobody is ever preempted, and few run (Yu et al. 2022, "Orca: A
    Distributed Serving System for Transformer-Based Generative Models", OSDI'22).

    Args:
        batch: most sequences side by side; the experiments of Sarathi-Serve give Orca 8 to 16.
    """

    def __init__(self, batch: Annotated[int, Range(1, 1 << 16, scale="log")] = 16) -> None:
        self.batch = batch

    def budget(self, load: Load) -> Budget:
        return Budget(rows=UNLIMITED, singles=load.singles, chunk=UNLIMITED)

    def enters(self, load: Load, newcomer: Newcomer) -> bool:
        reserved = load.growth + newcomer.pages + newcomer.growth
        return load.running < self.batch and reserved <= load.free_pages

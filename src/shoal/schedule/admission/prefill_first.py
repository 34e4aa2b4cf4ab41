"""Prompts before everything else, whole and by themselves: vLLM as Sarathi-Serve's paper measured it."""

from __future__ import annotations

from typing import Annotated

from shoal.core.policy import Admission, Budget, Load, Newcomer, Range

UNLIMITED = 1 << 30


class PrefillFirst(Admission):
    """While a waiting prompt fits, a step computes whole prompts and nothing else; only then do the running
    sequences get their next tokens, all of them in one step.

    New prompts start as early as possible, and everybody else waits for them: the generation stall
    (Kwon et al. 2023, arXiv 2309.06180, the scheduler of that time; Agrawal et al. 2024, arXiv 2403.02310).

    Args:
        rows: most rows in a step of prompts. A prompt longer than that has a step to itself.
    """

    def __init__(self, rows: Annotated[int, Range(1, 1 << 20, scale="log")] = 2048) -> None:
        self.rows = rows

    def budget(self, load: Load) -> Budget:
        if load.waiting or load.backlog:
            return Budget(rows=UNLIMITED, singles=0, chunk=UNLIMITED)
        return Budget(rows=load.singles, singles=load.singles, chunk=1)

    def enters(self, load: Load, newcomer: Newcomer) -> bool:
        return not load.granted or load.granted + newcomer.known <= self.rows

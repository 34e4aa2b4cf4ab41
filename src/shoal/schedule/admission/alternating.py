"""Prompt chunks and next tokens in turn, never in one step: chunking alone."""

from __future__ import annotations

from typing import Annotated

import numpy as np

from shoal.core.cost import Cost
from shoal.core.events import Event, StepDone
from shoal.core.policy import Admission, Budget, Load, Range


class Alternating(Admission):
    """A step of prompt chunks, then a step of next tokens, and so on: Sarathi-Serve without hybrid batches,
    as its ablation has it (Agrawal et al. 2024, arXiv 2403.02310).

    A turn that nobody can use falls to the other kind. The last row of a prompt, where a chunk left just
    one, counts as a next token.

    Args:
        rows: most rows in a step of prompts.
    """

    next_tokens_turn: bool = False

    def __init__(self, rows: Annotated[int, Range(1, 1 << 20, scale="log")] = 512) -> None:
        self.rows = rows

    def bind(self, cost: Cost | None, rng: np.random.Generator) -> None:
        self.next_tokens_turn = False

    def observe(self, event: Event) -> None:
        if isinstance(event, StepDone):
            self.next_tokens_turn = not self.next_tokens_turn

    def budget(self, load: Load) -> Budget:
        prompts = load.backlog or load.waiting
        if prompts and not (self.next_tokens_turn and load.singles):
            return Budget(rows=self.rows, singles=0, chunk=self.rows)
        return Budget(rows=load.singles, singles=load.singles, chunk=1)

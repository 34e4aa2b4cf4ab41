"""Flover: whoever is ready joins the running batch at the next token; nobody waits for a batch to end.

Yao et al. 2023, "Flover: A Temporal Fusion Framework for Efficient Autoregressive Model Parallel Inference",
HiPC 2023, arXiv 2305.13484.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

from shoal.core.policy import Admission, Budget, Load, Newcomer, Range


class Flover(Admission):
    """One loop over all that run, one token for each in every step, at whatever depth each is; K/V of a
    sequence lies in a place of its own (layout ``slots``), and the places in use are kept side by side by
    the fewest moves. Nothing is shared between sequences.

    The published system computes prompts on a second stream beside the loop; here they are rows of its
    steps, up to ``rows`` beside the next tokens, so a sequence joins in the very step that ends its prompt.
    What joins is decided once a step.

    Args:
        joins: most newcomers a step, 0 for all that are ready. The published system takes 1, which spreads
            a burst over as many steps.
        rows: most rows of prompts in a step.
        compact: close holes that ends leave among the places (memory shuffling).
    """

    layout: ClassVar[str] = "slots"

    def __init__(
        self,
        joins: Annotated[int, Range(0, 1 << 16)] = 0,
        rows: Annotated[int, Range(1, 1 << 20, scale="log")] = 512,
        compact: bool = True,
    ) -> None:
        self.joins = joins
        self.rows = rows
        self.compact = compact

    def budget(self, load: Load) -> Budget:
        return Budget(rows=load.singles + self.rows, singles=load.singles, chunk=self.rows)

    def enters(self, load: Load, newcomer: Newcomer) -> bool:
        return not self.joins or load.entered < self.joins

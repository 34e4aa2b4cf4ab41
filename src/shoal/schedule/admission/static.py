"""A batch runs to completion before the next one begins: FasterTransformer."""

from __future__ import annotations

from typing import Annotated

from shoal.core.policy import Admission, Budget, Load, Newcomer, Range

UNLIMITED = 1 << 30


class Static(Admission):
    """Request-level batching: sequences enter together, compute their whole prompts in one step, and nobody
    joins until the last of them has its answer. As in ``WholePrompt``, room for the longest answer is
    reserved.

    Nobody's next token ever waits for a prompt, and places that became empty stay empty. (A server of
    that kind computes the empty places too; here they are left out of the step.)

    Args:
        batch: most sequences in a batch.
    """

    def __init__(self, batch: Annotated[int, Range(1, 1 << 16, scale="log")] = 16) -> None:
        self.batch = batch

    def budget(self, load: Load) -> Budget:
        return Budget(rows=UNLIMITED, singles=load.singles, chunk=UNLIMITED)

    def enters(self, load: Load, newcomer: Newcomer) -> bool:
        together = load.running == load.entered < self.batch
        return together and load.growth + newcomer.pages + newcomer.growth <= load.free_pages

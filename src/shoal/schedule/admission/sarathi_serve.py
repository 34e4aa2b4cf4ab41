"""Sarathi-Serve: everybody's next token first, then as much of the prompts as a row budget allows.

Agrawal et al. 2024, "Taming Throughput-Latency Tradeoff in LLM Inference with Sarathi-Serve", OSDI'24,
arXiv 2403.02310.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np

from shoal.core.cost import Cost, StepShape
from shoal.core.policy import Admission, Budget, Load, Range

UNMEASURED = 512
"""tau where nothing was measured: what the paper takes under its strict objectives."""
SIZES = (16, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096)
"""Candidates for tau. Multiples of the tile of a matrix product: one row more begins another tile."""
DEPTH = 1024
"""Tokens of the prompt, or of the sequence, that a candidate is priced with."""


class SarathiServe(Admission):
    """A step computes at most tau rows: one for each sequence that has just one to do, all of them in every
    step; what is left goes to prompts in chunks, first to those begun, then to newcomers in order.

    So a long prompt never makes the others wait for more than a step of tau rows, and steps that would be
    bound by reading weights carry prompt rows almost free of charge. tau comes from measured seconds:

    - with ``tbt``: the largest candidate n whose step of n prompt rows takes at most ``tbt`` seconds;
    - else, for jobs: the smallest n at which both a step of n prompt rows and a step of n next tokens reach
      ``share`` of the best rows per second that any candidate reaches;
    - without measurements: 512.

    A prompt row is priced in the middle of a prompt of 1024 tokens, so that reading the prompt's K/V again
    in every chunk, which small chunks do more often, is paid for. The paper's schedule of chunks that shrink
    as a prompt goes on is left out: the budget knows no sequence's progress.

    Args:
        rows: tau; 0 takes what measurements say.
        chunk: most rows of one sequence in a step; 0 means no limit beside tau.
        share: of the best rate, what tau has to reach.
        tbt: seconds allowed between two tokens of a sequence; 0 means no such limit.
    """

    tau: int = UNMEASURED

    def __init__(
        self,
        rows: Annotated[int, Range(0, 1 << 20, scale="log")] = 0,
        chunk: Annotated[int, Range(0, 1 << 20, scale="log")] = 0,
        share: Annotated[float, Range(0.1, 1.0)] = 0.95,
        tbt: Annotated[float, Range(0.0, 3600.0)] = 0.0,
    ) -> None:
        self.rows = rows
        self.chunk = chunk
        self.share = share
        self.tbt = tbt

    def bind(self, cost: Cost | None, rng: np.random.Generator) -> None:
        if self.rows:
            self.tau = self.rows
        elif cost is None:
            self.tau = UNMEASURED
        elif self.tbt:
            self.tau = largest_within(cost, self.tbt)
        else:
            self.tau = smallest_saturating(cost, self.share)

    def budget(self, load: Load) -> Budget:
        # Whoever enters takes at least one row, so there are never more than tau next tokens; should there
        # be, they still go first, and prompts get nothing.
        rows = max(self.tau, load.singles)
        return Budget(rows=rows, singles=load.singles, chunk=self.chunk or rows)


def largest_within(cost: Cost, seconds: float) -> int:
    """The largest candidate whose step of prompt rows takes at most ``seconds``, else the smallest."""
    within = [n for n in SIZES if cost.step(prompt_rows(n)) <= seconds]
    return max(within, default=SIZES[0])


def smallest_saturating(cost: Cost, share: float) -> int:
    """The smallest candidate at which prompt rows and next tokens both reach ``share`` of their best rate."""
    found = SIZES[0]
    for shape in (prompt_rows, next_tokens):
        rates = [n / max(cost.step(shape(n)), 1e-9) for n in SIZES]
        reached = (n for n, rate in zip(SIZES, rates) if rate >= share * max(rates))
        found = max(found, next(reached, SIZES[-1]))
    return found


def prompt_rows(count: int) -> StepShape:
    """A step with a chunk of average depth of a long prompt."""
    return StepShape(
        rows=count, runs=1, emits=0, gathered=max(count, (DEPTH + count) // 2), pairs=count * DEPTH // 2
    )


def next_tokens(count: int) -> StepShape:
    """A step with one row each of ``count`` sequences."""
    return StepShape(rows=count, runs=count, emits=count, gathered=count * DEPTH, pairs=count * DEPTH)

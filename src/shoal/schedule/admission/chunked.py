"""A fixed number of rows a step, long prompts in chunks beside everybody's next token."""

from __future__ import annotations

from typing import Annotated

from shoal.core.policy import Admission, Budget, Load, Range


class Chunked(Admission):
    """Every sequence with one row to do gets it; what is left of ``rows`` goes to longer stretches.

    Args:
        rows: most rows in a step. More rows use the matrix units better, fewer shorten the step that
            everybody waits for.
        chunk: most rows of one sequence in a step; 0 means no limit beside ``rows``.
    """

    def __init__(
        self,
        rows: Annotated[int, Range(1, 1 << 20, scale="log")] = 512,
        chunk: Annotated[int, Range(0, 1 << 20, scale="log")] = 0,
    ) -> None:
        self.rows = rows
        self.chunk = chunk

    def budget(self, load: Load) -> Budget:
        rows = max(self.rows, load.singles)
        return Budget(rows=rows, singles=load.singles, chunk=self.chunk or rows)

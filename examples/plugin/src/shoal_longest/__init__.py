"""Longest work first: an order policy for shoal that lives outside of it."""

from __future__ import annotations

from typing import Annotated

from shoal.core.policy import Order, Range, Sequence


class Longest(Order):
    """Most tokens first: prompt plus the most that may be produced.

    The classic heuristic for finishing a whole job early on machines that work side by side (Graham
    1969, longest processing time first): the short ones fill the gaps at the end.

    Args:
        bucket: lengths are compared in steps of this many tokens, so that prompts of about the same
            length keep their order of arrival.
    """

    def __init__(self, bucket: Annotated[int, Range(1, 65536, scale="log")] = 1) -> None:
        self.bucket = bucket

    def key(self, sequence: Sequence) -> float:
        return -float(sequence.limit // self.bucket)

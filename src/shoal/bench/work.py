"""The least work of a job: rows that cannot be avoided, whoever computes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

I64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Work:
    """Of n requests that share what they can.

    Attributes:
        first, last: (n,), the positions first .. last - 1 of each request are rows of its own; those before
            ``first`` are rows of another request that begins alike.
        prompt_rows: prompt tokens, each distinct prefix once.
        decode_rows: produced tokens that are fed back (all but the last of each answer).
        emitted: produced tokens, each of which takes one product with the vocabulary.
    """

    first: I64
    last: I64
    prompt_rows: int
    decode_rows: int
    emitted: int

    def pairs(self, window: int | None = None) -> int:
        """(row, visible position) pairs of attention: position p sees p + 1, or the last ``window``."""
        return int((_seen(self.last, window) - _seen(self.first, window)).sum())


def least_work(prompts: Sequence[npt.NDArray[np.integer]], outputs: Sequence[int]) -> Work:
    """Of requests with these prompts (token ids) and so many produced tokens each."""
    lengths = np.array([len(ids) for ids in prompts], dtype=np.int64)
    produced = np.array(outputs, dtype=np.int64)
    first = _known_before(prompts)
    return Work(
        first=first,
        last=lengths + produced - 1,
        prompt_rows=int((lengths - first).sum()),
        decode_rows=int((produced - 1).sum()),
        emitted=int(produced.sum()),
    )


def _known_before(prompts: Sequence[npt.NDArray[np.integer]]) -> I64:
    """How many first tokens each shares with the prompt before it in sorted order: of all distinct prefixes
    exactly those are counted by somebody else."""
    # Ids are not negative, so big-endian bytes sort as the ids do.
    keys = [np.asarray(ids).astype(">i4").tobytes() for ids in prompts]
    order = sorted(range(len(prompts)), key=keys.__getitem__)
    known = np.zeros(len(prompts), dtype=np.int64)
    for before, row in pairwise(order):
        least = min(len(prompts[before]), len(prompts[row]))
        same = prompts[before][:least] == prompts[row][:least]
        known[row] = least if same.all() else int(np.argmin(same))
    return known


def _seen(rows: I64, window: int | None) -> I64:
    """Positions that the rows 0 .. rows - 1 see together."""
    near = rows if window is None else np.minimum(rows, window)
    far = 0 if window is None else (rows - near) * window
    return near * (near + 1) // 2 + far

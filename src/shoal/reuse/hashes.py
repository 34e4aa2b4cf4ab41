"""Eight bytes a page stand for the token ids of a whole job's prompts.

The hash of a page says what the prompt holds from its start to the page's end:

    hash[j] = sum of mix(token[p], p) over positions p < (j + 1) * page_size        (mod 2**64)

so equal hashes at one depth mean equal beginnings, but for chance (about 1e-5 for 30 million pages). Only a
plan rests on them; K/V is shared by comparing the ids themselves.
"""

from __future__ import annotations

from array import array

import numpy as np
import numpy.typing as npt

from shoal.core.errors import InternalError
from shoal.core.policy import I32, I64

U64 = npt.NDArray[np.uint64]

BLOCK = 1 << 16
"""Ids hashed at a time: so that what lies between stays in the processor's cache."""


class PageHashes:
    """Hashes of all full pages of rows, in the order in which the rows are added.

    Args:
        page_size: tokens a page.
    """

    def __init__(self, page_size: int) -> None:
        self.page_size = page_size
        self._values = array("Q")
        self._pages = array("i")

    def __len__(self) -> int:
        """Rows."""
        return len(self._pages)

    @property
    def values(self) -> U64:
        """All hashes, row after row: shape (sum of pages,). Nothing can be added while this view lives."""
        return np.frombuffer(self._values, dtype=np.uint64)

    @property
    def pages(self) -> I32:
        """Full pages of each row, shape (rows,). Nothing can be added while this view lives."""
        return np.frombuffer(self._pages, dtype=np.int32)

    def add(self, ids: I32, lengths: I32) -> None:
        """More rows: ``ids`` is one after the other, shape (lengths.sum(),).

        Raises:
            InternalError: the lengths are not those of ``ids``.
        """
        end = np.cumsum(lengths, dtype=np.int64)
        if len(ids) != (end[-1] if len(end) else 0):
            raise InternalError(f"{len(ids)} ids for rows of {int(np.sum(lengths))} tokens")
        row = 0
        while row < len(end):
            start = int(end[row]) - int(lengths[row])
            stop = max(row + 1, int(np.searchsorted(end, start + BLOCK, side="right")))
            self._add_block(ids[start : int(end[stop - 1])], np.asarray(lengths[row:stop], dtype=np.int64))
            row = stop

    def _add_block(self, ids: I32, lengths: I64) -> None:
        end = np.cumsum(lengths)
        start = end - lengths
        position = np.arange(len(ids)) - start.repeat(lengths)
        total = np.zeros(len(ids) + 1, dtype=np.uint64)
        np.cumsum(_mixed(ids, position), out=total[1:])
        pages = lengths // self.page_size
        last = np.cumsum(pages)
        within = np.arange(1, int(pages.sum()) + 1) - (last - pages).repeat(pages)
        values = total[start.repeat(pages) + within * self.page_size] - total[start].repeat(pages)
        self._values.frombytes(values.tobytes())
        self._pages.frombytes(pages.astype(np.int32).tobytes())


def _mixed(ids: I32, position: I64) -> U64:
    """SplitMix64's finaliser (Steele, Lea, Flood 2014) of (token, position), shape as ``ids``."""
    x = (ids.astype(np.uint64) << np.uint64(32)) | position.astype(np.uint64)
    x += np.uint64(0x9E3779B97F4A7C15)
    x ^= x >> np.uint64(30)
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(27)
    x *= np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return x

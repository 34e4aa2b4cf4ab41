"""From spooled rows to prefix forests, without the tokenizer and without the rows in memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from shoal.core.policy import ForestView
from shoal.jobs.ending import Interrupted
from shoal.jobs.job import Stopping, Watcher
from shoal.jobs.lengths import AnswerLengths
from shoal.jobs.spool import Head, Spool
from shoal.reuse.forest import forest_of
from shoal.reuse.hashes import PageHashes

I32 = npt.NDArray[np.int32]
WINDOW_PAGES = 64 << 20
"""Most pages whose hashes are held at a time: 512 MB. A longer job is planned in windows."""


class Window(NamedTuple):
    """Rows that are planned together: their numbers in the spool, shape (m,), and their forest. bounded: how
    many of them have no better expectation of their answer than its bound."""

    rows: I32
    forest: ForestView
    bounded: int


class ForestReader:
    """Reads rows of a spool into forests.

    Args:
        page_size: tokens a page.
        shares: whether rows share K/V at all; without, forests are empty and prompts are not even looked at.
        most: pages of prompts in one window; at least one row is in each.
    """

    def __init__(
        self, lengths: AnswerLengths, page_size: int, shares: bool, most: int = WINDOW_PAGES
    ) -> None:
        self._lengths = lengths
        self._page_size = page_size
        self._shares = shares
        self._most = most

    def windows(self, spool: Spool, rows: I32, watcher: Watcher, stopping: Stopping) -> Iterator[Window]:
        """The windows of ``rows``, which ascend.

        Raises:
            OperatorError: the spool cannot be read.
            Interrupted: asked to stop.
        """
        filling = _Filling(self._lengths, self._page_size, self._shares, len(rows))
        first = end = 0
        for heads in spool.heads(rows):
            if stopping():
                raise Interrupted
            watcher.planning(end, len(rows))
            while heads:
                count = filling.fitting(heads, self._most)
                filling.take(heads[:count])
                heads, end = heads[count:], end + count
                if heads:
                    yield Window(rows[first:end], *filling.close())
                    filling = _Filling(self._lengths, self._page_size, self._shares, len(rows) - end)
                    first = end
        yield Window(rows[first:end], *filling.close())


class _Filling:
    """A window while rows are added to it, of which there may be ``room``."""

    def __init__(self, lengths: AnswerLengths, page_size: int, shares: bool, room: int) -> None:
        self._lengths = lengths
        self._page_size = page_size
        self._shares = shares
        self._hashes = PageHashes(page_size)
        self._pages = 0
        self._rows = 0
        self._bounded = 0
        self._length = np.zeros(room, dtype=np.int32)
        self._answer = np.zeros(room, dtype=np.int32)
        self._copies = np.zeros(room, dtype=np.int32)
        self._blind = np.zeros(room, dtype=np.bool_)

    def fitting(self, heads: list[Head], most: int) -> int:
        """How many of these rows may still be added, so that the window keeps to ``most`` pages."""
        if not self._shares:
            return len(heads)
        pages = np.array([len(head.ids) // (4 * self._page_size) for head in heads], dtype=np.int64)
        count = int(np.searchsorted(pages.cumsum(), most - self._pages, side="right"))
        return max(count, 0 if self._rows else 1)

    def take(self, heads: list[Head]) -> None:
        if not heads:
            return
        place = slice(self._rows, self._rows + len(heads))
        self._rows += len(heads)
        expected = [self._lengths.of(head.sampling) for head in heads]
        self._answer[place] = [expectation.tokens for expectation in expected]
        self._copies[place] = [expectation.copies for expectation in expected]
        self._blind[place] = [expectation.blind for expectation in expected]
        self._bounded += sum(expectation.bound for expectation in expected)
        lengths = self._length[place]
        lengths[:] = [len(head.ids) // 4 for head in heads]
        if self._shares:
            ids = np.frombuffer(bytearray().join([head.ids for head in heads]), dtype=np.int32)
            # A blind row reads nothing that others list, and what it lists depends on who came before it: it
            # is left out of all sharing, with a beginning that is nobody else's.
            blind = np.flatnonzero(self._blind[place])
            ids[(lengths.cumsum() - lengths)[blind]] = -1 - (place.start + blind)
            self._hashes.add(ids, lengths)
            self._pages += int((lengths // self._page_size).sum())

    def close(self) -> tuple[ForestView, int]:
        """The forest of the rows so far, and how many answers are bounded only; the hashes are let go."""
        rows = slice(self._rows)
        length, answer, copies = self._length[rows], self._answer[rows], self._copies[rows]
        if self._shares:
            forest = forest_of(self._hashes, length, answer, copies, self._blind[rows])
            self._hashes = PageHashes(self._page_size)
            return forest, self._bounded
        nobody = np.full(self._rows, -1, dtype=np.int32)
        nothing = np.zeros(self._rows, dtype=np.int32)
        none = np.zeros(0, dtype=np.int32)
        forest = ForestView(self._page_size, length, answer, copies, nothing, nobody, none, none)
        return forest, self._bounded

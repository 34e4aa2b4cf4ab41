"""An executor without a model: tokens are a function of the known ids, read back through the pages.

It keeps a K/V cache of its own, one number a slot. Row at position p reads the slot before it through the
page table and writes

    state[p] = state[p-1] + mix(token[p], p)        (mod 2**64, state[-1] = 0)

so an emitted token depends on every id before it, and a page that is shared, lost or overwritten wrongly
changes the answer. Tests and dry runs of jobs use it; it imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from shoal.core.plan import I32, SAMPLE, UNMAP, StepPlan, StepResult
from shoal.core.request import Request

U64 = npt.NDArray[np.uint64]


def mix(x: U64) -> U64:
    """SplitMix64's finaliser (Steele, Lea, Flood 2014), a bijection on 64 bits."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _hash_rows(token: npt.NDArray[np.int32], position: npt.NDArray[np.int32]) -> U64:
    return mix((token.astype(np.uint64) << np.uint64(32)) + position.astype(np.uint64))


def next_token(ids: npt.NDArray[np.int32], vocabulary: int, reserved: int = 0) -> int:
    """The token after ``ids``: the plain twin of what the executor does page by page."""
    state = _hash_rows(ids, np.arange(len(ids), dtype=np.int32)).sum(dtype=np.uint64)
    return reserved + int(mix(np.array([state]))[0] % np.uint64(vocabulary - reserved))


class NullExecutor:
    """Implements ``shoal.core.executor.Executor`` with arithmetic on page contents.

    Args:
        reserved: ids below this are never produced (special tokens such as the end of a text).
        fail: asked before each plan; an exception it returns fails every run of that plan.
    """

    invariant = True

    def __init__(
        self,
        pages: int,
        page_size: int,
        vocabulary: int,
        clock: Callable[[], float],
        *,
        reserved: int = 0,
        fail: Callable[[StepPlan], Exception | None] | None = None,
    ) -> None:
        self.pages = pages
        self.page_size = page_size
        self.vocabulary = vocabulary
        self.clock = clock
        self.reserved = reserved
        self.fail = fail
        self.cache: U64 = np.zeros(pages * page_size, dtype=np.uint64)
        self._mapped = np.full((1, 1), UNMAP, dtype=np.int32)
        self._step = np.zeros(pages * page_size, dtype=np.int64)
        self._run = np.zeros(pages * page_size, dtype=np.int32)
        self._ready: list[StepResult] = []

    def open(self, slot: int, request: Request) -> None:
        pass

    def close(self, slot: int) -> None:
        pass

    def submit(self, plan: StepPlan) -> None:
        self._move(plan)
        error = self.fail(plan) if self.fail else None
        if error is not None:
            emitting = len(plan.emitting_rows())
            self._ready.append(
                StepResult(
                    plan.step,
                    np.zeros(emitting, dtype=np.int32),
                    self.clock(),
                    failures=dict.fromkeys(range(plan.run_count), error),
                )
            )
            return
        state = self._write(plan)
        self._map(plan.ahead)
        rows = plan.emitting_rows()
        span = np.uint64(self.vocabulary - self.reserved)
        drawn = self.reserved + (mix(state[rows]) % span).astype(np.int32)
        target = plan.target[rows]
        tokens = np.where(target == SAMPLE, drawn, target).astype(np.int32)
        self._ready.append(StepResult(plan.step, tokens, self.clock()))

    def poll(self) -> list[StepResult]:
        ready, self._ready = self._ready, []
        return ready

    def _move(self, plan: StepPlan) -> None:
        size = self.page_size
        self._map(plan.maps)
        for source, target, slots in plan.moves.tolist():
            self.cache[target * size :][:slots] = self.cache[source * size :][:slots]

    def _map(self, maps: I32) -> None:
        if not len(maps):
            return
        rows, columns = np.maximum(maps.max(axis=0)[:2] + 1, self._mapped.shape)
        grown = np.full((rows, columns), UNMAP, dtype=np.int32)
        grown[: self._mapped.shape[0], : self._mapped.shape[1]] = self._mapped
        self._mapped = grown
        place, index, page = maps.T
        self._mapped[place, index] = page

    def _write(self, plan: StepPlan) -> U64:
        """State of every row, written to its slot before any run reads: runs may share pages."""
        added = _hash_rows(plan.token, plan.position)
        total = np.cumsum(added, dtype=np.uint64)
        within = total - np.repeat(total[plan.first_row] - added[plan.first_row], plan.rows)
        slot = self._slot(plan, plan.run_of_row(), plan.position)
        start = plan.position[plan.first_row]
        runs = np.arange(plan.run_count)
        before = self._slot(plan, runs, np.maximum(start - 1, 0))
        return self._settle(plan, within, slot, before, start)

    def _settle(
        self,
        plan: StepPlan,
        within: U64,
        slot: npt.NDArray[np.int64],
        before: npt.NDArray[np.int64],
        start: npt.NDArray[np.int32],
    ) -> U64:
        """A run may begin where another run of this very step ends, so runs settle in waves."""
        self._step[slot] = plan.step
        self._run[slot] = plan.run_of_row()
        here = (start > 0) & (self._step[before] == plan.step)
        waves = [np.arange(plan.run_count)]
        if here.any():
            waves = _waves(np.where(here, self._run[before], -1))
        state = within
        for wave in waves:
            base = np.where(start[wave] > 0, self.cache[before[wave]], np.uint64(0))
            rows = np.repeat(plan.first_row[wave], plan.rows[wave]) + _ragged(plan.rows[wave])
            state[rows] = within[rows] + np.repeat(base, plan.rows[wave])
            self.cache[slot[rows]] = state[rows]
        return state

    def _slot(
        self, plan: StepPlan, run: npt.NDArray[Any], position: npt.NDArray[np.int32]
    ) -> npt.NDArray[np.int64]:
        index = position // self.page_size
        if len(plan.place):
            page = self._mapped[plan.place[run], index]
        else:
            page = plan.pages[plan.first_page[run] + index]
        return page.astype(np.int64) * self.page_size + position % self.page_size


def _ragged(counts: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
    """0..counts[0]-1, 0..counts[1]-1, ..."""
    end = np.cumsum(counts)
    return np.arange(int(end[-1]) if len(end) else 0) - np.repeat(end - counts, counts)


def _waves(source: npt.NDArray[np.int32]) -> list[npt.NDArray[np.int64]]:
    """Runs grouped so that each comes after the run it reads from (-1: none in this step)."""
    depth = np.zeros(len(source), dtype=np.int64)
    while True:
        deeper = np.where(source >= 0, depth[source] + 1, 0)
        if np.array_equal(deeper, depth):
            return [np.flatnonzero(depth == d) for d in range(int(depth.max(initial=0)) + 1)]
        depth = deeper

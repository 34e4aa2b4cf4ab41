"""Sequences that share prefixes at any depth: which pages they lie on, and what a step has to read."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from shoal.core.plan import EMIT_NOTHING, I32, SAMPLE, StepPlan

BLOCK = 128
"""Positions that attention works on at a time, counted from the first of a sequence."""
LEAST_ROUNDS = 5
SHORTEST = 2e-3
"""Seconds: what takes less is called more often and its time divided."""


@dataclass(frozen=True, slots=True)
class Tree:
    """Nodes of shared tokens, and sequences at the leaves.

    Attributes:
        levels: lengths of the nodes of each level, the outermost first. The last level are the sequences'
            own tokens, the one of this step included. A level's nodes are shared by neighbours, equally many
            each, so that the number of nodes divides that of the next level.
    """

    levels: tuple[tuple[int, ...], ...]

    @property
    def count(self) -> int:
        """Sequences."""
        return len(self.levels[-1])

    def nodes(self, sequence: int) -> list[int]:
        """Which node of each level the sequence begins with."""
        return [sequence * len(level) // self.count for level in self.levels]

    def length(self, sequence: int, levels: int | None = None) -> int:
        """Tokens of a sequence in its first ``levels`` levels; in all of them by default."""
        path = zip(self.levels, self.nodes(sequence))
        return sum(level[node] for level, node in list(path)[:levels])

    def pages(self, page_size: int, shared: int) -> tuple[list[I32], int]:
        """(page ids of each sequence, pages in all). Whole pages in the first ``shared`` levels lie where the
        other sequences of the node have them; everything else each sequence has for itself."""
        ids: dict[tuple[int, ...], int] = {}
        found = []
        for sequence in range(self.count):
            nodes = self.nodes(sequence)
            ends = [self.length(sequence, level + 1) for level in range(shared)]
            mine = []
            for page in range(-(-self.length(sequence) // page_size)):
                level = next((i for i, end in enumerate(ends) if (page + 1) * page_size <= end), None)
                key = (page, -1, sequence) if level is None else (page, level, nodes[level])
                mine.append(ids.setdefault(key, len(ids)))
            found.append(np.array(mine, dtype=np.int32))
        return found, len(ids)

    def reads(self, shared: int) -> tuple[int, int]:
        """Positions that a step has to read, by head of K and V: (of shared nodes, of the sequences' own).

        A node counts by its whole blocks, once; a block that straddles its end belongs to each reader.
        """
        nodes: dict[tuple[int, int], int] = {}
        own = 0
        for sequence in range(self.count):
            done = 0
            for level, node in enumerate(self.nodes(sequence)[:shared]):
                end = self.length(sequence, level + 1) // BLOCK * BLOCK
                nodes[level, node] = end - done
                done = end
            own += self.length(sequence) - done
        return sum(nodes.values()), own


def plan(pages: list[I32], runs: list[tuple[int, int, int]]) -> StepPlan:
    """A step of runs (sequence, position of the first row, rows) over these page tables."""

    def column(values: list[int]) -> I32:
        return np.array(values, dtype=np.int32)

    rows = [count for *_, count in runs]
    total = sum(rows)
    position = np.concatenate([np.arange(first, first + count) for _, first, count in runs])
    counts = [len(pages[sequence]) for sequence, *_ in runs]
    return StepPlan(
        step=0,
        token=np.zeros(total, dtype=np.int32),
        position=position.astype(np.int32),
        emit=np.full(total, EMIT_NOTHING, dtype=np.int32),
        target=np.full(total, SAMPLE, dtype=np.int32),
        sequence=column([sequence for sequence, *_ in runs]),
        first_row=column([sum(rows[:i]) for i in range(len(rows))]),
        rows=column(rows),
        first_page=column([sum(counts[:i]) for i in range(len(counts))]),
        page_count=column(counts),
        pages=np.concatenate([pages[sequence] for sequence, *_ in runs]),
    )


def in_turn(
    contestants: Mapping[str, Callable[[], object]], rounds: int, budget: float = 1.5
) -> dict[str, float]:
    """Median seconds of one call of each; every other round goes backwards: all see the machine alike.

    Args:
        budget: seconds after which no round begins, ``LEAST_ROUNDS`` apart.
    """
    often = {name: _often(call) for name, call in contestants.items()}
    taken: dict[str, list[float]] = {name: [] for name in contestants}
    started = time.perf_counter()
    for turn in range(rounds):
        if turn >= LEAST_ROUNDS and time.perf_counter() - started > budget:
            break
        for name in list(contestants)[:: -1 if turn % 2 else 1]:
            began = time.perf_counter()
            for _ in range(often[name]):
                contestants[name]()
            taken[name].append((time.perf_counter() - began) / often[name])
    return {name: float(np.median(each)) for name, each in taken.items()}


def _often(call: Callable[[], object]) -> int:
    """Calls until the clock can tell, the first, which warms up, left out."""
    call()
    began = time.perf_counter()
    call()
    return max(1, int(SHORTEST / max(time.perf_counter() - began, 1e-6)))

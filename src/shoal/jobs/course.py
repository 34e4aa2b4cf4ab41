"""The course of a job: its rows in the order in which they run, and what each shares with others."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from shoal.core.request import Request, SamplingParams, SharedPrefix
from shoal.jobs.spool import NOBODY, Spool, SpoolRow
from shoal.reuse.planning import JobPlan

I32 = npt.NDArray[np.int32]
CHUNK, TURNS = 1 << 16, 1 << 10
"""Rows looked at, and turns made into Python numbers, at a time."""


class Turn(NamedTuple):
    """A row whose turn it is; the rest as in ``Request``."""

    row: int
    domain: int = 0
    shared: int | None = None
    path: tuple[SharedPrefix, ...] = ()


class Course:
    """Windows of rows, one after the other.

    Where all that rows share is planned, they share nothing else: with no row of another window, nor with an
    answer that happens to go on like a longer prompt. What the plan says is then what is computed, to the
    token, and no time goes into listing pages that nobody comes for.

    Args:
        windows: (spool rows of the window, shape (m,), and the plan over them).
    """

    def __init__(self, windows: list[tuple[I32, JobPlan]]) -> None:
        self.windows = windows

    def __len__(self) -> int:
        return sum(len(rows) for rows, _ in self.windows)

    def __iter__(self) -> Iterator[Turn]:
        return self.turns()

    def turns(self, first: int = 0) -> Iterator[Turn]:
        """From the turn number ``first`` on."""
        for number, (rows, plan) in enumerate(self.windows):
            node = -2
            path: tuple[SharedPrefix, ...] = ()
            shared: int | None = None
            for start in range(first, len(rows), TURNS):
                for place in plan.order[start : start + TURNS].tolist():
                    if plan.node[place] != node:
                        node, path = int(plan.node[place]), plan.path(place)
                        shared = _shared(plan, node, plan.shared(place))
                    domain = number if plan.nested else plan.domain(place)
                    yield Turn(int(rows[place]), domain, shared, path)
            first = max(0, first - len(rows))


def _shared(plan: JobPlan, node: int, otherwise: int | None) -> int | None:
    if not (plan.nested and plan.pinned):
        return otherwise
    return int(plan.depth[node]) if node >= 0 else 0


def request_of(row: SpoolRow, params: SamplingParams, turn: Turn, end_ids: tuple[int, ...]) -> Request:
    """What the engine is asked when it is the row's turn, all its ``n`` answers in one."""
    # Plans leave rows whose own prompt is scored out of all sharing.
    alone = params.prompt_logprobs is not None
    return Request(
        id=row.id,
        prompt=np.frombuffer(row.ids, dtype=np.int32),
        params=params,
        seed=row.seed,
        end_ids=end_ids,
        domain=turn.domain,
        shared=0 if alone else turn.shared,
        path=() if alone else turn.path,
    )


def rows_to_run(spool: Spool, done: npt.NDArray[np.bool_]) -> I32:
    """The rows that the engine must answer, ascending. A follower is answered by its leader, unless that one
    is done already and the follower's line is missing; then the first such follower answers for the rest."""
    found = []
    for start in range(0, spool.rows, CHUNK):
        heads = spool.leader[start : start + CHUNK]
        rows = np.arange(start, start + len(heads), dtype=np.int32)
        wanted = (heads != NOBODY) & ~done[start : start + CHUNK]
        wanted &= (heads == rows) | done[np.maximum(heads, 0)]
        found.append(rows[wanted])
    every = np.concatenate(found) if found else np.zeros(0, dtype=np.int32)
    orphans = np.flatnonzero(spool.leader[every] != every)
    if not len(orphans):
        return every
    _, first = np.unique(spool.leader[every[orphans]], return_index=True)
    later = np.ones(len(orphans), dtype=bool)
    later[first] = False
    return np.delete(every, orphans[later])

"""Which tokens llama.cpp computes next: it has no scheduler for a list of prompts, so the contest brings one.

Continuous batching with chunked prompts. The beginning that a group has in common is computed once, by a
sequence of its own (the root), and copied to each member. Nothing of llama.cpp is imported here.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple

from benchmarks.peers.contestants.protocol import Job


@dataclass
class Sequence:
    """One of llama.cpp's sequences.

    Attributes:
        pending: ids that are known and not yet computed, from ``position`` on.
        request: whose answer it is; None for a root.
        left: tokens still to be produced.
    """

    id: int
    group: Group
    pending: list[int]
    position: int
    request: int | None
    left: int


@dataclass
class Group:
    """Requests with a common beginning; a request alone is a group without a root."""

    members: deque[int]
    common: list[int]
    root: Sequence | None = None
    live: int = 0


class Chunk(NamedTuple):
    """Ids of one sequence in one call; ``emits`` if its last row gives a token."""

    sequence: Sequence
    ids: list[int]
    position: int
    emits: bool


@dataclass
class Lines:
    """Requests waiting and sequences at work.

    Args:
        rows: most tokens in one call.
        sequences: most sequences side by side.
        cells: KV cells, where all sequences share one stretch of them; None where each has its own.
    """

    job: Job
    rows: int
    sequences: int
    cells: int | None
    answers: list[list[int]] = field(init=False)
    moves: list[tuple[int, int | None]] = field(init=False, default_factory=list)
    """To do before the next call, in order: copy the first sequence to the second, or empty it (None)."""

    def __post_init__(self) -> None:
        self.answers = [[] for _ in self.job.prompts]
        self._waiting = deque(self._group(indices) for indices in self.job.groups())
        self._open: list[Group] = []
        self._running: list[Sequence] = []
        self._free = list(range(self.sequences))[::-1]
        self._used = 0

    def _group(self, indices: list[int]) -> Group:
        shared = self.job.common if len(indices) > 1 else 0
        return Group(deque(indices), self.job.prompts[indices[0]][:shared])

    def next(self) -> list[Chunk]:
        """What to compute; empty when all is answered. Decoding sequences come first."""
        self._admit()
        chunks, room = [], self.rows
        for sequence in sorted(self._running, key=lambda s: len(s.pending) > 1):
            count = min(room, len(sequence.pending))
            if count:
                whole = count == len(sequence.pending)
                chunks.append(
                    Chunk(
                        sequence,
                        sequence.pending[:count],
                        sequence.position,
                        whole and sequence.request is not None,
                    )
                )
                room -= count
        if not chunks and (self._waiting or self._open or self._running):
            raise RuntimeError("a group of requests is larger than the KV pool")
        return chunks

    def computed(self, chunks: list[Chunk], tokens: list[int]) -> None:
        """The chunks are computed; ``tokens`` are those of the emitting ones, in order."""
        produced = iter(tokens)
        for sequence, ids, _, emits in chunks:
            sequence.pending = sequence.pending[len(ids) :]
            sequence.position += len(ids)
            if emits and sequence.request is not None:
                token = next(produced)
                self.answers[sequence.request].append(token)
                sequence.pending, sequence.left = [token], sequence.left - 1
                if not sequence.left:
                    self._end(sequence)

    def _admit(self) -> None:
        """Members of groups whose root is computed, then groups for which all cells are free."""
        for group in list(self._open):
            if group.root is None or not group.root.pending:
                self._admit_members(group)
        while self._waiting and len(self._free) > 1 and self._fits(self._waiting[0]):
            group = self._waiting.popleft()
            self._open.append(group)
            self._used += self._cells(group)
            if group.common:
                group.root = self._begin(group, group.common, 0, None, 0)
            else:
                self._admit_members(group)

    def _admit_members(self, group: Group) -> None:
        while group.members and self._free:
            index = group.members.popleft()
            start = len(group.common)
            member = self._begin(
                group, self.job.prompts[index][start:], start, index, self.job.outputs[index]
            )
            group.live += 1
            if group.root is not None:
                self.moves.append((group.root.id, member.id))
        if not group.members:
            self._open.remove(group)
            if group.root is not None:
                self._remove(group.root)
                group.root = None

    def _begin(self, group: Group, ids: list[int], position: int, request: int | None, left: int) -> Sequence:
        sequence = Sequence(self._free.pop(), group, list(ids), position, request, left)
        self._running.append(sequence)
        return sequence

    def _end(self, sequence: Sequence) -> None:
        group = sequence.group
        assert sequence.request is not None
        self._used -= self._own(sequence.request, group)
        group.live -= 1
        if not group.live and not group.members:
            self._used -= len(group.common)
        self._remove(sequence)

    def _remove(self, sequence: Sequence) -> None:
        self._running.remove(sequence)
        self._free.append(sequence.id)
        self.moves.append((sequence.id, None))

    def _own(self, index: int, group: Group) -> int:
        return len(self.job.prompts[index]) - len(group.common) + self.job.outputs[index]

    def _cells(self, group: Group) -> int:
        return len(group.common) + sum(self._own(index, group) for index in group.members)

    def _fits(self, group: Group) -> bool:
        return self.cells is None or self._used + self._cells(group) <= self.cells

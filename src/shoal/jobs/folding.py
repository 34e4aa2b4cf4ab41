"""Which rows share one answer: found by digest, in arrays, after the file has been read."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import blake2b

import numpy as np
import numpy.typing as npt

from shoal.jobs.spool import NOBODY

I32 = npt.NDArray[np.int32]
DIGEST_BYTES, ID_BYTES = 16, 8
CHUNK = 1 << 16


def answer_digest(ids: bytes, sampling: bytes, seed: int | None) -> bytes:
    """Equal for rows whose answers must be equal: same tokens, same parameters, same noise.

    ``seed`` is None for a greedy row, which uses no noise.
    """
    head = b"%d %d %d " % (len(ids), len(sampling), -1 if seed is None else seed)
    return blake2b(head + ids + sampling, digest_size=DIGEST_BYTES).digest()


def lone_digest(line: int) -> bytes:
    """Equal to no other row's: its answer is its own."""
    return line.to_bytes(DIGEST_BYTES, "little")


def id_digest(identifier: str) -> bytes:
    """ID_BYTES long, so not proof of equality."""
    return blake2b(identifier.encode(), digest_size=ID_BYTES).digest()


def repeats(digests: bytearray | bytes, width: int) -> Iterator[tuple[int, int]]:
    """``(row, the first row with the same digest)`` for each row that is not the first, in input order."""
    leader, _ = fold(digests, width)
    for row in np.flatnonzero(leader != np.arange(len(leader), dtype=np.int32)):
        yield int(row), int(leader[row])


def fold(digests: bytearray | bytes, width: int = DIGEST_BYTES) -> tuple[I32, I32]:
    """Who answers for whom. Takes at most 21 bytes a row while it works.

    Args:
        digests: ``width`` bytes a row, back to back; a multiple of 8.

    Returns:
        leader: shape (rows,), int32: the earliest row with the same digest, possibly the row itself.
        follower: shape (rows,), int32: the next row with the same leader, or NOBODY.
    """
    words = np.frombuffer(digests, dtype=np.uint64).reshape(-1, width // 8)
    order = np.argsort(words[:, 0], kind="stable").astype(np.int32)
    starts = _starts(words, order)
    place = np.arange(len(order), dtype=np.int32)
    place[~starts] = 0
    np.maximum.accumulate(place, out=place)
    leader = np.empty(len(order), dtype=np.int32)
    leader[order] = order[place]
    follower = np.full(len(order), NOBODY, dtype=np.int32)
    again = np.flatnonzero(~starts)
    follower[order[again - 1]] = order[again]
    return leader, follower


def _starts(words: npt.NDArray[np.uint64], order: I32) -> npt.NDArray[np.bool_]:
    """Where in ``order`` a row differs from the one before it.

    Rows are ordered by their first word alone: should two different digests share it and interleave, an
    equal row is computed once more than it need be.
    """
    starts = np.ones(len(order), dtype=bool)
    for begin in range(1, len(order), CHUNK):
        end = min(begin + CHUNK, len(order))
        rows = words[order[begin - 1 : end]]
        starts[begin:end] = (rows[1:] != rows[:-1]).any(axis=1)
    return starts

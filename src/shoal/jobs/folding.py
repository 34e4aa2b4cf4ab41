"""Which rows share one answer: found by digest, in arrays, after the file has been read."""

from __future__ import annotations

from hashlib import blake2b

import numpy as np
import numpy.typing as npt

from shoal.jobs.spool import NOBODY

I32 = npt.NDArray[np.int32]
DIGEST_BYTES = 16


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
    return blake2b(identifier.encode(), digest_size=DIGEST_BYTES).digest()


def _grouped(digests: bytearray | bytes) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Rows ordered by digest, equal ones in input order; and where in that order a new digest begins."""
    words = np.frombuffer(digests, dtype=np.uint64).reshape(-1, 2)
    order = np.lexsort((words[:, 1], words[:, 0]))
    starts = np.ones(len(words), dtype=bool)
    for half in (0, 1):
        # One half at a time, so that the copies stay within 64 bytes a row.
        ordered = words[order, half]
        different = ordered[1:] != ordered[:-1]
        starts[1:] = different if half == 0 else starts[1:] | different
    return order, starts


def repeats(digests: bytearray | bytes) -> list[tuple[int, int]]:
    """``(row, the first row with the same digest)`` for each row that is not the first, in input order.

    digests: DIGEST_BYTES a row, back to back.
    """
    leader, _ = fold(digests)
    later = np.flatnonzero(leader != np.arange(len(leader), dtype=np.int32))
    return [(int(row), int(leader[row])) for row in later]


def fold(digests: bytearray | bytes) -> tuple[I32, I32]:
    """Who answers for whom.

    Returns:
        leader: shape (rows,), int32: the earliest row with the same digest, possibly the row itself.
        follower: shape (rows,), int32: the next row with the same leader, or NOBODY.
    """
    order, starts = _grouped(digests)
    leader = np.empty(len(order), dtype=np.int32)
    leader[order] = order[starts][np.cumsum(starts, dtype=np.int32) - 1]
    follower = np.full(len(order), NOBODY, dtype=np.int32)
    if len(order):
        again = ~starts[1:]
        follower[order[:-1][again]] = order[1:][again]
    return leader, follower

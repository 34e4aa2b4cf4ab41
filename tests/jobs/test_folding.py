from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from shoal.jobs import folding
from shoal.jobs.folding import answer_digest, fold, id_digest, lone_digest, repeats
from shoal.jobs.spool import NOBODY

texts = st.lists(st.sampled_from(["a", "b", "c", "d", "e"]), max_size=60)


@given(texts)
def test_fold_against_a_dictionary(rows: list[str]) -> None:
    digests = b"".join(answer_digest(text.encode(), b"", None) for text in rows)
    leader, follower = fold(digests)
    first: dict[str, int] = {}
    chains: dict[int, list[int]] = {}
    for row, text in enumerate(rows):
        head = first.setdefault(text, row)
        assert leader[row] == head
        chains.setdefault(head, []).append(row)
    for head, chain in chains.items():
        assert follower[[head, *chain[1:]]].tolist() == [*chain[1:], NOBODY]


@given(texts)
def test_repeats_against_a_dictionary(rows: list[str]) -> None:
    digests = b"".join(id_digest(text) for text in rows)
    first: dict[str, int] = {}
    wanted = [(row, first[text]) for row, text in enumerate(rows) if first.setdefault(text, row) != row]
    assert list(repeats(digests, folding.ID_BYTES)) == wanted


def test_chunks_do_not_show() -> None:
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 50, 500)
    digests = b"".join(answer_digest(bytes([row]), b"", None) for row in rows)
    whole = fold(digests)
    old, folding.CHUNK = folding.CHUNK, 7
    try:
        pieces = fold(digests)
    finally:
        folding.CHUNK = old
    assert all(np.array_equal(one, other) for one, other in zip(whole, pieces))


def test_digests_tell_fields_apart() -> None:
    """Moving a byte from one field to the next is another row."""
    assert len({answer_digest(b"ab", b"c", None), answer_digest(b"a", b"bc", None)}) == 2
    assert answer_digest(b"a", b"", 1) != answer_digest(b"a", b"", 2) != answer_digest(b"a", b"", None)
    assert len({lone_digest(line) for line in range(100)}) == 100

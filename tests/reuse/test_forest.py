"""The forest from page hashes equals the one by definition, from ids."""

from __future__ import annotations

import numpy as np
import pytest

from shoal.core.errors import InternalError
from shoal.reuse.forest import forest_of
from shoal.reuse.hashes import BLOCK, PageHashes
from tests.reuse.jobs import forest, nodes_of, random_job
from tests.sizes import size


def rows_below(view):
    below = [set() for _ in view.parent]
    for row, node in enumerate(view.node.tolist()):
        while node >= 0:
            below[node].add(row)
            node = int(view.parent[node])
    return below


@pytest.mark.parametrize("seed", range(size(60, 600)))
def test_nodes_are_the_sets_of_rows_that_share_a_stretch(seed):
    rng = np.random.default_rng(seed)
    page_size = int(rng.integers(1, 6))
    prompts, view = random_job(rng, int(rng.integers(1, 40)), page_size)
    below = rows_below(view)
    found = {
        (int(view.depth[v]), frozenset(below[v]), sum(int(view.copies[r]) for r in below[v]))
        for v in range(len(view.parent))
    }
    assert len(found) == len(view.parent)
    assert found == nodes_of(prompts, view.copies, page_size)
    assert np.all(view.parent < np.arange(len(view.parent))), "parents before children"
    for v, parent in enumerate(view.parent.tolist()):
        if parent >= 0:
            assert below[v] < below[parent]
            assert view.depth[v] > view.depth[parent]


def test_a_row_reads_whole_pages_and_never_its_last_token():
    view = forest([[1] * 8, [1] * 9, [1], [2] * 8], blind=[False, False, False, True])
    assert view.readable.tolist() == [4, 8, 0, 0]
    assert view.node.tolist() == [0, 0, -1, -1]
    assert view.depth.tolist() == [8]


def test_copies_of_one_row_are_a_group():
    view = forest([[1, 2, 3, 4, 5], [9] * 5], copies=[3, 1])
    assert view.node.tolist() == [0, -1]
    assert view.depth.tolist() == [4]


def test_a_chain_as_deep_as_there_are_rows():
    ids = list(range(size(1500, 4000)))
    view = forest([ids[: i + 1] for i in range(len(ids))], page_size=1)
    assert len(view.parent) == len(ids) - 1
    assert view.depth[view.node[-1]] == len(ids) - 1


def test_no_rows_and_rows_without_a_page():
    assert len(forest([]).parent) == 0
    assert forest([[1], [1, 2]]).node.tolist() == [-1, -1]


def test_columns_cannot_be_written():
    with pytest.raises(ValueError, match="read-only"):
        forest([[1] * 8]).node[0] = 3


def test_hashes_do_not_depend_on_how_rows_come():
    rng = np.random.default_rng(3)
    lengths = rng.integers(1, 300, 900).astype(np.int32)
    ids = rng.integers(0, 2**31 - 1, lengths.sum()).astype(np.int32)
    assert len(ids) > 2 * BLOCK
    whole, parts = PageHashes(16), PageHashes(16)
    whole.add(ids, lengths)
    end = np.cumsum(lengths)
    for first in range(0, len(lengths), 7):
        last = min(first + 7, len(lengths))
        parts.add(ids[end[first] - lengths[first] : end[last - 1]], lengths[first:last])
    assert np.array_equal(whole.values, parts.values)
    assert np.array_equal(whole.pages, lengths // 16)
    assert len(np.unique(whole.values)) == len(whole.values)


def test_a_row_longer_than_a_block():
    hashes = PageHashes(16)
    ids = np.arange(3 * BLOCK + 5, dtype=np.int32)
    hashes.add(np.concatenate([ids, ids]), np.array([len(ids), len(ids)], dtype=np.int32))
    first, second = np.split(hashes.values, 2)
    assert np.array_equal(first, second)


def test_what_does_not_fit_together_is_refused():
    hashes = PageHashes(4)
    with pytest.raises(InternalError, match="3 ids for rows of 4 tokens"):
        hashes.add(np.zeros(3, dtype=np.int32), np.array([4], dtype=np.int32))
    one = np.array([9], dtype=np.int32)
    with pytest.raises(InternalError, match="not of the same rows"):
        forest_of(hashes, one, one, one, np.array([False]))

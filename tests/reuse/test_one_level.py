"""The best one-level choice equals brute force over all assignments of requests to prefixes."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from shoal.core.policy import ForestView
from shoal.reuse.batchllm import BatchLLM
from shoal.reuse.forest_order import ForestOrder
from shoal.reuse.one_level import all_levels, flatten, published, saving
from shoal.reuse.planning import make_plan
from tests.reuse.jobs import forest, random_job


def random_tree(rng, leaves: int) -> ForestView:
    """A tree over ``leaves`` requests, built by joining random items until one or a few are left."""
    items: list[tuple[int, ...]] = [(leaf,) for leaf in range(leaves)]
    children: list[list[tuple[int, ...]]] = []
    while len(items) > 1 and rng.random() < 0.9:
        chosen = rng.choice(len(items), rng.integers(2, min(4, len(items)) + 1), replace=False)
        children.append([items[i] for i in chosen])
        items = [x for i, x in enumerate(items) if i not in chosen]
        items.append((-1 - (len(children) - 1),))
    k = len(children)
    number = {-1 - i: k - 1 - i for i in range(k)}  # last joined first: parents before children
    parent, node = np.full(k, -1, dtype=np.int32), np.full(leaves, -1, dtype=np.int32)
    for i, joined in enumerate(children):
        for (item,) in joined:
            if item < 0:
                parent[number[item]] = k - 1 - i
            else:
                node[item] = k - 1 - i
    depth = np.zeros(k, dtype=np.int32)
    for v in range(k):
        depth[v] = (depth[parent[v]] if parent[v] >= 0 else 0) + 4 * rng.integers(1, 30)
    on = np.append(depth, 0)[node]
    length = (on + rng.integers(0 if k else 1, 9, leaves)).astype(np.int32)
    length = np.maximum(length, 1)
    readable = ((length - 1) // 4 * 4).astype(np.int32)
    ones = np.ones(leaves, dtype=np.int32)
    return ForestView(4, length, ones, ones, readable, node, parent, depth)


def choices(view: ForestView, row: int) -> list[int]:
    """The nodes that a row begins with, and none."""
    found, node = [-1], int(view.node[row])
    while node >= 0:
        found.append(node)
        node = int(view.parent[node])
    return found


def brute_force(view: ForestView) -> int:
    best = 0
    for assignment in itertools.product(*(choices(view, row) for row in range(len(view.length)))):
        total = 0
        for node in set(assignment) - {-1}:
            depth = int(view.depth[node])
            credit = [min(depth, int(view.readable[r])) for r, v in enumerate(assignment) if v == node]
            total += sum(credit) - min(credit)
        best = max(best, total)
    return best


@pytest.mark.parametrize("block", range(10))
def test_the_best_choice_equals_brute_force_on_300_random_trees(block):
    rng = np.random.default_rng(block)
    for _ in range(30):
        view = random_tree(rng, int(rng.integers(1, 9)))
        opened, saved = flatten(view)
        assert saved == brute_force(view)
        assert saving(view, opened) == saved
        assert saving(view, published(view)) <= saved <= all_levels(view)
        plan = make_plan(BatchLLM(), view)
        assert plan.saved == saved, "what runs computes all tokens but these"
        assert all(p.members > 1 for row in range(len(view.length)) for p in plan.path(row))
        assert make_plan(ForestOrder(), view).saved == all_levels(view)


@pytest.mark.parametrize("seed", range(100))
def test_one_level_never_saves_more_than_the_whole_forest_whoever_copies_and_reads(seed):
    rng = np.random.default_rng(seed)
    _, view = random_job(rng, int(rng.integers(2, 40)))
    opened, saved = flatten(view)
    whole, flat = make_plan(ForestOrder(), view), make_plan(BatchLLM(), view)
    assert whole.saved == make_plan(ForestOrder(reorder=False), view).saved == all_levels(view)
    assert saved <= flat.saved <= whole.saved
    assert flat.saved == saving(view, opened)
    if (view.readable[view.length > 4] > 0).all():
        assert flat.saved == saved


def test_forking_pays_only_once_for_what_is_computed_again():
    # Two documents under one instruction: each forked alone loses, both together win.
    view = forest([[1] * 8 + [d] * 8 + [t] * 3 for d in (2, 3) for t in (4, 5)])
    opened, saved = flatten(view)
    assert sorted(view.depth[opened].tolist()) == [16, 16]
    assert saved == 32
    assert view.depth[published(view)].tolist() == [8]
    assert saving(view, published(view)) == 24


def test_a_tie_is_not_opened():
    # One group of three at 4 tokens saves 8; so does none of the deeper ones beside it.
    view = forest([[1] * 4 + [2], [1] * 4 + [3], [1] * 8])
    opened, saved = flatten(view)
    assert (view.depth[opened].tolist(), saved) == ([4], 8)
    assert not flatten(forest([[1] * 4, [1] * 4]))[0].any(), "nobody could read it"


def test_a_thousand_levels():
    view = forest([[1] * (i + 1) for i in range(1000)], page_size=1)
    opened, saved = flatten(view)
    assert saving(view, opened) == saved > 0

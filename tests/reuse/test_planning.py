"""What a plan says equals a plain walk through its requests with a cache that keeps everything."""

from __future__ import annotations

import numpy as np
import pytest

from shoal.core.errors import InternalError
from shoal.core.policy import Grouping, Reuse
from shoal.reuse.planning import make_plan
from tests.reuse.jobs import computed_tokens, forest, random_job
from tests.sizes import size


class Anything(Reuse):
    """Some order, some nodes."""

    def __init__(self, seed: int = 0, nested: bool = True) -> None:
        self.seed = seed
        self.nested = nested

    def plan(self, forest):
        rng = np.random.default_rng(self.seed)
        opened = rng.random(len(forest.parent)) < 0.6
        return Grouping(rng.permutation(len(forest.length)), opened, self.nested)


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("seed", range(size(60, 600)))
def test_computed_tokens_are_exact_for_any_answer(seed, nested):
    rng = np.random.default_rng(seed)
    prompts, view = random_job(rng, int(rng.integers(1, 40)))
    plan = make_plan(Anything(seed, nested), view, first_node=100)
    rows, total = computed_tokens(plan, prompts, view)
    assert plan.computed.tolist() == rows
    assert plan.total == total
    assert plan.tokens - plan.saved == plan.total
    assert plan.tokens == sum(len(p) * int(c) for p, c in zip(prompts, view.copies))


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("seed", range(20))
def test_paths_name_the_opened_prefixes_and_count_their_requests(seed, nested):
    rng = np.random.default_rng(seed)
    _, view = random_job(rng, 30)
    policy = Anything(seed, nested)
    opened = policy.plan(view).opened
    plan = make_plan(policy, view, first_node=7)
    members: dict[int, int] = {}
    stated: dict[int, int] = {}
    for row, node in enumerate(view.node.tolist()):
        chain = []
        while node >= 0:
            if opened[node]:
                chain.insert(0, node)
            node = int(view.parent[node])
        chain = chain if nested else chain[-1:]
        path = plan.path(row)
        assert [(p.node, p.tokens) for p in path] == [(7 + v, int(view.depth[v])) for v in chain]
        for prefix in path:
            members[prefix.node] = members.get(prefix.node, 0) + int(view.copies[row])
            stated[prefix.node] = prefix.members
        assert plan.domain(row) == (0 if nested or not chain else 7 + chain[0] + 1)
        assert plan.shared(row) == (None if nested else int(view.depth[chain[0]]) if chain else 0)
    assert members == stated


def test_the_largest_groups_say_what_they_save_and_whom_to_ask():
    view = forest([[9] * 6, [1] * 8 + [2], [1] * 8 + [3], [1] * 4 + [4]])

    class Whole(Reuse):
        """Everything."""

        def plan(self, forest):
            return Grouping(np.arange(4), np.ones(len(forest.parent), dtype=bool), True)

    plan = make_plan(Whole(), view)
    assert [(g.tokens, g.members, g.saved, g.example) for g in plan.largest] == [(4, 3, 8, 1), (8, 2, 4, 1)]
    assert plan.saved == sum(g.saved for g in plan.largest)
    assert plan.pinned


def test_an_answer_that_loses_a_row_is_refused():
    class Forgetful(Reuse):
        """One row twice, one never."""

        def plan(self, forest):
            return Grouping(np.zeros(2, dtype=np.int64), np.zeros(0, dtype=bool), True)

    with pytest.raises(InternalError, match="no order of 2 rows"):
        make_plan(Forgetful(), forest([[1], [2]]))

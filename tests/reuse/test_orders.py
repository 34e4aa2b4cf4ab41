"""In which order rows run under each policy, and what is opened."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from shoal.core.policies import make
from shoal.core.policy import Load, Newcomer, PageView
from shoal.reuse.batchllm import BatchLLM
from shoal.reuse.forest_order import ForestOrder
from shoal.reuse.planning import make_plan
from tests.reuse.jobs import forest, random_job

EVERY = [("reuse", "arrival"), ("reuse", "forest"), ("reuse", "sorted"), ("policy", "batchllm")]
TWO_LEVELS = [[1] * 4 + [d] * 4 + [t] for t in (6, 7) for d in (2, 3)] + [[9] * 4 + [t] for t in (6, 7)]


@pytest.mark.parametrize(("seam", "name"), EVERY)
@pytest.mark.parametrize("rows", [0, 1, 2, 17, 60])
def test_any_job_is_planned_repeatably_and_unchanged(seam, name, rows):
    _, view = random_job(np.random.default_rng(rows), rows)
    policy = make(seam, name)
    one, other = policy.plan(view), policy.plan(view)
    assert np.array_equal(one.order, other.order)
    assert np.array_equal(one.opened, other.opened)
    assert sorted(one.order.tolist()) == list(range(rows))
    plan = make_plan(policy, view)
    assert plan.total + plan.saved == plan.tokens


@pytest.mark.parametrize(("seam", "name"), [("reuse", "forest"), ("reuse", "sorted")])
def test_rows_of_a_prefix_stand_together_at_every_depth(seam, name):
    for seed in range(20):
        _, view = random_job(np.random.default_rng(seed), 50)
        order = make(seam, name).plan(view).order
        for v in range(len(view.parent)):
            inside = []
            for row in order.tolist():
                node = int(view.node[row])
                while node > v:
                    node = int(view.parent[node])
                inside.append(node == v)
            assert np.count_nonzero(np.diff(inside)) <= 2


def test_sorted_keeps_the_order_of_first_rows():
    assert make("reuse", "sorted").plan(forest(TWO_LEVELS)).order.tolist() == [0, 2, 1, 3, 4, 5]
    assert make("reuse", "arrival").plan(forest(TWO_LEVELS)).order.tolist() == [0, 1, 2, 3, 4, 5]


def test_the_forest_runs_those_first_that_give_most_for_their_prompts():
    view = forest(TWO_LEVELS, answer=[1, 5, 2, 50, 90, 8])
    # R: the pair at the end 98/6; of the others the document of rows 1 and 3 is 55/6 against 3/6.
    assert make("reuse", "forest").plan(view).order.tolist() == [4, 5, 3, 1, 2, 0]
    assert ForestOrder(reorder=False).plan(view).order.tolist() == [0, 2, 1, 3, 4, 5]


def test_a_row_that_reads_nothing_computes_for_the_others():
    prompts = [[1] * 4 + [t] for t in (2, 3, 4)]
    view = forest(prompts, blind=[False, False, True], answer=[9, 8, 1])
    for policy in (ForestOrder(), BatchLLM()):
        plan = make_plan(policy, view)
        assert plan.order.tolist() == [2, 0, 1]
        assert plan.total == 5 + 1 + 1


def test_groups_of_one_level_run_one_after_the_other_by_ratio():
    view = forest([*TWO_LEVELS, [8]], answer=[1, 5, 2, 50, 90, 8, 16])
    plan = make_plan(BatchLLM(), view)
    # R: 16/1 alone; 98/6; 58/8 for the four that share one prefix: opening both documents would save no more.
    assert plan.order.tolist() == [4, 5, 6, 1, 3, 0, 2]
    assert plan.domain(0) == plan.domain(2) != plan.domain(1)
    assert [plan.shared(row) for row in (0, 4, 6)] == [8, 4, 0]
    assert make_plan(BatchLLM(reorder=False), view).order.tolist() == [0, 2, 1, 3, 4, 5, 6]


def load(**changed):
    values = {"now": 0.0, "running": 4, "waiting": 9, "singles": 3, "backlog": 90}
    return Load(**(values | {"free_pages": 40, "total_pages": 100} | changed))


def newcomer(pages, growth):
    return Newcomer(handle=7, prompt=9, known=9, limit=20, pages=pages, growth=growth)


def test_newcomers_enter_while_pages_used_and_promised_stay_below_the_threshold():
    assert BatchLLM().enters(load(growth=20), newcomer(10, 5))
    assert not BatchLLM().enters(load(growth=20), newcomer(10, 6))
    assert BatchLLM(reserve=0.5).enters(load(growth=20), newcomer(10, 30))
    assert not BatchLLM(threshold=0.9).enters(load(growth=20), newcomer(10, 5))
    assert BatchLLM(threshold=1.0, reserve=0.0).enters(load(growth=900), newcomer(40, 900))


def test_every_running_sequence_gets_its_token_and_prompts_the_rest():
    budget = BatchLLM(rows=64).budget(load())
    assert (budget.rows, budget.singles, budget.chunk) == (64, 3, 64)
    assert BatchLLM(rows=2).budget(load()).rows == 3


def test_a_prefix_stays_while_somebody_will_come_for_it_and_no_longer():
    column = np.zeros(3, dtype=np.int32)
    wanted = np.array([2, 0, 1], dtype=np.int32)
    worth = BatchLLM().worth(PageView(0.0, column, column, column.astype(float), column, wanted))
    assert worth.tolist() == [np.inf, -np.inf, np.inf]


@pytest.mark.parametrize(("seam", "name"), EVERY)
def test_a_wrong_guess_of_answers_changes_the_order_alone(seam, name):
    rng = np.random.default_rng(5)
    _, view = random_job(rng, 50)
    guessed = dataclasses.replace(view, answer=rng.integers(1, 5000, 50).astype(np.int32))
    known, wrong = make_plan(make(seam, name), view), make_plan(make(seam, name), guessed)
    assert known.total == wrong.total
    assert np.array_equal(known.node, wrong.node)

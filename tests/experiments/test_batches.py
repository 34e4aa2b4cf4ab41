"""Batches of prompts with shared beginnings, and what is seen of them on simulated time."""

from __future__ import annotations

import numpy as np
import pytest

from shoal.core.cost import ConstantCost
from shoal.experiments.batches import PAGE_SIZE, Way, batch, simulate
from shoal.reuse.arrival import Arrival
from shoal.reuse.batchllm import BatchLLM
from shoal.reuse.planning import make_plan

PLANNED = Way(BatchLLM(rows=64), {"policy": BatchLLM(rows=64)})
ALONE = Way(Arrival(), {"admission": "sarathi-serve:rows=64", "prefix_reuse": False})


def test_groups_share_what_they_should_and_nothing_more():
    work = batch(np.random.default_rng(1), 8, members=4, instructions=2)
    view = work.forest()
    assert len(work.prompts) == 8 * 4 + 4
    assert sorted(view.depth.tolist()) == [64] * 2 + [128] * 8
    assert sorted(view.node[list(work.examples)].tolist()) == np.flatnonzero(view.depth == 128).tolist()
    assert np.count_nonzero(view.parent >= 0) == 8
    again = work.shuffled(np.random.default_rng(2))
    assert again.need() == work.need()
    assert sorted(p.tobytes() for p in again.prompts) == sorted(p.tobytes() for p in work.prompts)
    rows = [row.tobytes() for row in (work.prompts[r] for r in work.examples)]
    assert [again.prompts[r].tobytes() for r in again.examples] == rows


@pytest.mark.parametrize("way", [PLANNED, ALONE])
def test_a_simulated_batch_counts_every_row_once(way):
    work = batch(np.random.default_rng(3), 4, members=4)
    ran = simulate(work, way, 400, ConstantCost(0.5), watch=True)
    assert ran.seconds == 0.5 * len(ran.ends)
    assert [len(ran.tokens[str(row)]) for row in range(len(work.prompts))] == work.answers.tolist()
    assert (
        ran.prompt
        == sum(ran.prompt_rows)
        == (make_plan(BatchLLM(), work.forest()).total if way is PLANNED else work.tokens)
    )
    assert sum(ran.answer_rows) == int(work.answers.sum()) - len(work.prompts)
    assert not any(ran.prompt_rows[len(ran.prompt_rows) - ran.valley :])
    most = 4 * work.common // PAGE_SIZE
    if way is PLANNED:
        assert 0 < max(ran.prefixes) <= most
        assert ran.prefixes[-1] == 0
    else:
        assert not any(ran.prefixes)

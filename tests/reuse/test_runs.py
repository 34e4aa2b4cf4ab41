"""What a plan states is what the engine then computes, to the token."""

from __future__ import annotations

import numpy as np
import pytest

from shoal.core.policies import make
from shoal.core.request import fan_out
from shoal.reuse.requests import plan_requests
from tests.engine.harness import drain, expected, null_engine, request
from tests.reuse.jobs import random_job
from tests.sizes import size

PAGE = 4


def random_requests(rng):
    """A job full of shared beginnings, with several answers here and a scored prompt there."""
    prompts, view = random_job(rng, 40, PAGE)
    for row, prompt in enumerate(prompts):
        extra = {"prompt_logprobs": 0} if rng.random() < 0.1 else {}
        # Ids that no answer has: a prompt that goes on like another and its answer would share more than a
        # plan can know. (A job does not share that, see tests/jobs/test_plan.py.)
        ids, most = [token + 1 for token in prompt], int(rng.integers(1, 9))
        yield request(str(row), ids, max_tokens=most, n=int(view.copies[row]), **extra)


@pytest.mark.parametrize("budget", [3, 16, 200])
@pytest.mark.parametrize(("seam", "name"), [("reuse", "forest"), ("reuse", "sorted"), ("policy", "batchllm")])
@pytest.mark.parametrize("seed", range(size(4, 60)))
def test_the_tokens_computed_are_those_the_plan_states(seam, name, seed, budget):
    rng = np.random.default_rng(seed)
    asked, policy = list(random_requests(rng)), make(seam, name)
    planned = plan_requests(policy, asked, PAGE, 1000, first_node=int(rng.integers(0, 99)))
    system = (
        {"admission": make("policy", f"{name}:rows={budget}"), "retention": policy}
        if seam == "policy"
        else {"admission": f"sarathi-serve:rows={budget}"}
    )
    engine = null_engine(pages=1000, page_size=PAGE, vocabulary=110, reserved=52, max_running=20, **system)
    requests = [one for item in planned.requests for one in fan_out(item)]
    for item in requests:
        engine.add(item, 0.0)
    answers = drain(engine, most=5000)
    computed = {name: a.computed - len(a.tokens) + 1 for name, a in answers.items()}
    assert sum(computed.values()) == planned.plan.total
    for item, tokens in zip(asked, planned.plan.computed.tolist()):
        assert computed[item.id if item.params.n == 1 else f"{item.id}#0"] == tokens
    for item in requests:
        assert answers[item.id].tokens.tolist() == expected(engine, item)

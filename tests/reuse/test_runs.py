"""What a plan states is what the engine then computes, to the token."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from shoal.core.policies import make
from shoal.core.request import fan_out
from shoal.reuse.planning import make_plan
from tests.engine.harness import drain, expected, null_engine, request
from tests.reuse.jobs import random_job
from tests.sizes import size

PAGE = 4


def planned_requests(plan, prompts, view, rng):
    """Requests in planned order, as a job hands them in."""
    for row in plan.order.tolist():
        extra = {"prompt_logprobs": 0} if not view.readable[row] and len(prompts[row]) > PAGE else {}
        one = request(
            str(row), prompts[row], max_tokens=int(rng.integers(1, 9)), n=int(view.copies[row]), **extra
        )
        yield from fan_out(
            msgspec.structs.replace(
                one, domain=plan.domain(row), shared=plan.shared(row), path=plan.path(row)
            )
        )


@pytest.mark.parametrize("budget", [3, 16, 200])
@pytest.mark.parametrize(("seam", "name"), [("reuse", "forest"), ("reuse", "sorted"), ("policy", "batchllm")])
@pytest.mark.parametrize("seed", range(size(4, 60)))
def test_the_tokens_computed_are_those_the_plan_states(seam, name, seed, budget):
    rng = np.random.default_rng(seed)
    prompts, view = random_job(rng, 40, PAGE)
    # Ids from 1: 0 ends an answer.
    prompts = [[t + 1 for t in p] for p in prompts]
    policy = make(seam, name)
    plan = make_plan(policy, view, first_node=int(rng.integers(0, 99)))
    system = (
        {"admission": make("policy", f"{name}:rows={budget}"), "retention": policy}
        if seam == "policy"
        else {"admission": f"sarathi-serve:rows={budget}"}
    )
    engine = null_engine(pages=1000, page_size=PAGE, vocabulary=60, max_running=20, **system)
    requests = list(planned_requests(plan, prompts, view, rng))
    for item in requests:
        engine.add(item, 0.0)
    answers = drain(engine, most=5000)
    computed = {name: a.computed - len(a.tokens) + 1 for name, a in answers.items()}
    assert sum(computed.values()) == plan.total
    for row, tokens in enumerate(plan.computed.tolist()):
        name = str(row) if view.copies[row] == 1 else f"{row}#0"
        assert computed[name] == tokens
    for item in requests:
        assert answers[item.id].tokens.tolist() == expected(engine, item)

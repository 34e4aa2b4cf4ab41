"""Sampling parameters check themselves, the registry refuses what it does not know."""

from __future__ import annotations

import numpy as np
import pytest

from shoal.core.errors import CallerError, OperatorError
from shoal.core.plan import StepPlan
from shoal.core.registry import Registry
from shoal.core.request import Constraint, SamplingParams


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_k", -2),
        ("min_p", 2.0),
        ("n", 0),
        ("max_tokens", 0),
        ("min_tokens", -1),
        ("presence_penalty", 3.0),
        ("repetition_penalty", 0.0),
        ("logprobs", 21),
        ("stop", ("",)),
        ("stop_token_ids", (2**31,)),
        ("stop_token_ids", (-1,)),
        ("min_tokens", 2**31),
        ("seed", 2**63),
        ("logit_bias", {1: float("nan")}),
        ("temperature", "hot"),
    ],
)
def test_a_value_outside_its_range_is_refused_by_name(field, value):
    with pytest.raises(CallerError) as refused:
        SamplingParams(**{field: value}).checked()
    assert field.split("_")[0] in str(refused.value)
    assert refused.value.remedy


def test_numbers_out_of_arrays_are_numbers():
    given = SamplingParams(
        temperature=np.float32(0.5), max_tokens=np.int64(7), logit_bias={np.int64(3): np.float64(1)}
    )
    assert given.checked() == SamplingParams(temperature=0.5, max_tokens=7, logit_bias={3: 1.0})


def test_a_good_value_passes_unchanged():
    params = SamplingParams(
        temperature=0.5, stop=("a", "b"), constraint=Constraint(kind="choice", value=("x", "y"))
    )
    assert params.checked() == params


def test_min_tokens_above_max_tokens_is_refused():
    with pytest.raises(CallerError, match="min_tokens"):
        SamplingParams(min_tokens=5, max_tokens=4).checked()


def test_a_registry_loads_late_and_refuses_strictly():
    registry = Registry("thing", {"path": "os.path:join", "missing": "no_such_module:x"})
    assert registry.get("path")("a", "b") == "a/b"
    with pytest.raises(OperatorError, match=r"unknown thing 'pathh'.*did you mean 'path'.*missing, path"):
        registry.get("pathh")
    with pytest.raises(OperatorError, match="defined twice"):
        registry.add("path", "os.path:split")
    registry.add("path", "os.path:join")


def test_a_submitted_plan_cannot_be_altered():
    one = np.zeros(1, dtype=np.int32)
    plan = StepPlan(
        step=1,
        **{name: one.copy() for name in StepPlan.__slots__ if name != "step"},
    )
    with pytest.raises(ValueError, match="read-only"):
        plan.token[0] = 1
    with pytest.raises(AttributeError):
        plan.token = one

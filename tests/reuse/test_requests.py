"""A list of requests, planned: each comes back once, in order, with what it shares."""

from __future__ import annotations

import numpy as np
import pytest

from shoal.core.policies import make
from shoal.core.request import Request, SamplingParams
from shoal.reuse.requests import plan_requests

HEAD = list(range(100, 108))


def request(name: str, ids: list[int], **params: object) -> Request:
    return Request(id=name, prompt=np.array(ids, dtype=np.int32), params=SamplingParams(**params))


REQUESTS = [
    request("a", [*HEAD, 1, 2], max_tokens=5),
    request("alone", [9, 9, 9, 9, 9], max_tokens=5),
    request("b", [*HEAD, 3], max_tokens=50),
    request("twice", [5, 5, 5, 5, 6], n=2),
    request("scored", [*HEAD, 4], prompt_logprobs=1),
]


def test_what_each_shares_is_in_the_request():
    found = plan_requests(make("reuse", "forest"), REQUESTS, 4, 64, first_node=10)
    by_name = {item.id: item for item in found.requests}
    assert sorted(by_name) == sorted(item.id for item in REQUESTS)
    assert [REQUESTS[row].id for row in found.plan.order] == [item.id for item in found.requests]
    (prefix,) = by_name["a"].path
    assert (prefix.tokens, prefix.members) == (8, 2)
    assert prefix.node in found.nodes
    assert found.nodes.start == 10
    assert by_name["a"].path == by_name["b"].path
    assert (by_name["scored"].path, by_name["scored"].shared) == ((), 0), "its own prompt is scored"
    assert [shared.members for shared in by_name["twice"].path] == [2]
    assert by_name["alone"].path == ()
    assert found.plan.total == 9 + 10 + 1 + 5 + 5 + 1


@pytest.mark.parametrize("name", ["arrival", "sorted"])
def test_without_a_plan_nothing_changes_but_the_order(name):
    found = plan_requests(make("reuse", name), REQUESTS, 4, 64)
    assert sorted(item.id for item in found.requests) == sorted(item.id for item in REQUESTS)
    assert all((item.path, item.domain) == ((), 0) for item in found.requests)
    assert all(item.shared == (0 if item.id == "scored" else None) for item in found.requests)


def test_nothing_to_plan():
    found = plan_requests(make("reuse", "forest"), [], 4, 64, first_node=3)
    assert (found.requests, len(found.nodes), found.nodes.stop) == ((), 0, 3)

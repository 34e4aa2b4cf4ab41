"""One conformance suite over every registered policy, whoever wrote it."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest

from shoal.core.errors import OperatorError
from shoal.core.events import Admitted, Arrived, Ended, Preempted, StepDone
from shoal.core.policies import POLICIES, make, registry
from shoal.core.policy import (
    SEAMS,
    Budget,
    ForestView,
    Grouping,
    Load,
    Newcomer,
    PageView,
    Policy,
    SequenceView,
    seams_of,
)
from shoal.core.request import FinishReason
from tests.engine.harness import drain, expected, null_engine, request

EVERY = [(seam, name) for seam in POLICIES for name in registry(seam).names()]
pytestmark = pytest.mark.parametrize(("seam", "name"), EVERY)


def sequences(rng, m):
    known = rng.integers(1, 200, m).astype(np.int32)
    view = SequenceView(
        now=9.0,
        handle=np.sort(rng.choice(1000, m, replace=False)).astype(np.int64),
        arrived=np.sort(rng.random(m)),
        prompt=np.maximum(1, known - 3).astype(np.int32),
        known=known,
        computed=(known - 1).astype(np.int32),
        limit=(known + rng.integers(0, 50, m)).astype(np.int32),
        preemptions=rng.integers(0, 3, m).astype(np.int32),
    )
    return frozen(view)


def pages(rng, m):
    view = PageView(
        now=9.0,
        page=rng.choice(1000, m, replace=False).astype(np.int32),
        depth=rng.integers(1, 9, m).astype(np.int32) * 16,
        last_used=rng.random(m),
        uses=rng.integers(0, 5, m).astype(np.int32),
        wanted=rng.integers(0, 3, m).astype(np.int32),
    )
    return frozen(view)


def forest(rng, rows, nodes):
    """A valid random forest: parents before children, rows at least as long as the node they begin with."""
    parent = np.array([int(rng.integers(-1, i)) if i else -1 for i in range(nodes)], dtype=np.int32)
    depth = np.zeros(nodes, dtype=np.int32)
    for i in range(nodes):
        above = depth[parent[i]] if parent[i] >= 0 else 0
        depth[i] = above + 16 * rng.integers(1, 4)
    node = rng.integers(-1, nodes, rows).astype(np.int32)
    length = (np.where(node >= 0, depth[node], 0) if nodes else np.zeros(rows)) + rng.integers(1, 40, rows)
    length = length.astype(np.int32)
    view = ForestView(
        page_size=16,
        length=length,
        answer=rng.integers(1, 30, rows).astype(np.int32),
        copies=rng.integers(1, 3, rows).astype(np.int32),
        readable=((length - 1) // 16 * 16).astype(np.int32),
        node=node,
        parent=parent,
        depth=depth,
    )
    return frozen(view)


def frozen(view):
    for field in dataclasses.fields(view):
        value = getattr(view, field.name)
        if isinstance(value, np.ndarray):
            value.flags.writeable = False
    return view


def load(rng):
    return Load(
        now=9.0,
        running=int(rng.integers(0, 50)),
        waiting=int(rng.integers(0, 50)),
        singles=int(rng.integers(0, 20)),
        backlog=int(rng.integers(0, 5000)),
        free_pages=int(rng.integers(0, 100)),
        total_pages=100,
        entered=int(rng.integers(0, 3)),
        growth=int(rng.integers(0, 40)),
    )


def newcomer(rng):
    known = int(rng.integers(1, 200))
    return Newcomer(
        handle=int(rng.integers(0, 1000)),
        prompt=known,
        known=known,
        limit=known + int(rng.integers(1, 50)),
        pages=int(rng.integers(1, 50)),
        growth=int(rng.integers(0, 10)),
    )


def questions(seam, rng, seams=()):
    """(method, arguments) pairs that the mechanism would ask."""
    if seam == "policy":
        return [question for part in seams for question in questions(part, rng)]
    if seam == "order":
        return [("keys", (sequences(rng, m),)) for m in (0, 1, 7)]
    if seam == "admission":
        return [("budget", (load(rng),)), ("enters", (load(rng), newcomer(rng)))]
    if seam == "victim":
        return [("choose", (sequences(rng, m),)) for m in (1, 7)]
    if seam == "reuse":
        return [("plan", (forest(rng, m, k),)) for m, k in ((0, 0), (1, 0), (9, 4), (30, 12))]
    return [("worth", (pages(rng, m),)) for m in (1, 7)]


def equal(a, b):
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and np.array_equal(a, b)
    if isinstance(a, Grouping):
        return equal(a.order, b.order) and equal(a.opened, b.opened) and a.nested == b.nested
    return a == b


def valid(seam, method, answer, arguments):
    if method in ("keys", "worth"):
        assert answer.shape == (_length(arguments[0]),)
        assert answer.dtype == np.float64
        assert not np.isnan(answer).any()
    elif method == "budget":
        assert isinstance(answer, Budget)
        assert min(answer.rows, answer.singles, answer.chunk) >= 0
    elif method == "choose":
        assert 0 <= answer < _length(arguments[0])
    elif method == "plan":
        assert np.array_equal(np.sort(answer.order), np.arange(len(arguments[0].length)))
        assert answer.opened.shape == arguments[0].parent.shape
        assert answer.opened.dtype == bool
    else:
        assert answer in (True, False)


def _length(view):
    return len(getattr(view, "page", getattr(view, "handle", ())))


def test_the_constructor_only_stores_named_parameters(seam, name):
    kind = registry(seam).get(name)
    assert len(seams_of(kind)) > 0 if seam == "policy" else issubclass(kind, SEAMS[seam])
    for key, parameter in kind.parameters().items():
        assert parameter.default is not parameter.empty, f"{key} has no default"
        assert parameter.annotation is not parameter.empty, f"{key} has no annotation"
        marker = object()
        assert getattr(kind(**{key: marker}), key) is marker


def test_the_repr_recreates_it(seam, name):
    policy = make(seam, name)
    kind = type(policy)
    again = eval(repr(policy), {kind.__name__: kind})
    assert again == policy
    assert kind.__doc__, "a policy says what it does"


def test_answers_are_valid_repeatable_and_change_nothing(seam, name):
    policy = make(seam, name)
    policy.bind(None, np.random.default_rng(1))
    for method, arguments in questions(seam, np.random.default_rng(2), seams_of(type(policy))):
        before = copy.deepcopy(arguments)
        state = copy.deepcopy(vars(policy))
        answer = getattr(policy, method)(*arguments)
        valid(seam, method, answer, arguments)
        assert equal(answer, getattr(policy, method)(*arguments)), "asked twice, answered twice"
        for old, new in zip(before, arguments):
            assert repr(old) == repr(new), "a view was changed"
        assert repr(state) == repr(vars(policy)), "an answer changed the policy"


def test_observing_every_event_is_harmless(seam, name):
    policy = make(seam, name)
    policy.bind(None, np.random.default_rng(1))
    for event in (
        Arrived(1, 0.0, 10),
        Admitted(1, 0.1, 4),
        StepDone(1, 0.2, 6, 1),
        Preempted(1, 0.3, 6),
        Ended(1, 0.4, FinishReason.STOP, 3),
    ):
        policy.observe(event)


def test_every_request_is_answered_under_it_at_the_smallest_pool(seam, name):
    policy = make(seam, name)
    parts = {part: policy for part in seams_of(type(policy)) if part != "reuse"}
    engine = null_engine(pages=12, page_size=2, max_length=24, max_running=5, vocabulary=1000, **parts)
    requests = [
        request(f"r{i}", [5, 6, 7, 8, i][: 2 + i % 4], max_tokens=14, ignore_eos=True) for i in range(9)
    ]
    for item in requests:
        engine.add(item, 0.0)
    answers = drain(engine)
    for item in requests:
        assert answers[item.id].tokens.tolist() == expected(engine, item)


def test_unknown_names_and_parameters_are_refused_with_the_valid_ones(seam, name):
    with pytest.raises(OperatorError, match="valid: ") as refused:
        make(seam, name + "x")
    assert name in str(refused.value)
    with pytest.raises(OperatorError, match="no parameter 'nonsense'"):
        make(seam, f"{name}:nonsense=1")
    assert isinstance(make(seam, make(seam, name)), Policy)

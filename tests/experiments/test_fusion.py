"""What fused steps should take, by stepping through them; executors that look on change nothing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.experiments.benches import request
from shoal.experiments.claims import Trial
from shoal.experiments.fusion import fused_rows, iterations
from shoal.experiments.places import SMALL, Real, simulated
from shoal.experiments.serving import Arrival, serve
from shoal.memory.flover import Flover
from shoal.memory.slots import SlotMemory


def stepped(times: list[float], tokens: int, step: float) -> int:
    """The same one step at a time."""
    now, waiting, left, steps = 0.0, list(times), [], 0
    while waiting or left:
        if not left:
            now = max(now, waiting[0])
        if waiting and waiting[0] <= now:
            waiting.pop(0)
            left.append(tokens)
        left = [n - 1 for n in left if n > 1]
        now += step
        steps += 1
    return steps


@given(st.lists(st.integers(0, 60), min_size=1, max_size=8), st.integers(1, 9))
@settings(max_examples=100, deadline=None)
def test_steps_by_arithmetic_are_those_taken(gaps, tokens):
    # No two arrivals whole steps apart, so that rounding decides nothing.
    times = np.cumsum(gaps) * 0.25 + np.arange(len(gaps)) * 0.01
    assert iterations(times[None], tokens, 1.0).tolist() == [stepped(times.tolist(), tokens, 1.0)]


@given(st.lists(st.integers(1, 20), min_size=1, max_size=9))
@settings(max_examples=100, deadline=None)
def test_rows_by_arithmetic_are_those_of_the_window(lengths):
    without = 0
    for step in range(max(lengths)):
        used = [place for place, length in enumerate(lengths) if length > step]
        without += used[-1] - used[0] + 1
    found = fused_rows(np.array([lengths]))
    assert [int(each[0]) for each in found] == [without, sum(lengths)]


def test_what_is_watched_is_what_lies_there():
    engine, clock = simulated(Flover(compact=False), sequences=4, watch=True)
    items = [request(f"r{i}", [1, 2], n) for i, n in enumerate([5, 1, 3, 5])]
    serve(engine, clock, map(Arrival, items))
    watched = engine.executor
    assert watched.span == [4] * 5
    assert watched.held == [4, 3, 3, 2, 2]
    assert watched.interior == 2
    assert watched.joined_after() == [1, 1, 1]


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    return Real(tmp_path_factory.mktemp("model"), SMALL, Trial(0, quick=True))


def test_computing_holes_changes_no_answer(real):
    rng = np.random.default_rng(0)
    items = [request(f"r{i}", rng.integers(1, 99, 8), int(rng.integers(1, 12))) for i in range(9)]
    plain = serve(*real.engine(Flover()), map(Arrival, items))
    engine, clock = real.engine(Flover(compact=False), whole=True)
    rows, submit = [], engine.executor.inner.submit
    engine.executor.inner.submit = lambda plan: (rows.append(plan.row_count), submit(plan))
    whole = serve(engine, clock, map(Arrival, items))
    assert whole.tokens == plain.tokens
    assert isinstance(engine.memory, SlotMemory)
    lengths = np.array([[item.params.max_tokens for item in items]])
    assert sum(rows) == 9 * 7 + int(fused_rows(lengths)[0][0])

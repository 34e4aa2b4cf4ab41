"""The books balance: random mixes of requests on the null executor, checked after every step."""

from __future__ import annotations

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shoal.core.request import FinishReason
from tests.engine.harness import drain, expected, null_engine, request
from tests.sizes import size

SCENARIOS = size(2000, 6000)


@st.composite
def scenarios(draw):
    page_size = draw(st.sampled_from([1, 2, 4, 8]))
    longest = draw(st.integers(12, 48))
    smallest = -(-longest // page_size)
    return {
        "engine": {
            "page_size": page_size,
            "pages": smallest + draw(st.integers(0, 3 * smallest)),
            "max_length": longest,
            "max_running": draw(st.integers(1, 9)),
            "admission": f"chunked:rows={draw(st.integers(1, 40))},chunk={draw(st.integers(0, 20))}",
            "order": draw(st.sampled_from(["fcfs", "shortest"])),
            "reuse": draw(st.booleans()),
            "vocabulary": draw(st.sampled_from([3, 50])),
        },
        "seed": draw(st.integers(0, 2**32 - 1)),
        "requests": draw(st.integers(1, 10)),
        "abort": draw(st.booleans()),
        "arrive_late": draw(st.booleans()),
    }


def mixed_requests(rng, count, longest, vocabulary):
    """Prompts that share stems at any depth, some equal, some as long as allowed."""
    stems = [rng.integers(0, vocabulary, rng.integers(1, longest)) for _ in range(3)]
    for i in range(count):
        stem = stems[rng.integers(3)]
        prompt = np.concatenate(
            [stem[: rng.integers(0, len(stem) + 1)], rng.integers(0, vocabulary, rng.integers(1, 6))]
        )[: longest - 1]
        yield request(
            f"r{i}",
            prompt,
            max_tokens=int(rng.integers(1, 12)),
            min_tokens=0,
            ignore_eos=bool(rng.integers(2)),
        )


@settings(max_examples=SCENARIOS, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(scenarios())
def test_every_request_is_answered_once_and_right(scenario):
    engine = null_engine(**scenario["engine"])
    rng = np.random.default_rng(scenario["seed"])
    kind = scenario["engine"]
    requests = list(mixed_requests(rng, scenario["requests"], kind["max_length"], kind["vocabulary"]))
    handles, answers, waiting = {}, {}, list(requests)
    if not scenario["arrive_late"]:
        handles.update((r.id, engine.add(r, 0.0)) for r in waiting)
        waiting = []
    step = 0
    while waiting or not engine.idle:
        if waiting and (engine.idle or rng.random() < 0.4):
            late = waiting.pop()
            handles[late.id] = engine.add(late, float(step))
        if scenario["abort"] and handles and rng.random() < 0.1:
            engine.abort(handles[rng.choice(list(handles))], float(step))
        for finished in engine.step(float(step)).finished:
            assert finished.request.id not in answers
            answers[finished.request.id] = finished
        engine.check()
        step += 1
        assert step < 5000
    assert set(answers) == {r.id for r in requests}
    for r in requests:
        got, want = answers[r.id], expected(engine, r)
        if got.reason is FinishReason.ABORT:
            assert got.tokens.tolist() == want[: len(got.tokens)]
        else:
            assert got.tokens.tolist() == want
    ledger = engine.memory.ledger
    assert ledger.held == 0
    assert ledger.available == ledger.total


def test_a_failed_step_fails_its_requests_and_no_other():
    failing = {3}
    seen = []

    def fail(plan):
        seen.append(plan.step)
        return RuntimeError("broken on purpose") if plan.step in failing else None

    engine = null_engine(fail=fail, max_running=2, admission="chunked:rows=8")
    for i in range(6):
        engine.add(request(f"r{i}", [1, 2, 3, 4, 5, 6, 7, i], max_tokens=3, ignore_eos=True), 0.0)
    answers = drain(engine)
    failed = {name for name, answer in answers.items() if answer.reason is FinishReason.ERROR}
    assert len(answers) == 6
    assert 1 <= len(failed) <= 2
    for name, answer in answers.items():
        if name not in failed:
            assert answer.tokens.tolist() == expected(engine, answer.request)
        else:
            assert "broken on purpose" in str(answer.error)


def test_sharing_in_the_very_step_that_computes_the_prefix():
    engine = null_engine(admission="chunked:rows=64", max_running=8)
    prefix = list(range(1, 17))
    for i in range(4):
        engine.add(request(f"r{i}", [*prefix, 20 + i], max_tokens=1), 0.0)
    answers = drain(engine)
    assert engine.scheduler.counters.computed == 16 + 4
    assert sorted(a.cached for a in answers.values()) == [0, 16, 16, 16]
    for answer in answers.values():
        assert answer.tokens.tolist() == expected(engine, answer.request)


def test_preemption_at_the_smallest_pool_changes_no_answer():
    engine = null_engine(pages=10, page_size=2, max_length=20, max_running=6, vocabulary=1000)
    requests = [request(f"r{i}", [7, 8, 9, i], max_tokens=12, ignore_eos=True) for i in range(6)]
    for r in requests:
        engine.add(r, 0.0)
    answers = drain(engine)
    assert engine.scheduler.counters.preemptions > 0
    for r in requests:
        assert answers[r.id].tokens.tolist() == expected(engine, r)

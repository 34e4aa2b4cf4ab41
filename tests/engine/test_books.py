"""The books balance: random mixes of requests on the null executor, checked after every step."""

from __future__ import annotations

from collections import Counter

import msgspec
import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shoal.core.policy import Admission, Budget, Retention
from shoal.core.request import FinishReason, SharedPrefix
from tests.engine.harness import drain, expected, null_engine, request
from tests.sizes import size

SCENARIOS = size(2000, 6000)


LAYOUTS = (
    {"layout": "paged"},
    {"layout": "contiguous"},
    {"layout": "contiguous", "eager": False},
    {"layout": "contiguous", "deferred": False},
)


class Forgetful(Retention):
    """Keeps what is still wanted and lets everything else go at once."""

    def worth(self, view):
        return np.where(view.wanted > 0, np.inf, -np.inf)


class Whim(Admission):
    """Any budget, and whoever it pleases."""

    def bind(self, cost, rng):
        self.rng = rng

    def budget(self, load):
        return Budget(*self.rng.integers(0, 20, 3).tolist())

    def enters(self, load, newcomer):
        return bool(self.rng.integers(2))


@st.composite
def admissions(draw):
    rows = draw(st.integers(1, 40))
    chunk, batch = draw(st.integers(0, 20)), draw(st.integers(1, 9))
    names = (
        f"sarathi-serve:rows={rows},chunk={chunk}",
        f"alternating:rows={rows}",
        f"prefill-first:rows={rows}",
        f"whole-prompt:batch={batch}",
        f"static:batch={batch}",
    )
    return draw(st.sampled_from([names[0], *names, Whim()]))


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
            "admission": draw(admissions()),
            "order": draw(st.sampled_from(["fcfs", "shortest"])),
            "reuse": draw(st.booleans()),
            "retention": draw(st.sampled_from(["lru", "planned", Forgetful()])),
            "vocabulary": draw(st.sampled_from([3, 50])),
            **draw(st.sampled_from(LAYOUTS)),
        },
        "seed": draw(st.integers(0, 2**32 - 1)),
        "requests": draw(st.integers(1, 10)),
        "abort": draw(st.booleans()),
        "arrive_late": draw(st.booleans()),
        "plan": draw(st.sampled_from(["none", "nested", "one level"])),
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


def planned(requests, page_size, kind):
    """The same requests as a plan would send them: with the prefixes that several begin with, nested in one
    domain, or the longest alone in a domain of its own."""
    begin = [
        {tuple(r.prompt[:end].tolist()) for end in range(page_size, len(r.prompt) + 1, page_size)}
        for r in requests
    ]
    members = Counter(prefix for own in begin for prefix in own)
    node = {prefix: i for i, prefix in enumerate(sorted(members))}
    paths = [sorted((prefix for prefix in own if members[prefix] > 1), key=len) for own in begin]
    if kind == "one level":
        paths = [path[-1:] for path in paths]
        members = Counter(prefix for path in paths for prefix in path)
    for r, path in zip(requests, paths):
        shared = tuple(SharedPrefix(node[prefix], len(prefix), members[prefix]) for prefix in path)
        if kind == "none" or not path:
            yield r
        elif kind == "nested":
            yield msgspec.structs.replace(r, path=shared)
        else:
            last = shared[0]
            yield msgspec.structs.replace(r, path=shared, domain=last.node + 1, shared=last.tokens)


@settings(max_examples=SCENARIOS, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(scenarios())
def test_every_request_is_answered_once_and_right(scenario):
    engine = null_engine(**scenario["engine"])
    rng = np.random.default_rng(scenario["seed"])
    kind = scenario["engine"]
    requests = list(mixed_requests(rng, scenario["requests"], kind["max_length"], kind["vocabulary"]))
    requests = list(planned(requests, kind["page_size"], scenario["plan"]))
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
    assert engine.memory.prefix.pinned == 0, "what nobody will come for is pinned no longer"


def test_a_failed_step_fails_its_requests_and_no_other():
    failing = {3}
    seen = []

    def fail(plan):
        seen.append(plan.step)
        return RuntimeError("broken on purpose") if plan.step in failing else None

    engine = null_engine(fail=fail, max_running=2, admission="sarathi-serve:rows=8")
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
    engine = null_engine(admission="sarathi-serve:rows=64", max_running=8)
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


def group(members, prefix, first, **fields):
    """``members`` requests that a plan knows to begin with ``prefix``."""
    path = (SharedPrefix(first, len(prefix), members),)
    for i in range(members):
        own = request(f"g{first}.{i}", [*prefix, 40, first % 40, i], max_tokens=2, ignore_eos=True)
        yield msgspec.structs.replace(own, path=path, **fields)


def test_a_planned_prefix_is_computed_once_however_short_memory_is():
    """Two groups take turns, one sequence at a time, and the pool holds hardly more than both prefixes."""
    wide = [list(range(1, 17)), list(range(20, 36))]

    def computed(retention):
        engine = null_engine(pages=12, page_size=4, max_length=24, max_running=1, retention=retention)
        turns = zip(*(group(4, prefix, i) for i, prefix in enumerate(wide)))
        other = request("other", list(range(1, 20))[::-1], max_tokens=3, ignore_eos=True)
        for pair in turns:
            for item in pair:
                engine.add(item, 0.0)
        engine.add(other, 0.0)
        assert len(drain(engine)) == 9
        return engine.scheduler.counters

    kept = computed("planned")
    # Each prefix once; each member's three tokens and its first answer token; the other's prompt and answer.
    assert kept.computed == 2 * 16 + 8 * (3 + 1) + 19 + 2
    assert kept.preemptions == 0
    assert kept.generated == 8 + 2
    assert computed(Forgetful()).computed == kept.computed


def test_domains_share_nothing_and_a_limit_of_sharing_is_kept():
    engine = null_engine(pages=64, page_size=4, max_running=1)
    prefix = list(range(1, 17))
    for item in [*group(2, prefix, 0, domain=1, shared=8), *group(2, prefix, 1, domain=2)]:
        engine.add(item, 0.0)
    answers = drain(engine)
    assert [answers[name].cached for name in ("g0.0", "g0.1", "g1.0", "g1.1")] == [0, 8, 0, 16]


def test_pins_break_when_nothing_else_could_run():
    """Members that never come keep their prefix pinned; a long sequence that needs the room still runs."""
    engine = null_engine(pages=8, page_size=4, max_length=32, max_running=4)
    first, *_ = group(5, list(range(1, 17)), 0)
    engine.add(first, 0.0)
    drain(engine)
    assert engine.memory.prefix.pinned == 4
    long = request("long", list(range(1, 30))[::-1], max_tokens=3, ignore_eos=True)
    engine.add(long, 0.0)
    assert drain(engine)["long"].tokens.tolist() == expected(engine, long)

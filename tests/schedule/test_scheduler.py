"""What the mechanism promises whatever the policies answer."""

from __future__ import annotations

import numpy as np
import pytest

from shoal.core.errors import CallerError
from shoal.core.policy import Admission, Budget, Order, Victim
from shoal.core.request import FinishReason
from tests.engine.harness import drain, expected, null_engine, request


def test_no_step_exceeds_the_row_budget_and_every_plan_is_consistent():
    engine = null_engine(admission="sarathi-serve:rows=8,chunk=3", max_running=4)
    for i in range(6):
        engine.add(request(f"r{i}", [i + 1] * (5 + i), max_tokens=4), 0.0)
    schedule = engine.scheduler.schedule

    def watched(now):
        plans = schedule(now)
        for plan in plans:
            plan.check(engine.memory.page_size)
            assert plan.row_count <= 8
            assert plan.rows.max() <= 3
            assert plan.run_count <= 4
        return plans

    engine.scheduler.schedule = watched
    assert len(drain(engine)) == 6


def test_a_long_prompt_does_not_hold_up_sequences_with_one_row_to_do():
    engine = null_engine(admission="sarathi-serve:rows=4", max_running=4, pages=64)
    engine.add(request("short", [1, 2, 3], max_tokens=6, ignore_eos=True), 0.0)
    engine.step(0.0)
    engine.add(request("long", list(range(1, 41)), max_tokens=2, ignore_eos=True), 1.0)
    answers = drain(engine)
    steps_of_short = answers["short"].ended
    assert steps_of_short <= answers["long"].first_token


def test_the_order_policy_decides_who_enters_first():
    class Backwards(Order):
        """Last come, first served."""

        def key(self, sequence):
            return -sequence.handle

    engine = null_engine(order=Backwards(), max_running=1)
    for i in range(4):
        engine.add(request(f"r{i}", [1, 2, i], max_tokens=1), 0.0)
    ended = []
    while not engine.idle:
        ended += [f.request.id for f in engine.step(float(len(ended))).finished]
    assert ended == ["r3", "r2", "r1", "r0"]


def test_a_dynamic_order_is_asked_again_every_step():
    class Flip(Order):
        """Arrival order in even seconds, reversed in odd ones."""

        dynamic = True

        def keys(self, view):
            return view.handle.astype(np.float64) * (1 if int(view.now) % 2 == 0 else -1)

    engine = null_engine(order=Flip(), max_running=1)
    for i in range(4):
        engine.add(request(f"r{i}", [1, 2, i], max_tokens=1), 0.0)
    ended, step = [], 0
    while not engine.idle:
        ended += [f.request.id for f in engine.step(float(step)).finished]
        engine.check()
        step += 1
    assert ended == ["r0", "r3", "r1", "r2"]


def test_a_policy_that_wants_nothing_cannot_stop_progress():
    class Never(Admission):
        """No rows, nobody."""

        def budget(self, load):
            return Budget(0, 0, 0)

        def enters(self, load, newcomer):
            return False

    engine = null_engine(admission=Never())
    requests = [request(f"r{i}", [1, 2, 3, i], max_tokens=3) for i in range(3)]
    for item in requests:
        engine.add(item, 0.0)
    answers = drain(engine)
    assert all(answers[r.id].tokens.tolist() == expected(engine, r) for r in requests)


def test_the_worst_victim_policy_still_lets_everybody_finish():
    class Oldest(Victim):
        """Always the candidate that has come furthest."""

        def choose(self, candidates):
            return int(np.argmax(candidates.computed))

    engine = null_engine(victim=Oldest(), pages=10, page_size=2, max_length=20, max_running=6, vocabulary=997)
    requests = [request(f"r{i}", [i + 1, i + 2], max_tokens=16, ignore_eos=True) for i in range(6)]
    for item in requests:
        engine.add(item, 0.0)
    answers = drain(engine)
    assert engine.scheduler.counters.preemptions > 0
    assert all(answers[r.id].tokens.tolist() == expected(engine, r) for r in requests)


def test_small_requests_pass_one_that_does_not_fit_but_not_for_ever():
    engine = null_engine(pages=12, page_size=2, max_length=24, max_running=4, reuse=False)
    engine.add(request("first", [1] * 8, max_tokens=15, ignore_eos=True), 0.0)
    engine.step(0.0)
    engine.add(request("big", [2] * 22, max_tokens=2, ignore_eos=True), 1.0)
    for i in range(40):
        engine.add(request(f"small{i}", [3, i], max_tokens=2, ignore_eos=True), 2.0)
    ended = []
    for step in range(1, 1000):
        ended += [f.request.id for f in engine.step(float(step)).finished]
        engine.check()
        if engine.idle:
            break
    assert ended.index("small0") < ended.index("big"), "what fits goes on"
    assert ended.index("big") < ended.index("small39"), "nobody is passed for ever"


@pytest.mark.parametrize(
    ("prompt", "words"), [([], "empty"), (list(range(64)), "64 tokens, the longest sequence is 64")]
)
def test_what_can_never_be_answered_is_refused_and_leaves_nothing(prompt, words):
    engine = null_engine(pages=16, page_size=4, max_length=64, vocabulary=100)
    with pytest.raises(CallerError, match=words):
        engine.add(request("r", prompt), 0.0)
    assert engine.idle
    engine.check()


def test_the_longest_sequence_that_fits_is_answered():
    engine = null_engine(pages=4, page_size=4, max_length=16, vocabulary=100)
    item = request("r", list(range(1, 16)), max_tokens=50, ignore_eos=True)
    engine.add(item, 0.0)
    answer = drain(engine)["r"]
    assert answer.reason is FinishReason.LENGTH
    assert answer.tokens.tolist() == expected(engine, item)
    assert len(answer.tokens) == 1


def test_counts_add_up():
    engine = null_engine(pages=10, page_size=2, max_length=20, max_running=6, vocabulary=997)
    for i in range(8):
        engine.add(request(f"r{i}", [7, 8, 9, i], max_tokens=12, ignore_eos=True), 0.0)
    answers = drain(engine).values()
    counters = engine.scheduler.counters
    assert sum(a.computed for a in answers) == counters.computed
    assert sum(len(a.tokens) for a in answers) == counters.emitted
    assert sum(a.preemptions for a in answers) == counters.preemptions
    assert sum(a.lost for a in answers) == counters.lost


def test_pressure_on_pages_never_takes_from_the_first_in_order():
    engine = null_engine(pages=10, page_size=2, max_length=20, max_running=5, vocabulary=997)
    for i in range(5):
        engine.add(request(f"r{i}", [1, i], max_tokens=17, ignore_eos=True), 0.0)
    answers = drain(engine)
    assert answers["r0"].preemptions == 0
    assert sum(a.preemptions for a in answers.values()) > 0


def test_counts_of_every_answer_add_up_whatever_was_shared_and_preempted():
    # Chunks of one row let a sequence find, midway, pages that another has filled in the meantime.
    engine = null_engine(
        pages=14,
        page_size=1,
        max_length=12,
        max_running=6,
        admission="sarathi-serve:rows=3,chunk=1",
        vocabulary=997,
    )
    for i in range(6):
        engine.add(request(f"r{i}", [7, 8, 9, 7, i % 2], max_tokens=6, ignore_eos=True), 0.0)
    answers = drain(engine).values()
    assert sum(a.cached for a in answers) > 0
    for a in answers:
        assert a.cached + a.computed - a.lost == len(a.request.prompt) + len(a.tokens) - 1


def test_somebody_gets_on_when_those_with_rows_had_to_yield():
    class Whim(Admission):
        """Rows for whoever, chunks of any size."""

        def bind(self, cost, rng):
            self.rng = rng

        def budget(self, load):
            return Budget(*self.rng.integers(0, 9, 3).tolist())

    for seed in range(60):
        engine = null_engine(
            pages=13, page_size=1, max_length=13, admission=Whim(), seed=seed, vocabulary=997
        )
        requests = [request(f"r{i}", [1, 2, 3, i], max_tokens=9, ignore_eos=True) for i in range(5)]
        for item in requests:
            engine.add(item, 0.0)
        answers = drain(engine)
        assert all(answers[r.id].tokens.tolist() == expected(engine, r) for r in requests)

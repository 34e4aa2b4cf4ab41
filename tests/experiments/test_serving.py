"""What those who wait for tokens see is measured right."""

from __future__ import annotations

import numpy as np
import pytest

from shoal.core.cost import CostTable
from shoal.core.plan import StepResult
from shoal.core.policy import Budget
from shoal.engine.priced import JumpingClock
from shoal.experiments.benches import MACHINE, chat, request, simulated_engine
from shoal.experiments.sarathi_serve import _reading
from shoal.experiments.serving import Arrival, Noting, OnTableTime, Served, WallClock, differing, serve
from shoal.schedule.admission.sarathi_serve import SarathiServe
from tests.engine.harness import expected


def test_every_token_has_its_time_and_every_answer_is_right():
    rng = np.random.default_rng(0)
    items = chat(rng, 6, prompt=20.0, answer=5.0, most=60)
    engine, clock = simulated_engine(SarathiServe(rows=16))
    served = serve(engine, clock, [Arrival(item, 0.05 * i) for i, item in enumerate(items)], check=True)
    assert isinstance(clock, JumpingClock)
    assert served.seconds == pytest.approx(clock())
    for item in items:
        assert served.tokens[item.id] == expected(engine, item)
        assert len(served.times[item.id]) == len(served.tokens[item.id])
        assert served.first_token(item.id) > 0
    ends = {step.end for step in served.steps}
    assert all(time in ends for times in served.times.values() for time in times)
    at, gap = served.gaps()
    assert len(at) == sum(len(tokens) - 1 for tokens in served.tokens.values())
    assert gap.min() > 0
    assert sum(step.rows for step in served.steps) == sum(
        len(item.prompt) + len(served.tokens[item.id]) - 1 for item in items
    )


def test_who_gets_no_token_is_passed_over():
    # Both enter in the first step; then one of the two gets its next token.
    engine, clock = simulated_engine(SarathiServe(rows=16))
    engine.scheduler.admission.budget = lambda load: Budget(2, 1, 1)
    items = [request(f"r{i}", [1 + i], 4) for i in range(2)]
    served = serve(engine, clock, map(Arrival, items))
    assert sum(step.passed_over for step in served.steps) >= 3


def test_a_request_comes_at_its_step_or_its_second_and_idle_time_is_jumped_over():
    engine, clock = simulated_engine(SarathiServe(rows=16))
    first, second, third = (request(f"r{i}", [1, 2, 3 + i], 6) for i in range(3))
    served = serve(engine, clock, [Arrival(first), Arrival(second, step=3), Arrival(third, 100.0)])
    assert served.arrived["r1"] == served.steps[2].end
    assert served.arrived["r2"] == 100.0
    assert served.times["r2"][0] == pytest.approx(100.0 + served.steps[-6].end - served.steps[-6].begin)
    wall = WallClock()
    wall.jump_to(50.0)
    assert 50.0 <= wall() < 60.0
    wall.jump_to(10.0)
    assert 50.0 <= wall() < 60.0, "time never runs backwards"


def test_a_course_is_retimed_step_by_step_and_idle_time_stays():
    engine, clock = simulated_engine(SarathiServe(rows=16))
    items = [request(f"r{i}", [1, 2, 3 + i], 3) for i in range(2)]
    served = serve(engine, clock, [Arrival(items[0]), Arrival(items[1], 100.0)])
    slower = served.retimed([2 * (step.end - step.begin) for step in served.steps])
    for name, at in served.times.items():
        waited = [time - served.arrived[name] for time in at]
        assert [time - slower.arrived[name] for time in slower.times[name]] == pytest.approx(
            [2 * each for each in waited]
        )
    idle = served.steps[-3].begin - served.steps[-4].end
    assert slower.steps[-3].begin - slower.steps[-4].end == pytest.approx(idle)
    assert slower.gaps()[1] == pytest.approx(2 * served.gaps()[1])
    # Who comes in the middle of a step comes in the middle of it still.
    served.arrived["r1"] = (served.steps[0].begin + served.steps[0].end) / 2
    took = [3 * (step.end - step.begin) for step in served.steps]
    assert served.retimed(took).arrived["r1"] == pytest.approx(took[0] / 2)


def test_on_table_time_a_step_takes_what_the_table_says_and_is_computed_all_the_same():
    items = [request(f"r{i}", [1, 2, 3 + i], 4) for i in range(3)]
    engine, clock = simulated_engine(SarathiServe(rows=16))
    priced = serve(engine, clock, map(Arrival, items))
    engine, _ = simulated_engine(SarathiServe(rows=16))
    clock = JumpingClock()
    engine.executor = OnTableTime(engine.executor, MACHINE, clock)
    computed = serve(engine, clock, map(Arrival, items))
    assert computed.times == priced.times
    assert computed.tokens == priced.tokens
    assert all(step.wall > 0 for step in computed.steps)


def test_answers_that_part_are_counted_and_near_ties_excused():
    one = Served(tokens={"a": [1, 2], "b": [3, 4], "c": [5]}, margins={"a": [1, 1], "b": [1, 1e-6], "c": []})
    other = Served(tokens={"a": [1, 2], "b": [3, 5], "c": [6]}, margins={"a": [1, 1], "b": [1, 1], "c": []})
    assert differing(one, other) == (2, 0)
    assert differing(one, other, close=1e-4) == (1, 1)


def test_margins_of_the_last_step_are_kept():
    class Inner:
        pages = 7

        def poll(self):
            return [StepResult(1, np.zeros(2, np.int32), 0.0, margins=np.array([0.5, 0.25], np.float32))]

    noting = Noting(Inner())
    assert noting.pages == 7
    assert len(noting.poll()) == 1
    assert noting.margins.tolist() == [0.5, 0.25]


def test_lengths_are_the_same_for_every_seed_but_for_their_order():
    one, other = (chat(np.random.default_rng(s), 9, prompt=50.0, answer=9.0, most=400) for s in (1, 2))
    lengths = [[len(item.prompt) for item in each] for each in (one, other)]
    assert lengths[0] != lengths[1]
    assert sorted(lengths[0]) == sorted(lengths[1])
    assert np.median(lengths[0]) == 50


def test_reading_a_prompt_in_chunks_costs_what_its_steps_cost():
    assert _reading(MACHINE, 100, 200, 0) == pytest.approx(MACHINE.rows(100))
    flat = CostTable(row_counts=(1,), row_seconds=(1.0,))
    assert _reading(flat, 100, 30, 5) == pytest.approx(30 + 30 + 30 + 30)

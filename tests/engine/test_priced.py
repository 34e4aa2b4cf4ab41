"""Simulated time: real decisions, priced steps."""

from __future__ import annotations

import numpy as np
import pytest

from shoal.core.config import EngineConfig
from shoal.core.cost import ConstantCost, StepShape, choice_of
from shoal.core.errors import InternalError
from shoal.core.request import Request, SamplingParams
from shoal.engine.build import assemble, prepare, start
from shoal.engine.null_model import RESERVED
from shoal.engine.priced import JumpingClock, PricedExecutor, run_to_end
from tests.engine.harness import drain

PREPARED = prepare(EngineConfig(model="null", max_num_seqs=4, max_model_len=256, max_num_batched_tokens=64))


class RowCost:
    """A tenth of a second for each row."""

    def step(self, shape: StepShape) -> float:
        return 0.1 * shape.rows

    def rows(self, count: int) -> float:
        return 0.1 * count


def priced(cost=None, arithmetic=False):
    clock = JumpingClock()
    executor = PricedExecutor(
        cost or ConstantCost(1.0),
        clock,
        PREPARED.pages,
        16,
        PREPARED.model.vocabulary,
        arithmetic=arithmetic,
        reserved=RESERVED,
    )
    return assemble(PREPARED.config, executor, PREPARED.model), clock


def ask(name, prompt, answer=4):
    params = SamplingParams(temperature=0.0, max_tokens=answer, ignore_eos=True)
    return Request(id=str(name), prompt=np.asarray(prompt, dtype=np.int32), params=params)


def test_a_clock_never_runs_backwards():
    clock = JumpingClock(5.0)
    clock.jump_to(3.0)
    clock.advance(0.5)
    assert clock() == 5.5
    clock.jump_to(7.0)
    assert clock() == 7.0
    for seconds in (-1.0, float("nan")):
        with pytest.raises(InternalError, match="advance"):
            clock.advance(seconds)


def test_tokens_exist_when_their_step_has_been_paid():
    engine, clock = priced(RowCost())
    run = run_to_end(engine, clock, [(0.0, ask(0, range(10, 30)))], record=True)
    assert [record.shape.rows for record in run.steps] == [20, 1, 1, 1]
    assert [record.end for record in run.steps] == pytest.approx([2.0, 2.1, 2.2, 2.3])
    (answer,) = run.finished
    assert (answer.first_token, answer.ended) == pytest.approx((2.0, 2.3))
    assert run.seconds == pytest.approx(2.3)


def test_the_clock_jumps_to_who_comes_next_and_nobody_is_seen_early():
    engine, clock = priced()
    coming = [(0.0, ask(0, [5, 6], 3)), (0.5, ask(1, [7, 8], 1)), (50.0, ask(2, [9], 2))]
    run = run_to_end(engine, clock, coming, record=True)
    ended = {answer.request.id: (answer.arrived, answer.admitted, answer.ended) for answer in run.finished}
    assert ended == {"0": (0.0, 0.0, 3.0), "1": (0.5, 1.0, 2.0), "2": (50.0, 50.0, 52.0)}
    assert len(run.steps) == 5


def test_with_arithmetic_the_answers_are_the_null_executors():
    rng = np.random.default_rng(7)
    requests = [ask(i, rng.integers(RESERVED, 200, rng.integers(1, 90)), 9) for i in range(12)]
    engine, clock = priced(RowCost(), arithmetic=True)
    got = {a.request.id: a for a in run_to_end(engine, clock, [(0.0, r) for r in requests]).finished}
    real = start(PREPARED)
    for request in requests:
        real.add(request, 0.0)
    want = drain(real)
    assert {name: a.tokens.tolist() for name, a in got.items()} == {
        name: a.tokens.tolist() for name, a in want.items()
    }


def test_a_step_is_priced_by_how_its_rows_choose():
    seen = []

    class Watching(ConstantCost):
        def step(self, shape):
            seen.append(shape)
            return 1.0

    engine, clock = priced(Watching(1.0))
    draws = SamplingParams(temperature=1.0, max_tokens=2, ignore_eos=True)
    penalised = SamplingParams(temperature=0.0, max_tokens=2, ignore_eos=True, presence_penalty=1.0)
    assert choice_of(draws) != choice_of(penalised)
    parts = [ask(0, [5, 6], 2)] + [
        Request(id=str(i), prompt=np.array([9, i], np.int32), params=params)
        for i, params in enumerate((draws, draws, penalised), 1)
    ]
    run_to_end(engine, clock, [(0.0, part) for part in parts])
    assert [(s.rows, s.emits, s.drawn, s.masked) for s in seen] == [(8, 4, 2, 1), (4, 4, 2, 1)]

"""A rehearsal computes what the real run computes, and leaves no trace in it."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from shoal.core.config import EngineConfig
from shoal.core.cost import ConstantCost, CostTable
from shoal.core.request import Request, SamplingParams
from shoal.engine.build import prepare, start
from shoal.engine.dry_run import expected, predict, predict_job
from shoal.schedule.order.fcfs import FCFS

COST = CostTable(row_counts=(1, 512), row_seconds=(0.05, 1.0), emit_counts=(1,), emit_seconds=(1e-3,))


def still() -> float:
    return 0.0


def requests(count, rng, common=64):
    """Groups of four with a beginning in common, answers of several lengths."""
    made, prefix = [], None
    for i in range(count):
        if i % 4 == 0:
            prefix = rng.integers(3, 250, common)
        prompt = np.concatenate([prefix, rng.integers(3, 250, rng.integers(1, 60))]).astype(np.int32)
        made.append(expected(Request(id=str(i), prompt=prompt, params=SamplingParams()), 1 + 7 * (i % 9)))
    return made


def really(prepared, asked):
    """The null engine, fed as a job feeds it: rows computed, tokens emitted, preemptions, most pages held,
    steps."""
    engine, coming, inside, peak = start(prepared), iter(asked), 0, 0
    submit = engine.executor.submit

    def watched(plan):
        nonlocal peak
        peak = max(peak, engine.memory.ledger.held)
        submit(plan)

    engine.executor.submit = watched
    while True:
        while inside < 512 and (request := next(coming, None)) is not None:
            engine.add(request, 0.0)
            inside += 1
        if engine.idle:
            break
        inside -= len(engine.step(0.0).finished)
    counters = engine.scheduler.counters
    return counters.computed, counters.emitted, counters.preemptions, peak, counters.steps


@pytest.mark.parametrize("memory", [None, 8 * 16 * 20])
@pytest.mark.parametrize(
    "policies",
    [
        {},
        {"admission": "prefill-first"},
        {"order": "shortest"},
        {"policy": "batchllm"},
        {"policy": "flover"},
        {"layout": "slots", "admission": "static"},
    ],
)
def test_it_computes_what_the_real_run_computes(memory, policies):
    if memory and ("layout" in policies or policies.get("policy") == "flover"):
        memory = 4 * 8 * 200
    config = EngineConfig(model="null", max_num_seqs=16, max_model_len=200, kv_memory=memory, **policies)
    prepared, asked = prepare(config), requests(60, np.random.default_rng(1))
    found = predict(prepared, COST, asked, timer=still)
    assert (
        found.computed,
        found.emitted,
        found.preemptions,
        found.peak_pages,
        found.steps,
    ) == really(prepared, asked)
    assert found.prompt == found.computed - (found.emitted - len(asked))
    if not policies:
        assert (memory is None) == (found.preemptions == 0)
    assert found == predict(prepared, COST, asked, timer=still)


def test_a_request_that_the_engine_refuses_is_counted_and_hinders_nobody():
    prepared = prepare(EngineConfig(model="null", max_model_len=100))
    long = Request(id="long", prompt=np.full(100, 7, np.int32), params=SamplingParams())
    short = expected(Request(id="short", prompt=np.full(9, 7, np.int32), params=SamplingParams()), 3)
    found = predict(prepared, ConstantCost(2.0), [expected(long, 3), short], timer=still)
    assert (found.refused, found.steps, found.seconds, found.emitted) == (1, 3, 6.0, 3)


def test_an_expected_answer_has_its_length_whatever_would_have_ended_it():
    params = SamplingParams(
        max_tokens=None, stop=("x",), stop_token_ids=(0,), min_tokens=5, logprobs=3, prompt_logprobs=1
    )
    request = expected(Request(id="r", prompt=np.array([4], np.int32), params=params, end_ids=(0,)), 2)
    assert request.params.max_tokens == 2
    assert request.params.prompt_logprobs == 1, "whoever wants them takes nothing from the cache"
    found = predict(prepare(EngineConfig(model="null")), ConstantCost(1.0), [request], timer=still)
    assert found.emitted == 2


@pytest.mark.parametrize(("answers", "budget"), [(1, 2e-4), (12, 2e-3)])
def test_a_large_job_is_told_from_stretches_of_it(answers, budget):
    prepared = prepare(EngineConfig(model="null", max_num_seqs=8, max_model_len=256))
    rng = np.random.default_rng(5)
    asked = [
        msgspec.structs.replace(r, params=msgspec.structs.replace(r.params, max_tokens=answers))
        for r in requests(1600, rng, common=32)
    ]
    whole = predict(prepared, COST, asked, timer=still)
    ticks = iter(range(10**9))

    def ticking():
        """A microsecond a look, so that the whole job does not fit the budget."""
        return 1e-6 * next(ticks)

    def read(start, stop):
        return asked[start:stop]

    computed, emitted = whole.computed, whole.emitted
    found = predict_job(prepared, COST, len(asked), read, computed, emitted, budget=budget, timer=ticking)
    assert not found.exact
    assert found.seconds == pytest.approx(whole.seconds, rel=0.1)
    assert (found.computed, found.prompt, found.emitted) == (whole.computed, whole.prompt, whole.emitted)
    assert found.steps == pytest.approx(whole.steps, rel=0.1)
    assert predict_job(prepared, COST, len(asked), read, computed, emitted, budget=1e9, timer=still) == whole


def test_a_rehearsal_leaves_the_callers_policies_alone():
    class Counting(FCFS):
        seen = 0

        def observe(self, event):
            self.seen += 1

    order = Counting()
    prepared = prepare(EngineConfig(model="null", order=order))
    predict(prepared, COST, requests(8, np.random.default_rng(0)), timer=still)
    assert order.seen == 0

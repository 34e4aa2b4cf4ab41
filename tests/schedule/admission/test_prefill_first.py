"""Prompts go first, whole, and alone."""

from __future__ import annotations

from shoal.schedule.admission.prefill_first import PrefillFirst
from tests.engine.harness import null_engine, request
from tests.schedule.admission.trace import computed_once, run, watch
from tests.sizes import size

SEEDS = range(size(6, 60))


def test_no_next_token_while_a_prompt_fits_and_every_prompt_in_one_piece():
    for seed in SEEDS:
        steps, engine = run(PrefillFirst(rows=64), seed, max_running=20)
        for step in steps:
            # There is always room here, so whoever waits enters.
            assert bool(step.prompts) == bool(step.waiting)
            assert not (step.prompts and step.answers)
            assert all(item.start == 0 and item.rows == item.prompt for item in step.prompts)
            if not step.waiting:
                assert {item.handle for item in step.answers} == step.ready
        assert computed_once(steps)
        assert engine.scheduler.counters.preemptions == 0


def test_prompts_share_a_step_up_to_the_limit_and_a_longer_one_goes_alone():
    engine = null_engine(
        admission=PrefillFirst(rows=20), pages=100, max_length=60, vocabulary=1000, reuse=False
    )
    steps = watch(engine)
    for i, length in enumerate((8, 8, 8, 40, 3)):
        engine.add(request(f"r{i}", [i + 1] * length, max_tokens=4, ignore_eos=True), 0.0)
    while not engine.idle:
        engine.step(0.0)
    assert [[item.rows for item in step.prompts] for step in steps[:4]] == [[8, 8], [8], [40], [3]]
    assert all(not step.answers for step in steps[:4])


def test_who_runs_goes_on_when_no_prompt_fits():
    engine = null_engine(
        admission=PrefillFirst(), pages=10, page_size=4, max_length=40, vocabulary=1000, reuse=False
    )
    steps = watch(engine)
    engine.add(request("first", [1] * 20, max_tokens=15, ignore_eos=True), 0.0)
    engine.step(0.0)
    engine.add(request("second", [2] * 20, max_tokens=3, ignore_eos=True), 0.0)
    while not engine.idle:
        engine.step(0.0)
        engine.check()
    second = next(i for i, step in enumerate(steps) if any(item.handle == 1 for item in step.runs))
    assert second >= 14, "it does not fit beside the first"
    assert all(len(step.answers) == 1 for step in steps[1:second])

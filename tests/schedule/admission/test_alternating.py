"""Prompt chunks and next tokens in turn."""

from __future__ import annotations

from shoal.schedule.admission.alternating import Alternating
from tests.engine.harness import null_engine, request
from tests.schedule.admission.trace import computed_once, run, watch
from tests.sizes import size

SEEDS = range(size(6, 60))


def test_no_step_mixes_prompts_and_next_tokens():
    for seed in SEEDS:
        steps, _ = run(Alternating(rows=16), seed, max_running=20)
        for step in steps:
            # The last row of a prompt, where a chunk left just one, counts as a next token.
            chunks = [item for item in step.prompts if item.rows > 1 or item.start == 0]
            assert not (chunks and step.answers)
            assert sum(item.rows for item in chunks) <= 16
            if step.answers:
                assert {item.handle for item in step.answers} == step.ready
        assert computed_once(steps)


def test_turns_alternate_while_both_have_something_to_do():
    engine = null_engine(
        admission=Alternating(rows=8), pages=100, max_length=80, vocabulary=1000, reuse=False
    )
    steps = watch(engine)
    engine.add(request("short", [1] * 4, max_tokens=20, ignore_eos=True), 0.0)
    engine.step(0.0)
    engine.add(request("long", [2] * 36, max_tokens=2, ignore_eos=True), 0.0)
    while not engine.idle:
        engine.step(0.0)
    kinds = ["prompt" if step.prompts else "answer" for step in steps[1:11]]
    assert kinds == ["answer", "prompt"] * 5
    assert [item.rows for step in steps[2:11:2] for item in step.runs] == [8, 8, 8, 8, 4]


def test_a_turn_that_nobody_can_use_falls_to_the_other_kind():
    steps, _ = run(Alternating(rows=4), 2, late=False, count=1)
    assert all(len(step.runs) == 1 for step in steps)

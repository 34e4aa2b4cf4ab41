"""Whole prompts beside everybody's next token; whoever enters has its room to the end."""

from __future__ import annotations

from shoal.schedule.admission.whole_prompt import WholePrompt
from tests.engine.harness import null_engine, request
from tests.schedule.admission.trace import computed_once, run, watch
from tests.sizes import size

SEEDS = range(size(6, 60))


def test_prompts_in_one_piece_beside_every_next_token():
    mixed_steps = 0
    for seed in SEEDS:
        steps, _ = run(WholePrompt(), seed, max_running=20)
        for step in steps:
            assert all(item.start == 0 and item.rows == item.prompt for item in step.prompts)
            assert {item.handle for item in step.answers} == step.ready
            mixed_steps += bool(step.prompts and step.answers)
        assert computed_once(steps)
    assert mixed_steps


def test_nobody_is_preempted_however_small_the_pool():
    for seed in SEEDS:
        for reuse in (False, True):
            _, engine = run(WholePrompt(), seed, pages=24, max_running=20, reuse=reuse, late=False)
            assert engine.scheduler.counters.preemptions == 0


def test_room_for_the_longest_answer_is_reserved():
    # 12 pages of 4; each needs 1 page for its prompt and 3 more for its answer: three fit, not four.
    engine = null_engine(
        admission=WholePrompt(), pages=12, page_size=4, max_length=48, vocabulary=1000, reuse=False
    )
    steps = watch(engine)
    for i in range(6):
        engine.add(request(f"r{i}", [i + 1] * 4, max_tokens=12, ignore_eos=True), 0.0)
    while not engine.idle:
        engine.step(0.0)
    assert max(len(step.runs) for step in steps) == 3


def test_the_batch_is_capped():
    steps, _ = run(WholePrompt(batch=3), 5, max_running=20)
    assert max(len(step.runs) for step in steps) == 3

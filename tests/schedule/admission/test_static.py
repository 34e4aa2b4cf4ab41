"""A batch runs to completion."""

from __future__ import annotations

from shoal.schedule.admission.static import Static
from tests.schedule.admission.trace import computed_once, run
from tests.sizes import size

SEEDS = range(size(6, 60))


def test_nobody_joins_those_who_run():
    for seed in SEEDS:
        steps, engine = run(Static(batch=5), seed, max_running=20)
        together: set[int] = set()
        for step in steps:
            here = {item.handle for item in step.runs}
            assert len(here) <= 5
            if step.prompts:
                assert not step.answers
                assert not step.ready, "a batch begins when the last one has ended"
                assert all(item.rows == item.prompt for item in step.prompts)
                together = here
            assert here <= together
        assert computed_once(steps)
        assert engine.scheduler.counters.preemptions == 0


def test_a_batch_is_as_large_as_it_may_be():
    steps, _ = run(Static(batch=5), 3, late=False, count=12, max_running=20)
    assert [len(step.runs) for step in steps if step.prompts] == [5, 5, 2]


def test_room_for_the_longest_answers_is_reserved():
    for seed in SEEDS:
        _, engine = run(Static(batch=9), seed, pages=24, max_running=20, late=False)
        assert engine.scheduler.counters.preemptions == 0

"""Sarathi-Serve steps as its pseudo-code says, and tau follows from measured seconds."""

from __future__ import annotations

import numpy as np
import pytest

from shoal.core.cost import CostTable
from shoal.schedule.admission.sarathi_serve import SIZES, UNMEASURED, SarathiServe, next_tokens, prompt_rows
from tests.engine.harness import null_engine
from tests.schedule.admission.trace import computed_once, mixed, run, watch
from tests.sizes import size

SEEDS = range(size(6, 60))


@pytest.mark.parametrize("tau", [1, 2, 7, 16, 64])
def test_no_step_exceeds_tau_and_everybody_with_a_next_token_is_in_it(tau):
    for seed in SEEDS:
        steps, engine = run(SarathiServe(rows=tau), seed)
        for step in steps:
            assert step.rows <= tau
            assert step.ready <= {item.handle for item in step.runs}
        assert computed_once(steps)
        assert engine.scheduler.counters.preemptions == 0


def published(requests, tau: int, most: int) -> list[dict[int, tuple[int, int]]]:
    """The paper's step in plain Python, memory without end: {number: (start, rows)} for each step.

    As here, whoever has one row to do counts as a decode, the last row of a prompt too.
    """
    prompt, limit = [len(r.prompt) for r in requests], [r.params.max_tokens for r in requests]
    done, out = [0] * len(requests), [0] * len(requests)
    waiting, running, steps = list(range(len(requests))), [], []
    while waiting or running:
        step, used = {}, 0
        todo = {i: prompt[i] + out[i] - done[i] for i in running}
        for i in running:
            if todo[i] == 1:
                step[i] = (done[i], 1)
                used += 1
        for i in running:
            rows = min(todo[i], tau - used)
            if todo[i] > 1 and rows > 0:
                step[i] = (done[i], rows)
                used += rows
        while waiting and len(running) < most and tau - used > 0:
            i = waiting.pop(0)
            running.append(i)
            rows = min(prompt[i], tau - used)
            step[i] = (0, rows)
            used += rows
        for i, (start, rows) in step.items():
            done[i] = start + rows
            out[i] += done[i] == prompt[i] + out[i]
        running = [i for i in running if out[i] < limit[i]]
        steps.append(step)
    return steps


@pytest.mark.parametrize("tau", [3, 8, 32])
def test_every_step_is_the_published_one(tau):
    for seed in SEEDS:
        requests = mixed(np.random.default_rng(seed), 10)
        engine = null_engine(
            admission=SarathiServe(rows=tau),
            pages=400,
            max_length=96,
            vocabulary=1000,
            max_running=4,
            reuse=False,
        )
        steps = watch(engine)
        number = {engine.add(item, 0.0): i for i, item in enumerate(requests)}
        while not engine.idle:
            engine.step(0.0)
        found = [{number[r.handle]: (r.start, r.rows) for r in step.runs} for step in steps]
        assert found == published(requests, tau, most=4)


def test_a_chunk_limit_bounds_every_sequence():
    steps, _ = run(SarathiServe(rows=16, chunk=5), 1)
    assert max(item.rows for step in steps for item in step.runs) == 5
    assert max(step.rows for step in steps) > 5


def table(seconds, **prices) -> CostTable:
    return CostTable(
        row_counts=SIZES,
        row_seconds=tuple(seconds(n) for n in SIZES),
        emit_counts=(0, 1),
        emit_seconds=(0.0, 0.0),
        **prices,
    )


def bound(cost, **parameters) -> int:
    policy = SarathiServe(**parameters)
    policy.bind(cost, np.random.default_rng(0))
    return policy.tau


def test_tau_is_the_smallest_size_that_reaches_the_share_of_the_best_rate():
    cost = table(lambda n: max(1.0, n / 128))  # flat until 128 rows saturate it
    assert bound(cost, share=1.0) == 128
    assert bound(cost, share=0.9) == 128
    assert bound(cost, share=0.7) == 96
    fixed = table(lambda n: 1.0 + n / 64)  # n / T = 64 n / (64 + n)
    best = 64 * SIZES[-1] / (64 + SIZES[-1])
    for share in (0.3, 0.6, 0.9, 0.99):
        chosen = bound(fixed, share=share)
        assert 64 * chosen / (64 + chosen) >= share * best
        below = [n for n in SIZES if n < chosen]
        assert all(64 * n / (64 + n) < share * best for n in below)


def test_reading_the_prompt_again_in_every_chunk_makes_tau_larger():
    flat = table(lambda n: max(1.0, n / 32))
    reread = table(lambda n: max(1.0, n / 32), gathered=0.01)
    assert bound(flat) < bound(reread)


def test_tau_is_the_largest_size_within_the_time_between_tokens():
    cost = table(lambda n: 0.001 * n, gathered=1e-6, pair=1e-8)
    for limit in (0.02, 0.1, 0.3, 2.0):
        chosen = bound(cost, tbt=limit)
        assert cost.step(prompt_rows(chosen)) <= limit
        above = [n for n in SIZES if n > chosen]
        assert all(cost.step(prompt_rows(n)) > limit for n in above)
    assert bound(cost, tbt=1e-9) == SIZES[0], "an objective that nothing meets takes the smallest"


def test_rows_asked_for_win_over_what_was_measured():
    cost = table(lambda n: 0.001 * n)
    assert bound(cost, rows=77, tbt=1.0) == 77
    assert bound(None, rows=77) == 77
    assert bound(None) == bound(None, tbt=0.1) == UNMEASURED


def test_next_tokens_count_too():
    # Prompt rows are best at once; choosing tokens pays off in numbers only.
    cost = CostTable(
        row_counts=(1, 4096), row_seconds=(0.001, 4.096), emit_counts=(1, 512), emit_seconds=(1.0, 1.0)
    )
    chosen = bound(cost)
    rates = {n: n / cost.step(next_tokens(n)) for n in SIZES}
    assert chosen > SIZES[0]
    assert rates[chosen] >= 0.95 * max(rates.values())

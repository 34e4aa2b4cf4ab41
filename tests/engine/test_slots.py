"""A fixed place a sequence under the real loop: the answers of pages, whatever moves or lies around."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from shoal.core.config import EngineConfig
from shoal.core.plan import NO_MOVES
from shoal.core.request import FinishReason, Request, SamplingParams
from shoal.engine.build import prepare, start
from shoal.kernels import attention
from tests.engine.harness import drain, overflow
from tests.models.tiny import VARIANTS, reference, save

BROKEN = 150


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save(reference(VARIANTS[0]), tmp_path_factory.mktemp("model"))


def engine_for(folder, **changes):
    return start(prepare(EngineConfig(model=str(folder), kv_memory=8 << 20, threads=1, **changes)))


def ask(name, ids, tokens):
    params = SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True)
    return Request(id=name, prompt=np.array(ids, dtype=np.int32), params=params)


def answers(engine, items):
    for item in items:
        engine.add(item, 0.0)
    return {name: (answer.reason, answer.tokens.tolist()) for name, answer in drain(engine).items()}


def items(count=14, seed=5):
    rng = np.random.default_rng(seed)
    for i in range(count):
        yield ask(f"r{i}", rng.integers(3, 140, rng.integers(1, 40)), int(rng.integers(1, 30)))


def test_only_places_of_the_window_are_read(folder, monkeypatch):
    """All others hold no numbers at all in every step, and nothing is gathered instead."""
    want = answers(engine_for(folder), items())
    engine = engine_for(folder, policy="flover", max_num_seqs=6)
    cache, memory, submit = engine.executor.cache, engine.memory, engine.executor.submit
    for layer in (*cache.keys, *cache.values):
        layer.zero_()
    steps = []

    def poisoned(plan):
        for source, target, slots in plan.moves.tolist():
            cache.move(source, target, slots)
        for layer in (*cache.keys, *cache.values):
            layer[:, : memory.lo] = torch.nan
            layer[:, memory.hi :] = torch.nan
        submit(replace(plan, moves=NO_MOVES))
        steps.append((memory.lo, memory.hi, len(plan.moves)))
        for layer in (*cache.keys, *cache.values):
            layer.nan_to_num_(nan=0.0)

    engine.executor.submit = poisoned
    monkeypatch.setattr(attention, "_gather", None)
    assert answers(engine, items()) == want
    assert sum(moves for _, _, moves in steps) == engine.memory.moved > 0
    assert any(lo > 0 for lo, _, _ in steps)


@pytest.mark.parametrize("joins", [0, 1])
def test_whoever_joins_when_gets_the_same_answer(folder, joins):
    want = answers(engine_for(folder), items())
    engine = engine_for(folder, policy=f"flover:joins={joins},rows=16", max_num_seqs=5)
    assert answers(engine, items()) == want
    assert engine.scheduler.counters.preemptions == 0


def test_a_broken_run_fails_alone_and_the_moves_are_not_made_twice(folder):
    """The step is computed again run by run; what others moved stays where it is."""
    wishes = [*items(6), ask("broken", [5, 6, BROKEN], 9), *items(14, seed=8)]
    wishes = [ask(f"{i}-{w.id}", w.prompt, w.params.max_tokens) for i, w in enumerate(wishes)]
    want = answers(engine_for(folder), wishes)
    engine = engine_for(folder, policy="flover:joins=1", max_num_seqs=4)
    inputs = engine.executor.model.inputs

    def breaks(plan, cache):
        if np.any((plan.token == BROKEN) & (plan.position < 3)):
            raise RuntimeError("this token breaks the machine")
        return inputs(plan, cache)

    engine.executor.model.inputs = breaks
    got = answers(engine, wishes)
    assert got.pop("6-broken")[0] is FinishReason.ERROR
    assert got == {name: answer for name, answer in want.items() if name != "6-broken"}
    assert engine.memory.moved > 0


def test_numbers_that_overflowed_stay_with_their_sequence(folder):
    """Places of a run that overflowed are used again by others."""
    healthy = [ask(f"r{i}", [5, 6, 7 + i], 6) for i in range(3)]
    want = answers(engine_for(folder), healthy)
    engine = engine_for(folder, policy="flover", max_num_seqs=4)
    overflow(engine, BROKEN)
    got = answers(engine, [ask("broken", [5, BROKEN, 6] * 9, 6), *healthy])
    assert got.pop("broken")[0] is FinishReason.ERROR
    assert got == want
    assert answers(engine, healthy) == want

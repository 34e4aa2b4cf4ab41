"""A run that breaks takes no other with it."""

from __future__ import annotations

import numpy as np
import pytest

from shoal.core.config import EngineConfig
from shoal.core.request import FinishReason, Request, SamplingParams
from shoal.engine.build import prepare, start
from tests.engine.harness import drain
from tests.models.tiny import VARIANTS, reference, save

POISON = 150


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save(reference(VARIANTS[0]), tmp_path_factory.mktemp("model"))


def engine_that_breaks_on(folder, poison):
    engine = start(prepare(EngineConfig(model=str(folder), kv_memory=8 << 20, threads=1)))
    inputs = engine.executor.model.inputs

    def watched(plan, page_size):
        if poison in plan.token:
            raise RuntimeError("this token breaks the machine")
        return inputs(plan, page_size)

    engine.executor.model.inputs = watched
    return engine


def ask(name, ids):
    params = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True)
    return Request(id=name, prompt=np.array(ids, dtype=np.int32), params=params)


def test_a_broken_run_fails_alone(folder):
    requests = [ask(f"r{i}", [5, 6, 7 + i]) for i in range(6)]
    requests.insert(3, ask("broken", [5, 6, POISON]))
    plain = engine_that_breaks_on(folder, None)
    engine = engine_that_breaks_on(folder, POISON)
    for item in requests:
        plain.add(item, 0.0)
        engine.add(item, 0.0)
    want, got = drain(plain), drain(engine)
    assert got["broken"].reason is FinishReason.ERROR
    assert "breaks the machine" in str(got["broken"].error)
    for item in requests:
        if item.id != "broken":
            assert got[item.id].tokens.tolist() == want[item.id].tokens.tolist()


def test_who_reads_a_broken_prefix_in_the_same_step_fails_and_the_prefix_is_forgotten(folder):
    engine = engine_that_breaks_on(folder, POISON)
    prefix = [POISON, *range(10, 41)]
    engine.add(ask("writer", [*prefix, 50]), 0.0)
    engine.add(ask("reader", [*prefix, 51]), 0.0)
    engine.add(ask("stranger", list(range(60, 90))), 0.0)
    got = drain(engine)
    assert got["writer"].reason is got["reader"].reason is FinishReason.ERROR
    assert got["stranger"].reason is FinishReason.LENGTH
    found = engine.memory.prefix.match(-1, np.array(prefix, dtype=np.int32))
    assert found == []
    assert engine.memory.ledger.held == 0

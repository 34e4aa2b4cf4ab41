"""A run that breaks takes no other with it; log-probabilities are each row's own."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from shoal.core.config import EngineConfig
from shoal.core.request import FinishReason, Request, SamplingParams
from shoal.engine.build import prepare, start
from shoal.engine.tensors.model_executor import LOGIT_ROWS
from tests.engine.harness import drain, overflow
from tests.models.tiny import VARIANTS, reference, save

POISON = 150


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save(reference(VARIANTS[0]), tmp_path_factory.mktemp("model"))


def engine_that_breaks_on(folder, poison):
    engine = start(prepare(EngineConfig(model=str(folder), kv_memory=8 << 20, threads=1)))
    inputs = engine.executor.model.inputs

    def watched(plan, cache):
        if poison in plan.token:
            raise RuntimeError("this token breaks the machine")
        return inputs(plan, cache)

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


@pytest.fixture(scope="module")
def theirs(folder):
    from transformers import LlamaForCausalLM

    return LlamaForCausalLM.from_pretrained(folder)


def reference_logprobs(theirs, ids):
    with torch.inference_mode():
        return torch.log_softmax(theirs(torch.tensor([ids])).logits[0].float(), -1)


def test_log_probabilities_of_a_crowd_are_each_rows_own(folder, theirs):
    """More emitting rows in one step than logits exist at once, with different wishes among them."""
    engine = start(prepare(EngineConfig(model=str(folder), kv_memory=8 << 20, threads=1)))
    rng = np.random.default_rng()
    wishes = [None, 0, 2, 5]
    for i in range(LOGIT_ROWS + 20):
        ids = rng.integers(3, 140, int(rng.integers(1, 6))).astype(np.int32)
        wish = wishes[i % 4]
        params = SamplingParams(temperature=0.0, max_tokens=3, ignore_eos=True, logprobs=wish)
        engine.add(Request(id=f"r{i}", prompt=ids, params=params), 0.0)
    for i, answer in ((int(name[1:]), answer) for name, answer in drain(engine).items()):
        wish = wishes[i % 4]
        if wish is None:
            assert answer.logprobs is None
            continue
        known = answer.request.prompt.tolist()
        for token, found in zip(answer.tokens.tolist(), answer.logprobs, strict=True):
            wanted = reference_logprobs(theirs, known)[-1]
            assert found.token == token
            assert found.logprob == pytest.approx(float(wanted[token]), abs=1e-4)
            assert [value for _, value in found.top] == pytest.approx(
                wanted.topk(wish).values.tolist(), abs=1e-4
            )
            assert all(value == pytest.approx(float(wanted[other]), abs=1e-4) for other, value in found.top)
            known.append(token)


def test_log_probabilities_of_a_prompt_are_the_same_cold_and_warm(folder, theirs):
    engine = start(prepare(EngineConfig(model=str(folder), kv_memory=8 << 20, threads=1)))
    ids = np.random.default_rng().integers(3, 140, 40).astype(np.int32)
    wanted = reference_logprobs(theirs, ids.tolist())
    params = SamplingParams(temperature=0.0, max_tokens=1, ignore_eos=True, prompt_logprobs=1)
    for turn in ("cold", "warm"):
        engine.add(Request(id=turn, prompt=ids, params=params), 0.0)
        found = drain(engine)[turn].prompt_logprobs
        assert found[0] is None
        for place, one in enumerate(found[1:], start=1):
            assert one.token == ids[place]
            assert one.logprob == pytest.approx(float(wanted[place - 1, ids[place]]), abs=1e-4)


def test_rows_that_are_not_numbers_fail_alone_and_leave_nothing_behind(folder):
    """Pages of a run that overflowed are used again by others."""
    engine = start(prepare(EngineConfig(model=str(folder), kv_memory=1 << 18, threads=1)))
    overflow(engine, POISON)
    healthy = [ask(f"r{i}", [5, 6, 7 + i]) for i in range(3)]
    for name, requests in (("first", [ask("broken", [5, POISON, 6] * 9), *healthy]), ("second", healthy)):
        for item in requests:
            engine.add(item, 0.0)
        got = drain(engine)
        assert name == "second" or got["broken"].reason is FinishReason.ERROR
        assert all(got[item.id].reason is FinishReason.LENGTH for item in healthy)

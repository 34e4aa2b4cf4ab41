"""Ends of answers: stop strings, stop ids, lengths, aborts, refusals."""

from __future__ import annotations

import numpy as np
import pytest

from shoal.core.config import EngineConfig
from shoal.core.errors import CallerError
from shoal.core.request import FinishReason, Request, SamplingParams, fan_out
from shoal.engine.build import prepare, start
from tests.engine.harness import drain


@pytest.fixture
def engine():
    return start(prepare(EngineConfig(model="null", max_model_len=200, max_num_batched_tokens=32)))


def ask(engine, text, name="r", **params):
    tokenizer = engine.answers.model.tokenizer
    fields = {"temperature": 0.0, "max_tokens": 30, "ignore_eos": True} | params
    return Request(id=name, prompt=tokenizer.encode(text), params=SamplingParams(**fields))


def answer(engine, request):
    engine.add(request, 0.0)
    return drain(engine)[request.id]


def test_a_stop_string_ends_the_text_before_it_wherever_tokens_break(engine):
    decode = engine.answers.model.tokenizer.decode
    whole = answer(engine, ask(engine, "hello"))
    text = decode(whole.tokens)
    for at in range(1, len(text) - 3):
        stop = text[at : at + 3]
        got = answer(engine, ask(engine, "hello", stop=(stop,)))
        assert got.text == text[: text.index(stop)]
        assert got.reason is FinishReason.STOP
        assert got.stop_reason == stop
        assert len(got.tokens) <= len(whole.tokens)


def test_a_stop_string_that_never_comes_changes_nothing(engine):
    whole = answer(engine, ask(engine, "hello"))
    watched = answer(engine, ask(engine, "hello", stop=("never in a random text",)))
    assert watched.tokens.tolist() == whole.tokens.tolist()
    assert watched.text == engine.answers.model.tokenizer.decode(whole.tokens)
    assert watched.reason is FinishReason.LENGTH


def test_min_tokens_puts_off_stop_strings_and_stop_ids(engine):
    whole = answer(engine, ask(engine, "hello"))
    second = int(whole.tokens[1])
    assert len(answer(engine, ask(engine, "hello", stop_token_ids=(second,))).tokens) == 2
    later = answer(engine, ask(engine, "hello", stop_token_ids=(second,), min_tokens=5))
    assert len(later.tokens) > 5
    stop = engine.answers.model.tokenizer.decode(whole.tokens)[1:2]
    texts = answer(engine, ask(engine, "hello", stop=(stop,), min_tokens=5))
    assert len(texts.tokens) > 5


def test_an_abort_keeps_the_tokens_so_far_and_frees_the_pages(engine):
    request = ask(engine, "hello")
    handle = engine.add(request, 0.0)
    for step in range(6):
        engine.step(float(step))
    assert engine.abort(handle, 6.0)
    assert not engine.abort(handle, 6.0), "it has its answer"
    (finished,) = engine.step(7.0).finished
    assert finished.reason is FinishReason.ABORT
    assert len(finished.tokens) == 6
    assert engine.idle
    engine.check()
    assert engine.memory.ledger.held == 0


def test_aborting_a_waiting_request_answers_it_too(engine):
    handle = engine.add(ask(engine, "hello"), 0.0)
    engine.abort(handle, 0.0)
    (finished,) = engine.step(0.0).finished
    assert finished.reason is FinishReason.ABORT
    assert engine.idle
    engine.check()


def test_a_refused_request_leaves_nothing_behind(engine):
    def refuse(slot, request):
        raise CallerError("not today", remedy="come back")

    engine.executor.open = refuse
    with pytest.raises(CallerError, match="not today"):
        engine.add(ask(engine, "hello"), 0.0)
    assert engine.idle
    engine.check()


@pytest.mark.parametrize("token", [-1, 259, 2**31 - 1])
def test_an_id_outside_the_vocabulary_is_refused(engine, token):
    with pytest.raises(CallerError, match="vocabulary of 259"):
        engine.add(Request(id="r", prompt=np.array([5, token], np.int32), params=SamplingParams()), 0.0)
    assert engine.idle


def test_an_unforeseen_failure_while_adding_leaves_nothing_behind_either(engine):
    def interrupt(slot, request):
        raise KeyboardInterrupt

    engine.executor.open = interrupt
    with pytest.raises(KeyboardInterrupt):
        engine.add(ask(engine, "hello"), 0.0)
    assert engine.idle
    engine.check()


@pytest.mark.parametrize("computed", [False, True])
def test_after_a_step_that_was_broken_off_the_engine_serves_on(engine, computed):
    submit, whole = engine.executor.submit, answer(engine, ask(engine, "x" * 80))

    def interrupted(plan):
        if computed:
            submit(plan)
        raise KeyboardInterrupt

    engine.add(ask(engine, "y" * 80, name="lost", stop=("never",)), 0.0)
    engine.step(0.0)
    engine.executor.submit = interrupted
    with pytest.raises(KeyboardInterrupt):
        engine.step(1.0)
    engine.executor.submit = submit
    engine.check()
    again = ask(engine, "x" * 80)
    engine.add(again, 2.0)
    answers = drain(engine)
    assert "broken off" in str(answers["lost"].error)
    assert answers[again.id].tokens.tolist() == whole.tokens.tolist()


def test_n_answers_share_one_prefix(engine):
    request = ask(engine, "x" * 80, n=4, temperature=1.0)
    parts = fan_out(request)
    assert [part.seed for part in parts] == [0, 1, 2, 3]
    for part in parts:
        engine.add(part, 0.0)
    answers = drain(engine)
    assert set(answers) == {"r#0", "r#1", "r#2", "r#3"}
    assert sorted(a.cached for a in answers.values()) == [0, 64, 64, 64]


def test_long_answers_outgrow_every_first_guess(engine):
    request = ask(engine, "a", max_tokens=None)
    got = answer(engine, request)
    assert len(request.prompt) + len(got.tokens) == 200
    assert got.reason is FinishReason.LENGTH


def test_the_same_inputs_replay_the_same_plans():
    def plans(seed):
        engine = start(prepare(EngineConfig(model="null", max_num_seqs=4, seed=seed)))
        seen = []
        submit = engine.executor.submit
        engine.executor.submit = lambda plan: (seen.append(plan), submit(plan))
        rng = np.random.default_rng(3)
        for i in range(12):
            text = "".join(chr(97 + c) for c in rng.integers(0, 26, rng.integers(1, 90)))
            engine.add(ask(engine, text, name=f"r{i}"), 0.0)
        drain(engine)
        return [(p.step, p.token.tolist(), p.pages.tolist(), p.sequence.tolist()) for p in seen]

    assert plans(1) == plans(1)

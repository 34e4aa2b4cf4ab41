"""``LLM`` over a tiny random model: lists, conversations, streams, and errors as results."""

from __future__ import annotations

import gc
import json

import numpy as np
import pytest

from shoal import LLM, Constraint, SamplingParams
from shoal.core import policies
from shoal.core.errors import CallerError, OperatorError
from shoal.core.request import TokenLogprobs
from shoal.llm import Result
from tests.engine.toy_tokenizers import byte_level
from tests.models.tiny import Variant, reference, save

TEMPLATE = (
    "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if shout %}LOUD {% endif %}{% if add_generation_prompt %}<s>assistant:{% endif %}"
)
PROMPTS = [
    "yes no",
    "the 日本語 😀",
    "0123456789 " * 4,
    "a",
    "negative positive neutral",
    '{"label":',
    "né",
    "no way",
]
GREEDY = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True)
DRAWN = SamplingParams(temperature=0.9, top_p=0.95, max_tokens=6, seed=11, ignore_eos=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny Llama with a byte-level tokenizer and a chat template, as ``transformers`` saves it."""
    home = tmp_path_factory.mktemp("model")
    fields = {"vocab_size": 384, "bos_token_id": 0, "eos_token_id": 1, "num_hidden_layers": 2}
    save(reference(Variant("llm", "Llama", fields)), home)
    byte_level().backend.save(str(home / "tokenizer.json"))
    settings = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": TEMPLATE}
    (home / "tokenizer_config.json").write_text(json.dumps(settings))
    return home


def load(folder, **settings) -> LLM:
    return LLM(str(folder), **({"threads": 1, "kv_memory": "8MiB", "max_model_len": 256} | settings))


@pytest.fixture(scope="module")
def llm(folder):
    return load(folder)


def texts(results: list[Result]) -> list[str]:
    assert all(result.error is None for result in results)
    return [result.text for result in results]


@pytest.mark.parametrize("params", [GREEDY, DRAWN])
def test_alone_and_in_company_are_the_same(folder, llm, params):
    together = llm.generate(PROMPTS, params)
    assert [result.index for result in together] == list(range(len(PROMPTS)))
    assert [result.prompt for result in together] == PROMPTS
    for result, prompt in zip(together, PROMPTS, strict=True):
        (alone,) = llm.generate(prompt, params)
        assert alone.outputs == result.outputs
        assert result.prompt_token_ids == byte_level().encode(prompt).tolist()
        (output,) = result.outputs
        assert len(output.token_ids) == 6
        assert output.finish_reason == "length"
        assert output.text == byte_level().decode(output.token_ids)
    one_by_one = load(folder, max_num_seqs=1, prefix_reuse=False, order="shortest")
    assert texts(one_by_one.generate(PROMPTS, params)) == texts(together)


def test_text_and_ids_are_the_same_prompt(llm):
    ids = [byte_level().encode(prompt) for prompt in PROMPTS[:3]]
    expected = texts(llm.generate(PROMPTS[:3], GREEDY))
    assert texts(llm.generate([row.tolist() for row in ids], GREEDY)) == expected
    assert texts(llm.generate(iter(ids), GREEDY)) == expected
    (single,) = llm.generate(ids[0].tolist(), GREEDY)
    assert (single.text, single.prompt) == (expected[0], None)
    assert llm.generate([], GREEDY) == []


def test_every_prompt_may_have_its_own_params(llm):
    mix = [GREEDY, DRAWN, SamplingParams(temperature=0.0, max_tokens=2, ignore_eos=True)]
    found = llm.generate(PROMPTS[:3], mix)
    for result, prompt, params in zip(found, PROMPTS, mix):
        assert llm.generate(prompt, params)[0].outputs == result.outputs
    assert len(found[2].outputs[0].token_ids) == 2
    with pytest.raises(CallerError, match="3 prompts, but 2"):
        llm.generate(PROMPTS[:3], mix[:2])


def test_seeds(folder, llm):
    """Without a seed each index has its own, from the LLM's: the same call again gives the same answers."""
    free = SamplingParams(max_tokens=8, ignore_eos=True)
    first = texts(llm.generate(["a"] * 6, free))
    assert len(set(first)) > 3
    assert texts(llm.generate(["a"] * 6, free)) == first
    assert texts(load(folder, seed=1).generate(["a"] * 6, free)) != first
    assert len(set(texts(llm.generate(["a"] * 6, DRAWN)))) == 1


def test_several_answers_to_one_prompt(llm):
    """Answer i is the answer of seed + i; the prompt is computed once."""
    prompt = "yes no " * 20
    several = SamplingParams(n=4, temperature=1.0, max_tokens=5, seed=40, ignore_eos=True)
    (result,) = llm.generate(prompt, several)
    assert [output.index for output in result.outputs] == [0, 1, 2, 3]
    for i, output in enumerate(result.outputs):
        single = SamplingParams(temperature=1.0, max_tokens=5, seed=40 + i, ignore_eos=True)
        assert llm.generate(prompt, single)[0].text == output.text
    assert len({output.text for output in result.outputs}) > 1
    assert result.cached_tokens >= 3 * (len(result.prompt_token_ids) // 16 - 1) * 16


def test_errors_are_results(llm):
    bad = [
        ("a" * 400, GREEDY, "longest sequence"),
        ("", GREEDY, "empty"),
        ("\ud800", GREEDY, "surrogate"),
        ([1, 2, 384], GREEDY, "vocabulary"),
        ([-1], GREEDY, "vocabulary"),
        ([1.5], GREEDY, "neither text nor token ids"),
        (None, GREEDY, "neither text nor token ids"),
        ([], GREEDY, "empty"),
        ("a", SamplingParams(temperature=-1.0), "temperature"),
        ("a", SamplingParams(logit_bias={384: 1.0}), "logit_bias"),
        ("a", SamplingParams(constraint=Constraint(kind="regex", value="(")), "unclosed"),
        ("a", {"temperature": 0}, "SamplingParams"),
    ]
    prompts = [prompt for entry in bad for prompt in (entry[0], "yes no")]
    params = [params for entry in bad for params in (entry[1], GREEDY)]
    found = llm.generate(prompts, params)
    assert [result.index for result in found] == list(range(len(prompts)))
    good = llm.generate("yes no", GREEDY)[0]
    for result in found[1::2]:
        assert result.error is None
        assert result.outputs == good.outputs
    for result, (_, _, word) in zip(found[::2], bad, strict=True):
        assert isinstance(result.error, CallerError)
        assert word in str(result.error)
        assert result.error.remedy
        assert result.outputs == []
    assert llm.engine.idle


def test_chat_is_the_rendered_prompt_without_another_bos(llm):
    conversation = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "né?"}]
    (result,) = llm.chat(conversation, GREEDY)
    assert result.prompt == "<s>system: be brief\n<s>user: né?\n<s>assistant:"
    assert result.prompt_token_ids == byte_level().encode(result.prompt, add_special=False).tolist()
    assert texts(llm.generate([result.prompt_token_ids], GREEDY)) == [result.text]
    loud = llm.chat(conversation, GREEDY, chat_template_kwargs={"shout": True})[0]
    assert "LOUD" in loud.prompt
    many = llm.chat([conversation, [{"role": "user", "content": "a"}], [{"role": "user"}], "text"], GREEDY)
    assert many[0].outputs == result.outputs
    assert many[1].prompt == "<s>user: a\n<s>assistant:"
    assert [isinstance(entry.error, CallerError) for entry in many] == [False, False, True, True]
    with pytest.raises(CallerError, match="call generate"):
        llm.chat("hello")
    for wrong in (5, None, {}, ["text"]):
        assert "message" in str(llm.chat([conversation, wrong], GREEDY)[1].error)


def test_constraints_stops_and_end_tokens(llm):
    choice = SamplingParams(temperature=0.0, constraint=Constraint(kind="choice", value=("yes", "no way")))
    found = llm.generate(PROMPTS, choice)
    assert set(texts(found)) <= {"yes", "no way"}
    assert all(result.outputs[0].finish_reason == "stop" for result in found)
    plain = llm.generate("a", SamplingParams(temperature=0.0, max_tokens=30, ignore_eos=True))[0].outputs[0]
    stop = plain.text[5:8]
    cut = llm.generate("a", SamplingParams(temperature=0.0, max_tokens=30, ignore_eos=True, stop=(stop,)))[0]
    assert cut.text == plain.text[: plain.text.index(stop)]
    assert cut.outputs[0].stop_reason == stop
    third = plain.token_ids[2]
    params = SamplingParams(temperature=0.0, max_tokens=30, ignore_eos=True, stop_token_ids=(third,))
    ended = llm.generate("a", params)[0].outputs[0]
    place = plain.token_ids.index(third)
    assert ended.token_ids == plain.token_ids[: place + 1]
    assert ended.text == byte_level().decode(plain.token_ids[:place])
    assert (ended.finish_reason, ended.stop_reason) == ("stop", third)


def test_logprobs_of_answer_and_prompt(llm):
    params = SamplingParams(temperature=0.0, max_tokens=4, logprobs=2, prompt_logprobs=1, ignore_eos=True)
    (result,) = llm.generate("yes no way", params)
    (output,) = result.outputs
    assert [entry.token for entry in output.logprobs] == output.token_ids
    assert all(entry.rank == 1 and len(entry.top) == 2 for entry in output.logprobs)
    assert result.prompt_logprobs[0] is None
    assert [entry.token for entry in result.prompt_logprobs[1:]] == result.prompt_token_ids[1:]
    assert isinstance(result.prompt_logprobs[1], TokenLogprobs)
    whole = llm.generate([result.prompt_token_ids + output.token_ids[:-1]], params)[0]
    again = [entry.logprob for entry in whole.prompt_logprobs[len(result.prompt_token_ids) :]]
    assert again == pytest.approx([entry.logprob for entry in output.logprobs[:-1]], abs=1e-4)


def test_a_stream_pulls_no_further_than_it_has_work(folder):
    llm = load(folder, max_num_seqs=4)
    pulled = 0

    def endless():
        nonlocal pulled
        while True:
            pulled += 1
            yield [2 + pulled % 100, 5]

    stream = llm.stream(endless(), GREEDY)
    assert pulled == 0
    seen: set[int] = set()
    for result in stream:
        assert result.error is None
        seen.add(result.index)
        assert pulled <= len(seen) + 2 * 4
        if len(seen) == 40:
            break
    stream.close()
    assert len(seen) == 40
    assert pulled < 40 + 2 * 4 + 1
    assert texts(llm.generate(["a", "yes"], GREEDY)), "the engine serves on"
    assert llm.engine.idle
    llm.engine.check()


def test_streams_side_by_side_get_their_own_results(folder):
    llm = load(folder, max_num_seqs=2)
    one = llm.stream((prompt for prompt in PROMPTS), GREEDY)
    two = llm.stream((prompt for prompt in reversed(PROMPTS)), GREEDY)
    first = [next(one)]
    second = [next(two)]
    between = llm.generate(PROMPTS[:2], GREEDY)
    first += one
    second += two
    expected = texts(llm.generate(PROMPTS, GREEDY))
    assert texts(sorted(first, key=lambda result: result.index)) == expected
    assert texts(sorted(second, key=lambda result: result.index)) == expected[::-1]
    assert texts(between) == expected[:2]
    del one, two
    gc.collect()
    assert llm.engine.idle


def shuffled_groups(seed: int = 3) -> list[list[int]]:
    """24 groups of 5 prompts of 52 ids, each group with 3 pages in common."""
    rng = np.random.default_rng(seed)
    heads = [rng.integers(2, 300, 48).tolist() for _ in range(24)]
    prompts = [[*head, 7, 7, 7, 10 + member] for head in heads for member in range(5)]
    rng.shuffle(prompts)
    return prompts


def test_a_list_is_planned_so_that_a_small_pool_computes_a_shared_beginning_once(folder):
    """The pool holds 16 pages, so the beginnings of two or three groups beside what runs."""
    prompts = shuffled_groups()
    answers, computed = {}, {}
    for reuse in ("forest", "arrival"):
        llm = load(folder, reuse=reuse, max_num_seqs=4, max_model_len=64)
        answers[reuse] = [result.outputs for result in llm.generate(prompts, GREEDY)]
        computed[reuse] = llm.engine.scheduler.counters.computed
        llm.engine.check()
    assert answers["forest"] == answers["arrival"]
    generated = len(prompts) * 5
    assert llm.engine.memory.ledger.total == 16
    assert computed["forest"] == 24 * 48 + len(prompts) * 4 + generated
    assert computed["arrival"] > 1.5 * computed["forest"]


@pytest.mark.parametrize(
    "settings",
    [{"policy": name} for name in policies.POLICIES["policy"]]
    + [{"reuse": name} for name in policies.POLICIES["reuse"]]
    + [{"layout": "slots"}],
    ids=str,
)
def test_every_system_and_layout_gives_the_same_answers(folder, llm, settings):
    prompts = [*PROMPTS, *shuffled_groups()[:12]]
    other = load(folder, max_num_seqs=3, **settings)
    assert texts(other.generate(prompts, DRAWN)) == texts(llm.generate(prompts, DRAWN))
    other.engine.check()
    assert other.engine.idle


def test_a_planned_call_that_is_left_midway_keeps_nothing_for_those_who_never_came(folder):
    llm = load(folder, max_num_seqs=4)
    step = llm.engine.executor.submit

    def interrupted(plan):
        if plan.step == 6:
            raise KeyboardInterrupt
        step(plan)

    llm.engine.executor.submit = interrupted
    with pytest.raises(KeyboardInterrupt):
        llm.generate(shuffled_groups(), GREEDY)
    llm.engine.executor.submit = step
    assert llm.engine.memory.prefix.pinned == 0
    assert texts(llm.generate(PROMPTS, GREEDY)) == texts(load(folder).generate(PROMPTS, GREEDY))
    llm.engine.check()


def test_bad_prompts_among_planned_ones_keep_nothing(folder):
    llm = load(folder, max_model_len=64)
    head = list(range(10, 58))
    found = llm.generate([[*head, 2], head * 3, [*head, 3], [*head, 4], "", head], GREEDY)
    assert [result.error is None for result in found] == [True, False, True, True, False, True]
    assert llm.engine.memory.prefix.pinned == 0
    assert sum(result.cached_tokens for result in found) == 3 * 48, "the bare one goes first"


def test_a_failing_source_leaves_nothing_behind(llm):
    def source():
        yield "a"
        yield "yes"
        raise RuntimeError("the source broke")

    with pytest.raises(RuntimeError, match="the source broke"):
        list(llm.stream(source(), GREEDY))
    assert texts(llm.generate(["a"], GREEDY))
    assert llm.engine.idle


def test_a_stream_that_the_garbage_collector_closes_in_the_middle_of_a_step(folder):
    llm = load(folder)
    forgotten = llm.stream(PROMPTS, GREEDY)
    next(forgotten)
    expected = texts(load(folder).generate(PROMPTS[:3], GREEDY))
    submit = llm.engine.executor.submit

    def collecting(plan):
        forgotten.close()
        submit(plan)

    llm.engine.executor.submit = collecting
    assert texts(llm.generate(PROMPTS[:3], GREEDY)) == expected
    assert llm.engine.idle
    llm.engine.check()


def test_an_answer_that_fails_midway_keeps_as_many_logprobs_as_tokens(folder):
    llm = load(folder)
    sampler = llm.engine.executor.sampler
    change = sampler._change

    def fail(row, slot, index):
        if index == 2:
            raise CallerError("broken on purpose")
        change(row, slot, index)

    sampler._change = fail
    scored = {"temperature": 0.0, "max_tokens": 5, "logprobs": 1, "ignore_eos": True}
    params = [SamplingParams(**scored, presence_penalty=0.5), SamplingParams(**scored)]
    failed, whole = llm.generate(["yes", "yes"], params)
    assert "on purpose" in str(failed.error)
    assert [len(o.token_ids) for o in failed.outputs + whole.outputs] == [2, 5]
    assert [len(o.logprobs) for o in failed.outputs + whole.outputs] == [2, 5]


def test_prompts_come_in_arrays_too(llm):
    expected = texts(llm.generate(["a", "yes"], GREEDY))
    assert texts(llm.generate(np.array(["a", "yes"]), GREEDY)) == expected
    assert texts(llm.generate(np.array(["a", "yes"], dtype=object), GREEDY)) == expected
    (one,) = llm.generate(list(byte_level().encode("yes")), GREEDY)
    assert one.text == expected[1]


def test_params_that_run_out_lose_no_prompt(llm):
    results = sorted(llm.stream(iter(PROMPTS[:3]), iter([GREEDY])), key=lambda result: result.index)
    assert [result.error is None for result in results] == [True, False, False]


def test_progress_goes_to_standard_error(llm, capsys):
    llm.generate(PROMPTS[:2], GREEDY, use_progress=True)
    shown = capsys.readouterr()
    assert "answering" in shown.err
    assert shown.out == ""


def test_null_model_and_bad_starts(tmp_path):
    null = LLM("null", max_model_len=64, kv_memory=8 * 16 * 64)
    found = null.generate(["abc", "abc"], SamplingParams(temperature=0.0, max_tokens=5, stop=("zz",)))
    assert found[0].outputs == found[1].outputs
    assert np.array_equal(found[0].prompt_token_ids, [100, 101, 102])
    with pytest.raises(OperatorError, match="size"):
        LLM("null", kv_memory="much")
    with pytest.raises(OperatorError):
        LLM(str(tmp_path / "missing"))
    with pytest.raises(OperatorError, match="order"):
        LLM("null", order="nonsense")
    with pytest.raises(OperatorError, match=r"dtype is 'float16'.*valid: auto, float32, bfloat16"):
        LLM("null", dtype="float16")
    with pytest.raises(OperatorError, match="threads is '2'"):
        LLM("null", threads="2")
    with pytest.raises(OperatorError, match="victim is 3"):
        LLM("null", victim=3)
    (refused,) = null.generate(["a"], SamplingParams(constraint=Constraint(kind="regex", value="a")))
    assert "constraints" in str(refused.error)


def test_any_whole_number_is_a_seed():
    drawn = [LLM("null", seed=seed).generate(["a"])[0].error for seed in (-1, 0, 2**64)]
    assert drawn == [None, None, None]

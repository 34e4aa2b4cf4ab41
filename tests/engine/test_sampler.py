from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.core.errors import CallerError, InternalError
from shoal.core.plan import SAMPLE
from shoal.core.request import Constraint, Request, SamplingParams
from shoal.engine.masks import MaskCompiler
from shoal.engine.tensors import sampler as module
from shoal.engine.tensors.sampler import SampledRows, Sampler
from tests.engine.toy_tokenizers import byte_level
from tests.sizes import size

VOCABULARY = 61
END = 2


def request(prompt: tuple[int, ...] = (1, 5), seed: int = 0, **params) -> Request:
    return Request(
        id="r",
        prompt=np.array(prompt, dtype=np.int32),
        params=SamplingParams(**params),
        seed=seed,
        end_ids=(END,),
    )


def sample(
    sampler: Sampler,
    logits: torch.Tensor,
    slots: list[int] | None = None,
    index: int | list[int] = 0,
    target: list[int] | None = None,
    want: list[bool] | None = None,
) -> SampledRows:
    n = len(logits)
    return sampler.sample(
        logits,
        np.array(range(n) if slots is None else slots),
        np.broadcast_to(np.array(index), (n,)),
        np.array([SAMPLE] * n if target is None else target),
        np.array([False] * n if want is None else want),
        record_margins=True,
    )


def random_logits(rows: int, seed: int = 0, vocabulary: int = VOCABULARY) -> torch.Tensor:
    return torch.randn((rows, vocabulary), generator=torch.Generator().manual_seed(seed)) * 2


def draws(logits: torch.Tensor, count: int, **params) -> np.ndarray:
    """How often each token is drawn from one row of logits by requests of seeds 0..count-1."""
    sampler = Sampler(logits.shape[1])
    for slot in range(count):
        sampler.open(slot, request(seed=slot, **params))
    found = sample(sampler, logits.expand(count, -1).contiguous(), index=[slot % 7 for slot in range(count)])
    return np.bincount(found.tokens, minlength=logits.shape[1])


@pytest.mark.parametrize(
    ("params", "kept"),
    [
        ({"temperature": 1.0}, 12),
        ({"temperature": 0.7}, 12),
        ({"temperature": 1.5, "top_k": 5}, 5),
        ({"temperature": 1.0, "top_k": 9, "top_p": 0.9012}, None),
        ({"temperature": 1.0, "min_p": 0.1012}, None),
    ],
)
def test_draws_follow_the_probabilities(params, kept):
    """Chi-square of many seeds against the exact probabilities."""
    logits = random_logits(1, seed=3, vocabulary=12)
    scaled = logits[0].double().numpy() / params["temperature"]
    order = np.argsort(-scaled, kind="stable")
    probability = np.exp(scaled - scaled.max())
    probability[order[params.get("top_k", 12) :]] = 0.0
    probability /= probability.sum()
    before = np.concatenate([[0.0], np.cumsum(probability[order])[:-1]])
    probability[order[before >= params.get("top_p", 1.1)]] = 0.0
    probability[probability < params.get("min_p", 0.0) * probability.max()] = 0.0
    probability /= probability.sum()
    assert kept is None or np.count_nonzero(probability) == kept
    count = size(4000, 40000)
    observed = draws(logits, count, **params)
    assert not observed[probability == 0.0].any()
    expected = probability[probability > 0] * count
    chi_square = ((observed[probability > 0] - expected) ** 2 / expected).sum()
    freedom = len(expected) - 1
    assert chi_square < freedom + 5 * np.sqrt(2 * freedom)


def test_greedy_takes_the_lowest_of_equal_logits():
    sampler = Sampler(VOCABULARY)
    logits = torch.zeros((3, VOCABULARY))
    logits[1, [7, 30]] = 4.0
    logits[2, 60] = 1.0
    sampler.open(0, request(temperature=0.0))
    sampler.open(1, request(temperature=0.0, logit_bias={7: 0.5, 30: 0.5}))
    sampler.open(2, request(temperature=0.0, top_p=0.5))
    found = sample(sampler, logits)
    assert found.tokens.tolist() == [0, 7, 60]
    assert found.margins.tolist() == [0.0, 0.0, 1.0]
    assert found.logprob is None
    assert found.complete is None
    assert not found.failures


def penalised_twin(logits, params, prompt, output):
    """The formulas, token by token."""
    logits = logits.astype(np.float32).copy()
    for token, value in params.logit_bias.items():
        logits[token] += np.float32(value)
    for token in set(prompt) | set(output):
        r = np.float32(params.repetition_penalty)
        logits[token] = logits[token] / r if logits[token] > 0 else logits[token] * r
    for token in set(output):
        logits[token] -= params.frequency_penalty * output.count(token) + params.presence_penalty
    return logits


@pytest.mark.parametrize(
    "params",
    [
        {"repetition_penalty": 1.7},
        {"frequency_penalty": 0.9},
        {"presence_penalty": -1.5},
        {
            "repetition_penalty": 0.6,
            "frequency_penalty": 0.4,
            "presence_penalty": 1.0,
            "logit_bias": {3: 2.0, 9: -50.0},
        },
    ],
)
def test_penalties_follow_their_formulas(params):
    """Greedy answers of 40 tokens under penalties equal those of the twin."""
    sampler = Sampler(VOCABULARY)
    asked = request((1, 5, 5, 40), temperature=0.0, **params)
    sampler.open(0, asked)
    output: list[int] = []
    for index in range(40):
        logits = random_logits(1, seed=index)
        twin = penalised_twin(logits[0].numpy(), asked.params, [1, 5, 5, 40], output)
        found = sample(sampler, logits, index=index)
        two = np.sort(twin)[-2:]
        assert found.margins[0] == pytest.approx(two[1] - two[0], abs=1e-4)
        assert twin[found.tokens[0]] >= two[1] - 1e-4
        output.append(int(found.tokens[0]))
    assert len(set(output)) > 3


def test_end_tokens_wait_for_min_tokens():
    sampler = Sampler(VOCABULARY)
    logits = torch.zeros((3, VOCABULARY))
    logits[:, END], logits[:, 9], logits[:, 4] = 5.0, 4.0, 3.0
    sampler.open(0, request(temperature=0.0, min_tokens=3, stop_token_ids=(9, 10**6)))
    sampler.open(1, request(temperature=0.0, min_tokens=3, ignore_eos=True))
    sampler.open(2, request(temperature=0.0))
    assert sample(sampler, logits, index=2).tokens.tolist() == [4, END, END]
    assert sample(sampler, logits, index=3).tokens.tolist() == [END, END, END]


any_params = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([0.0, 0.3, 1.0, 1.7]),
        "top_k": st.sampled_from([0, 1, 5, 50]),
        "top_p": st.sampled_from([1.0, 0.5, 0.95]),
        "min_p": st.sampled_from([0.0, 0.1]),
        "repetition_penalty": st.sampled_from([1.0, 1.3]),
        "presence_penalty": st.sampled_from([0.0, 0.5]),
        "logit_bias": st.sampled_from([{}, {3: 5.0}]),
        "min_tokens": st.sampled_from([0, 2]),
        "logprobs": st.sampled_from([None, 0, 4]),
    }
)


@settings(deadline=None, max_examples=size(25, 300))
@given(st.lists(any_params, min_size=2, max_size=8), st.integers(0, 2**32), st.integers(1, 40))
def test_nothing_depends_on_company(mix, seed, chunk_rows):
    """Three steps together, in chunks of any size, equal three steps of each row alone, bit for bit."""
    requests = [request(seed=seed + i, **params) for i, params in enumerate(mix)]
    together = Sampler(VOCABULARY)
    for slot, asked in enumerate(requests):
        together.open(slot, asked)
    alone = [Sampler(VOCABULARY) for _ in mix]
    for slot, asked in enumerate(requests):
        alone[slot].open(5, asked)
    want = [params["logprobs"] is not None for params in mix]
    for index in range(3):
        logits = random_logits(len(mix), seed=seed % 2**31 + index)
        kept = logits.clone()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "CHUNK_ELEMENTS", chunk_rows * VOCABULARY)
            found = sample(together, logits, index=index, want=want)
        assert torch.equal(logits, kept), "the logits are not the sampler's to change"
        scored = 0
        for i in range(len(mix)):
            single = sample(alone[i], logits[i : i + 1], [5], index, want=want[i : i + 1])
            assert single.tokens[0] == found.tokens[i]
            assert single.margins[0] == found.margins[i]
            if want[i]:
                assert single.logprob[0] == found.logprob[scored]
                assert single.rank[0] == found.rank[scored]
                width = mix[i]["logprobs"]
                assert np.array_equal(single.top_ids[0], found.top_ids[scored][:width])
                scored += 1


@pytest.mark.parametrize("vocabulary", size([5003], [5003, 32000, 151_936, 262_144]))
def test_large_vocabularies_and_threads_change_no_bit(vocabulary):
    """Sums over long rows are where libraries like to divide the work by threads and rows."""
    mix = [
        {},
        {"top_k": 40, "top_p": 0.9},
        {"top_p": 0.9},
        {"top_p": 0.999},
        {"min_p": 0.02},
        {"top_k": 3000},
    ]
    logits = random_logits(len(mix), seed=5, vocabulary=vocabulary) * 2
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            sampler = Sampler(vocabulary)
            for slot, params in enumerate(mix):
                sampler.open(slot, request(seed=slot, logprobs=2, **params))
            want = [True] * len(mix)
            found.append([sample(sampler, logits, index=3, want=want)])
            alone = ([i] for i in range(len(mix)))
            found.append([sample(sampler, logits[i], i, 3, want=[True]) for i in alone])
    finally:
        torch.set_num_threads(threads)
    for name in ("tokens", "margins", "logprob", "top_logprobs"):
        columns = [np.concatenate([getattr(rows, name) for rows in run]) for run in found]
        assert all(np.array_equal(columns[0], column) for column in columns[1:]), name


def test_the_draw_is_a_function_of_seed_and_index():
    sampler = Sampler(VOCABULARY)
    logits = torch.zeros((4, VOCABULARY))
    for slot, seed in enumerate([7, 7, 8, 2**64 - 1]):
        sampler.open(slot, request(seed=seed))
    first = sample(sampler, logits, index=0).tokens
    assert first[0] == first[1]
    runs = [sample(sampler, logits, index=i).tokens.tolist() for i in range(30)]
    assert runs[0] == first.tolist()
    columns = np.array(runs).T
    assert all(len(set(column)) > 8 for column in columns.tolist())
    assert not np.array_equal(columns[0], columns[2])
    turned = sample(sampler, logits, slots=[3, 2, 1, 0], index=4).tokens
    assert turned.tolist() == runs[4][::-1]


def test_logprobs_are_of_the_raw_logits():
    """Bias, penalties and temperature change the choice, never what is reported."""
    sampler = Sampler(VOCABULARY)
    logits = random_logits(3, seed=8)
    expected = torch.log_softmax(logits.double(), dim=1).numpy()
    sampler.open(0, request(temperature=0.2, logit_bias={11: 100.0}, logprobs=2))
    sampler.open(1, request(temperature=0.0, prompt_logprobs=5))
    sampler.open(2, request(temperature=0.0))
    found = sample(sampler, logits, target=[SAMPLE, 33, SAMPLE], want=[True, True, False])
    assert found.tokens[:2].tolist() == [11, 33]
    assert found.margins[1] == np.inf
    for i, token in enumerate([11, 33]):
        assert found.logprob[i] == pytest.approx(expected[i, token], abs=1e-5)
        order = np.argsort(-expected[i], kind="stable")
        assert found.rank[i] == int(np.flatnonzero(order == token)[0]) + 1
        assert found.top_ids[i].tolist() == order[:5].tolist()
        assert found.top_logprobs[i] == pytest.approx(expected[i][order[:5]], abs=1e-5)


def test_scored_rows_change_no_state():
    """Penalties see what was chosen, never what was only scored."""
    sampler = Sampler(VOCABULARY)
    sampler.open(0, request((1,), temperature=0.0, presence_penalty=2.0))
    logits = torch.zeros((1, VOCABULARY))
    logits[0, 9] = 1.0
    assert sample(sampler, logits, target=[9]).tokens[0] == 9
    assert sample(sampler, logits).tokens[0] == 9
    assert sample(sampler, logits).tokens[0] == 0, "9 was chosen once and is now penalised"


def test_a_slot_forgets_who_was_there_before():
    sampler = Sampler(VOCABULARY)
    logits = torch.zeros((1, VOCABULARY))
    logits[0, 9] = 1.0
    sampler.open(
        200, request(temperature=0.0, logit_bias={9: -100.0, 4: 1.0}, presence_penalty=2.0, min_tokens=9)
    )
    assert sample(sampler, logits, [200]).tokens[0] == 4
    sampler.close(200)
    sampler.open(200, request(temperature=0.0))
    assert sample(sampler, logits, [200]).tokens[0] == 9


@pytest.mark.parametrize(
    "params", [{"temperature": 0.0}, {}, {"top_k": 3}, {"temperature": 0.0, "logit_bias": {1: 1.0}}]
)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_row_without_numbers_fails_alone(params, value):
    sampler = Sampler(VOCABULARY)
    for slot in range(3):
        sampler.open(slot, request(logprobs=1, **params))
    logits = random_logits(3)
    expected = sample(sampler, logits).tokens
    logits[1, 30] = value
    found = sample(sampler, logits, want=[False, True, True])
    assert list(found.failures) == [1]
    assert isinstance(found.failures[1], InternalError)
    assert found.tokens[[0, 2]].tolist() == expected[[0, 2]].tolist()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_with_nothing_left_fails_alone(temperature):
    sampler = Sampler(3)
    sampler.open(0, request((1,), temperature=temperature, min_tokens=1, logit_bias={0: -np.inf, 1: -np.inf}))
    sampler.open(1, request((1,), temperature=temperature))
    found = sample(sampler, torch.zeros((2, 3)))
    assert list(found.failures) == [0]
    assert isinstance(found.failures[0], CallerError)
    assert "min_tokens" in str(found.failures[0])


@pytest.mark.parametrize(
    ("params", "word"),
    [
        ({"logit_bias": {VOCABULARY: 1.0}}, "vocabulary"),
        ({"logit_bias": {-1: 1.0}}, "vocabulary"),
        ({"logit_bias": {3: float("nan")}}, "finite"),
        ({"constraint": Constraint(kind="choice", value=("a",))}, "tokenizer"),
    ],
)
def test_what_cannot_be_sampled_is_refused_at_the_door(params, word):
    with pytest.raises(CallerError, match=word):
        Sampler(VOCABULARY).open(0, request(**params))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_grammar_holds_whatever_the_logits_say(temperature):
    """Answers are one of the choices and complete exactly at their end; rows beside them are free."""
    tokenizer = byte_level()
    vocabulary = tokenizer.vocabulary_size + 7
    choices = ("yes", "no way", "日本語")
    sampler = Sampler(
        vocabulary, masks=MaskCompiler(lambda: tokenizer.backend, vocabulary, [tokenizer.eos_id])
    )
    constraint = Constraint(kind="choice", value=choices)
    count = 12
    for slot in range(count):
        held = None if slot == 0 else constraint
        sampler.open(slot, request(seed=slot, temperature=temperature, constraint=held))
    going, answers = list(range(count)), [[] for _ in range(count)]
    for index in range(12):
        logits = random_logits(len(going), seed=index + 100, vocabulary=vocabulary)
        found = sample(sampler, logits, going, index)
        assert not found.failures
        for slot, token in zip(going, found.tokens.tolist(), strict=True):
            answers[slot].append(token)
        going = [slot for slot, over in zip(going, found.complete.tolist(), strict=True) if not over]
    assert going == [0]
    texts = [tokenizer.decode(answer) for answer in answers[1:]]
    assert set(texts) <= set(choices)
    assert len(set(texts)) > 1
    assert max(answers[0]) >= 0


def test_a_grammar_that_grows_too_complex_fails_its_row_alone():
    tokenizer = byte_level()
    masks = MaskCompiler(lambda: tokenizer.backend, tokenizer.vocabulary_size, [tokenizer.eos_id])
    sampler = Sampler(tokenizer.vocabulary_size, masks=masks)
    pattern = Constraint(kind="regex", value="((a{1,100}){1,100}){1,100}")
    sampler.open(0, request(temperature=0.0, constraint=pattern))
    sampler.open(1, request(temperature=0.0))
    logits = torch.zeros((2, tokenizer.vocabulary_size))
    logits[:, tokenizer.token_to_id("a")] = 1.0
    for _ in range(60):
        found = sample(sampler, logits)
        assert found.tokens[1] == tokenizer.token_to_id("a")
        if found.failures:
            break
    assert isinstance(found.failures[0], CallerError)


def test_one_token_vocabulary():
    sampler = Sampler(1)
    sampler.open(0, request((0,)))
    sampler.open(1, request((0,), temperature=0.0))
    found = sample(sampler, torch.zeros((2, 1)))
    assert found.tokens.tolist() == [0, 0]
    assert np.isinf(found.margins).all()

"""What rows ask for, in every spelling that is understood."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.core.errors import CallerError
from shoal.core.request import Constraint, SamplingParams
from shoal.jobs.rows import Asked, RowReader, decode_object
from shoal.jobs.sampling import Sampler, noise_seed
from shoal.jobs.sources import Raw
from shoal.jobs.templates import Example, Layout, from_pattern
from tests.jobs.support import chat, completion

DEFAULTS = SamplingParams(temperature=0.5, max_tokens=99)


def read(row: Any, layout: Layout | None = None, line: int = 1) -> Asked:
    data = row if isinstance(row, bytes) else json.dumps(row).encode()
    return RowReader(Sampler(DEFAULTS), layout or Layout()).read(Raw(line, data))


def params(**fields: Any) -> SamplingParams:
    return read({"prompt": "x", **fields}).sampling.params


def test_nothing_named_means_the_defaults() -> None:
    asked = read({"prompt": "x"}, line=7)
    assert asked.sampling.params == DEFAULTS
    assert (asked.id, asked.prompt, asked.chat, asked.seed) == ("row-7", "x", False, None)
    nothing = {"temperature": None, "stop": None, "logprobs": None, "response_format": None, "echo": None}
    assert params(**nothing) == DEFAULTS


def test_the_same_request_in_both_forms() -> None:
    fields = {"temperature": 0.1, "top_k": 5, "stop": "end", "seed": 3, "min_p": 0.1, "ignore_eos": True}
    short = read({"id": "a", "prompt": "x", **fields})
    batch = read({**completion("a", "x"), "body": {"prompt": "x", "model": "m", **fields}})
    assert batch.model == "m"
    batch.model = None
    assert short == batch
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    short = read({"id": "a", "messages": messages, "logprobs": True, "top_logprobs": 4, **fields})
    body = {"messages": messages, "logprobs": True, "top_logprobs": 4, **fields}
    assert short == read({**chat("a", "u"), "body": body})
    assert short.messages == messages
    assert short.sampling.params.logprobs == 4


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({"guided_choice": ["a", "b"]}, Constraint(kind="choice", value=("a", "b"))),
        ({"structured_outputs": {"regex": "a+"}}, Constraint(kind="regex", value="a+")),
        ({"guided_json": {"type": "null"}}, Constraint(kind="json_schema", value='{"type":"null"}')),
        ({"guided_json": '{ "type": "null" }'}, Constraint(kind="json_schema", value='{"type":"null"}')),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"a": 1}}}},
            Constraint(kind="json_schema", value='{"a":1}'),
        ),
        (
            {"response_format": {"type": "json_object"}},
            Constraint(kind="json_schema", value='{"type":"object"}'),
        ),
        ({"response_format": {"type": "text"}}, None),
    ],
)
def test_constraints(fields: dict[str, Any], wanted: Constraint | None) -> None:
    assert params(**fields).constraint == wanted


def test_parts_of_a_message_stay_parts() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    asked = read({"messages": [{"role": "user", "content": parts, "name": "me"}]})
    assert asked.messages == [{"role": "user", "content": parts, "name": "me"}]


def test_equal_schemas_are_equal_constraints_whatever_their_spelling() -> None:
    first = params(guided_json={"b": 1, "a": {"d": 2, "c": 3}})
    second = params(guided_json='{"a": {"c": 3, "d": 2},\n "b": 1}')
    assert first.constraint == second.constraint


def test_logprobs_in_both_meanings() -> None:
    assert params(logprobs=3).logprobs == 3
    assert params(logprobs=True).logprobs == 0
    assert params(logprobs=False).logprobs is None
    assert params(logprobs=True, top_logprobs=2).logprobs == 2
    assert params(logprobs=2, echo=True).prompt_logprobs == 2
    assert read(completion("a", "x", logprobs=0)).sampling.params.logprobs == 0
    assert read(chat("a", "x", max_completion_tokens=7)).sampling.params.max_tokens == 7


def test_fields_that_ask_for_nothing_are_accepted() -> None:
    neutral = {
        "tools": [],
        "stream": False,
        "tool_choice": "none",
        "service_tier": "auto",
        "reasoning_effort": None,
    }
    known = {"user": "u", "metadata": {"k": "v"}, "store": True, "prompt_cache_key": "k"}
    assert read(chat("a", "x", **neutral, **known)) == read(chat("a", "x"))


@given(
    st.dictionaries(
        st.sampled_from(
            ["prompt", "messages", "id", "temperature", "stop", "body", "custom_id", "url", "odd"]
        ),
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False)
        | st.text(max_size=5)
        | st.lists(st.integers(-3, 3) | st.text(max_size=3), max_size=3),
    )
)
def test_any_object_is_read_or_refused(row: dict[str, Any]) -> None:
    asked = refusal = None
    try:
        asked = read(row)
    except CallerError as error:
        refusal = error
    assert refusal.remedy if asked is None else asked.prompt or asked.messages


@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    found = refusal = None
    try:
        found = decode_object(data)
    except CallerError as error:
        refusal = error
    assert refusal.remedy if found is None else isinstance(found, dict)


def test_noise_seeds_depend_on_job_and_id_alone() -> None:
    assert noise_seed(1, "a") == noise_seed(1, "a")
    assert len({noise_seed(job, name) for job in (-1, 0, 1) for name in ("a", "b")}) == 6
    assert 0 <= noise_seed(-5, "x") < 2**64


def test_columns_through_a_template() -> None:
    layout = Layout(question=from_pattern("Q: {text}?"), keep=("label", "none"))
    asked = read({"id": 5, "text": "why", "label": {"a": 1}, "more": 2}, layout)
    assert (asked.id, asked.prompt, asked.columns) == ("5", "Q: why?", b'{"label":{"a":1},"none":null}')
    with pytest.raises(CallerError, match="`text` is missing"):
        read({"label": 1}, layout)
    with pytest.raises(CallerError, match="`text` is null"):
        read({"text": None}, layout)


def test_kept_columns_beside_a_rows_own_form() -> None:
    layout = Layout(keep=("label", "id"))
    asked = read({"id": "a", "prompt": "x", "label": 1, "temperature": 0.2}, layout)
    assert (asked.id, asked.columns, asked.sampling.params.temperature) == ("a", b'{"label":1,"id":"a"}', 0.2)
    with pytest.raises(CallerError, match="`other`"):
        read({"prompt": "x", "label": 1, "other": 2}, layout)
    assert read({**completion("b", "x"), "label": 3}, layout).columns == b'{"label":3,"id":null}'


def test_examples_come_first() -> None:
    layout = Layout(
        question=from_pattern("T: {t}\nL:"), examples=[Example("T: a\nL:", "1"), Example("T: b\nL:\n", "2")]
    )
    assert read({"t": "c"}, layout).prompt == "T: a\nL: 1\n\nT: b\nL:\n2\n\nT: c\nL:"
    spoken = Layout(chat=True, system="S", examples=[Example("a", "1")], question=from_pattern("{t}"))
    turns = [("system", "S"), ("user", "a"), ("assistant", "1"), ("user", "c")]
    assert read({"t": "c"}, spoken).messages == [{"role": role, "content": text} for role, text in turns]
    own = {"messages": [{"role": "developer", "content": "D"}, {"role": "user", "content": "c"}]}
    spoken = Layout(system="S", examples=[Example("a", "1")])
    turns[0] = ("system", "D")
    assert read(own, spoken).messages == [{"role": role, "content": text} for role, text in turns]

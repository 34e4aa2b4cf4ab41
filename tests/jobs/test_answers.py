"""Result lines in the shapes of the OpenAI API."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from shoal.core.errors import CallerError
from shoal.core.request import Constraint, Finished, FinishReason, Request, SamplingParams, TokenLogprobs
from shoal.engine.null_model import RESERVED, NullModel
from shoal.jobs.answers import LEAST_LOGPROB, AnswerWriter
from shoal.jobs.spool import CHAT, COMPLETION, SpoolRow, pack


def ids(text: str) -> np.ndarray:
    return np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int32) + RESERVED


def row(kind: int, params: SamplingParams, **fields: Any) -> SpoolRow:
    return SpoolRow(3, 'the "id"', kind, ids("hello").tobytes(), pack(params), 77, **fields)


def finished(said: str, params: SamplingParams, **fields: Any) -> Finished:
    request = Request(id="x", prompt=ids("hello"), params=params)
    values: dict[str, Any] = {"reason": FinishReason.STOP, "cached": 2, "computed": 9, **fields}
    return Finished(handle=0, request=request, tokens=ids(said), **values)


def line(kind: int, params: SamplingParams, done: list[Finished], leader: int = 3, **fields: Any) -> Any:
    writer = AnswerWriter(NullModel(100), "job", 1700)
    data = writer.answer(row(kind, params, **fields), params, done, leader)
    assert data.endswith(b"\n")
    assert data.count(b"\n") == 1
    return json.loads(data)


def test_a_chat_completion() -> None:
    params = SamplingParams(temperature=0, max_tokens=5)
    assert line(CHAT, params, [finished("wo\nrld", params)], columns=b'{"a":1}', model="other") == {
        "id": "batch-job-3",
        "custom_id": 'the "id"',
        "response": {
            "status_code": 200,
            "request_id": "req-job-3",
            "body": {
                "id": "chatcmpl-job-3",
                "object": "chat.completion",
                "created": 1700,
                "model": "null",
                "choices": [
                    {
                        "index": 0,
                        "message": {"role": "assistant", "content": "wo\nrld"},
                        "logprobs": None,
                        "finish_reason": "stop",
                    }
                ],
                "usage": {
                    "prompt_tokens": 5,
                    "completion_tokens": 6,
                    "total_tokens": 11,
                    "prompt_tokens_details": {"cached_tokens": 2},
                },
            },
        },
        "error": None,
        "shoal": {
            "line": 3,
            "sampling": {"temperature": 0.0, "max_tokens": 5},
            "cached_tokens": 2,
            "computed_tokens": 9,
            "columns": {"a": 1},
            "asked_model": "other",
        },
    }


def test_several_choices_of_a_completion() -> None:
    params = SamplingParams(n=2, temperature=1)
    done = [finished("ab", params), finished("abc", params, reason=FinishReason.LENGTH, text="cut")]
    found = line(COMPLETION, params, done)
    body = found["response"]["body"]
    assert body["object"] == "text_completion"
    assert [choice["text"] for choice in body["choices"]] == ["ab", "cut"]
    assert [choice["finish_reason"] for choice in body["choices"]] == ["stop", "length"]
    assert body["usage"]["completion_tokens"] == 5
    assert found["shoal"]["sampling"]["seed"] == 77
    assert found["shoal"]["computed_tokens"] == 18


def test_a_folded_row_cost_nothing() -> None:
    params = SamplingParams(temperature=0)
    shoal = line(COMPLETION, params, [finished("ab", params)], leader=1)["shoal"]
    assert (shoal["folded_into"], shoal["cached_tokens"], shoal["computed_tokens"]) == (1, 0, 0)


def scored(text: str, *top: str) -> tuple[TokenLogprobs, ...]:
    alternatives = tuple((int(ids(other)[0]), -0.5 - place) for place, other in enumerate(top))
    return tuple(TokenLogprobs(int(token), -0.25, 1, alternatives) for token in ids(text))


def test_chat_logprobs() -> None:
    params = SamplingParams(temperature=0, logprobs=2)
    done = finished("ab", params, logprobs=scored("ab", "a", "c"))
    content = line(CHAT, params, [done])["response"]["body"]["choices"][0]["logprobs"]["content"]
    assert [token["token"] for token in content] == ["a", "b"]
    assert content[1]["bytes"] == [98]
    assert content[0]["top_logprobs"] == [
        {"token": "a", "logprob": -0.5, "bytes": [97]},
        {"token": "c", "logprob": -1.5, "bytes": [99]},
    ]


def test_completion_logprobs_with_echo() -> None:
    params = SamplingParams(temperature=0, logprobs=1, prompt_logprobs=1)
    done = finished("xy", params, logprobs=scored("xy", "z"), prompt_logprobs=(None, *scored("ello", "e")))
    choice = line(COMPLETION, params, [done], echo="hello")["response"]["body"]["choices"][0]
    assert choice["text"] == "helloxy"
    found = choice["logprobs"]
    assert found["tokens"] == list("helloxy")
    assert found["token_logprobs"] == [None] + [-0.25] * 6
    assert found["text_offset"] == list(range(7))
    assert found["top_logprobs"][0] is None
    assert found["top_logprobs"][6] == {"z": -0.5, "y": -0.25}


def test_prompt_logprobs_by_their_own_name() -> None:
    params = SamplingParams(temperature=0, prompt_logprobs=1)
    done = finished("x", params, prompt_logprobs=(None, TokenLogprobs(100, -math.inf, 9, ((101, -0.5),))))
    found = line(CHAT, params, [done])["response"]["body"]["prompt_logprobs"]
    assert found[0] is None
    assert found[1]["100"] == {"logprob": LEAST_LOGPROB, "decoded_token": "a"}
    assert found[1]["101"]["logprob"] == -0.5


def test_a_failed_row_keeps_what_there_was() -> None:
    params = SamplingParams(temperature=0)
    writer = AnswerWriter(NullModel(100), "job", 1700)
    error = CallerError("too long", remedy="shorten it")
    found = json.loads(writer.error(row(CHAT, params), params, error, [finished("par", params)], 3))
    assert found["response"] is None
    assert found["error"] == {
        "code": "invalid_request",
        "message": "too long (shorten it)",
        "who": "caller",
        "partial": ["par"],
    }
    assert found["custom_id"] == 'the "id"'


@pytest.mark.parametrize("stop", ["END", 17])
def test_what_stopped_it(stop: str | int) -> None:
    params = SamplingParams(temperature=0)
    done = finished("ab", params, stop_reason=stop)
    assert line(CHAT, params, [done])["response"]["body"]["choices"][0]["stop_reason"] == stop


def test_a_long_schema_is_shown_by_its_digest() -> None:
    short, long = (Constraint(kind="regex", value="a" * length) for length in (10, 1000))
    for constraint, shown in ((short, "value"), (long, "blake2b")):
        params = SamplingParams(temperature=0, constraint=constraint)
        found = line(COMPLETION, params, [finished("a", params)])["shoal"]["sampling"]["constraint"]
        assert found.keys() == {"kind", shown}

"""Every kind of bad row: quarantined with line, reason and remedy, while the good ones are answered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from shoal.core.errors import OperatorError
from shoal.jobs.ending import SOME_FAILED
from shoal.jobs.job import Job
from tests.jobs.support import answers, chat, completion, results, run, write_lines

LIMIT = 6000


def envelope(**changes: Any) -> dict[str, Any]:
    return {**completion("x", "text"), **changes}


# Each bad row, and a word of the reason it must be given.
BAD: list[tuple[Any, str]] = [
    (b"{not json", "not JSON"),
    (b'{"prompt": "cut', "not JSON"),
    (b"[1, 2]", "not a JSON object"),
    (b"12", "not a JSON object"),
    (b'{"prompt": NaN}', "not JSON"),
    (b"[" * 1500, "nested"),
    (b'{"prompt": "a\x00b"}', "NUL"),
    (b'{"prompt": "a\xff\xfeb"}', "UTF-8"),
    (b'{"prompt": "half \\ud83d of a pair"}', "surrogate"),
    (b'{"prompt": "' + b"x" * LIMIT + b'"}', "longer than"),
    ({"prompt": "x" * 500}, "longest sequence is 256"),
    ({"messages": [{"role": "user", "content": "x" * 500}]}, "longest sequence"),
    ({"prompt": "far too long " * 400}, "more than 256 tokens; the longest sequence"),
    ({"prompt": ""}, "empty"),
    ({"prompt": []}, "empty"),
    ({"messages": []}, "empty"),
    ({"messages": [{"role": "user", "content": ""}]}, "empty"),
    ({}, "`prompt` or `messages`"),
    ({"prompt": "a", "messages": [{"role": "user", "content": "b"}]}, "one of them"),
    ({"prompt": 12}, "got `int`"),
    ({"prompt": ["a", "b"]}, "got `str`"),
    ({"prompt": [1, 2.5]}, "got `float`"),
    ({"prompt": [5, 100_000]}, "outside the vocabulary"),
    ({"prompt": [-1]}, "outside the vocabulary"),
    ({"prompt": [2**40]}, "out of range"),
    ({"prompt": "a", "tempreture": 1}, "unknown field `tempreture`"),
    ({"prompt": "a", "label": "b"}, "unknown field `label`"),
    ({"prompt": "a", "temperature": "hot"}, "temperature"),
    ({"prompt": "a", "temperature": -1}, "temperature"),
    ({"prompt": "a", "top_p": 0}, "top_p"),
    ({"prompt": "a", "top_p": 1.5}, "top_p"),
    ({"prompt": "a", "n": 0}, "`$.n`"),
    ({"prompt": "a", "max_tokens": 0}, "max_tokens"),
    ({"prompt": "a", "max_tokens": 2, "min_tokens": 5}, "min_tokens"),
    ({"prompt": "a", "max_tokens": None, "min_tokens": 400}, "min_tokens"),
    ({"prompt": "a", "stop": [""]}, "stop string is empty"),
    ({"prompt": "a", "stop": [1]}, "stop"),
    ({"prompt": "a", "seed": 2**70}, "seed"),
    ({"prompt": "a", "seed": 1.5}, "seed"),
    ({"prompt": "a", "logprobs": 50}, "logprobs"),
    ({"prompt": "a", "logit_bias": {"x": 1}}, "logit_bias"),
    ({"prompt": "a", "logit_bias": {"99999": 1}}, "outside the vocabulary"),
    ({"prompt": "a", "stop_token_ids": [-4]}, "stop_token_ids"),
    ({"prompt": "a", "stop_token_ids": [1 << 20]}, "outside the vocabulary"),
    ({"prompt": "a", "guided_regex": "a+", "guided_choice": ["b"]}, "several constraints"),
    ({"prompt": "a", "structured_outputs": {"choice": []}}, "choice"),
    ({"prompt": "a", "guided_json": "{no"}, "not JSON"),
    ({"prompt": "a", "response_format": {"type": "json_schema"}}, "json_schema is missing"),
    ({"prompt": "a", "response_format": {"type": "xml"}}, "response_format"),
    ({"prompt": "a", "id": 1.5}, "`$.id`"),
    (chat("t1", "hi", tools=[{"type": "function"}]), "`tools` is not supported"),
    (chat("t2", "hi", stream=True), "`stream` is not supported"),
    (chat("t3", "hi", audio={"voice": "x"}), "`audio` is not supported"),
    (chat("t4", "hi", top_logprobs=3), "`top_logprobs` without"),
    (chat("t5", "hi", frobnicate=1), "unknown field `frobnicate`"),
    (
        envelope(custom_id="i1", body={"messages": [{"role": "tool", "content": "x"}]}),
        "unknown field `messages`",
    ),
    (envelope(url="/v1/embeddings"), "url"),
    (envelope(method="GET"), "method"),
    (envelope(custom_id=5), "custom_id"),
    (envelope(custom_id=""), "custom_id"),
    (envelope(body="text"), "`body`"),
    (envelope(priority=1), "`priority`"),
    ({"custom_id": "no body"}, "`body`"),
    ({"messages": [{"role": "oracle", "content": "x"}]}, "role"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "image_url"),
    (completion("b1", "text", best_of=4), "`best_of` is not supported"),
    (completion("b2", "text", suffix="end"), "`suffix` is not supported"),
    (completion("good0", "another text"), "the id 'good0' was given to line"),
    ({"id": "good1", "prompt": "one more"}, "the id 'good1' was given to line"),
]

GOOD = [
    completion("good0", "first"),
    {"prompt": "second", "id": "good1"},
    {"prompt": [10, 20, 30]},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "third"}]}]},
    chat("good4", "fourth", stream=False, tools=None, user="me", metadata={"a": "b"}, store=True),
    b'\xef\xbb\xbf{"prompt": "a mark that only the first line may begin with"}',
]


@pytest.fixture
def interleaved(tmp_path: Path) -> tuple[Path, dict[int, str]]:
    """A file with a good row between bad ones and blank lines, and the reason for each bad line."""
    rows: list[Any] = [GOOD[-1], *GOOD[:-1]]
    reasons: dict[int, str] = {}
    for bad, reason in BAD:
        rows += [b"", bad]
        reasons[len(rows)] = reason
        rows.append({"prompt": f"good after line {len(rows)}"})
    return write_lines(tmp_path / "in.jsonl", rows), reasons


def test_each_bad_row_is_named_and_the_rest_runs(
    interleaved: tuple[Path, dict[int, str]], tmp_path: Path
) -> None:
    source, reasons = interleaved
    job = Job(input=source, output=tmp_path / "out.jsonl", line_limit=LIMIT)
    summary = run(job)
    entries = {entry["line"]: entry for entry in results(job.files.quarantine)}
    assert entries.keys() == reasons.keys()
    for line, reason in reasons.items():
        entry = entries[line]
        assert reason in entry["reason"], entry
        assert entry["remedy"], entry
        assert "\n" not in entry["reason"] + entry["remedy"]
        assert len(entry["raw"]) < 400
    answered = answers(job.output)
    assert len(answered) == len(GOOD) + len(BAD)
    assert all(line["error"] is None for line in answered.values())
    assert summary.exit_code == SOME_FAILED
    assert (summary.quarantined, summary.answered) == (len(BAD), len(GOOD) + len(BAD))


def test_known_ids_stand_in_the_quarantine(tmp_path: Path) -> None:
    rows = [chat("named", "hi", stream=True), {"id": "short", "prompt": ""}, b"{bad", {"prompt": "good"}]
    job = Job(input=write_lines(tmp_path / "in.jsonl", rows), output=tmp_path / "out.jsonl")
    run(job)
    assert [entry["custom_id"] for entry in results(job.files.quarantine)] == ["named", "short", None]


def test_strict_runs_nothing(interleaved: tuple[Path, dict[int, str]], tmp_path: Path) -> None:
    source, reasons = interleaved
    job = Job(input=source, output=tmp_path / "out.jsonl", line_limit=LIMIT, strict=True)
    with pytest.raises(OperatorError, match="nothing was run") as refusal:
        run(job)
    assert str(job.files.quarantine) in str(refusal.value)
    assert len(results(job.files.quarantine)) == len(reasons)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl.quarantine.jsonl"]


def test_strict_with_good_rows_only_is_no_different(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", GOOD[:-1])
    job = Job(input=source, output=tmp_path / "out.jsonl", strict=True)
    assert run(job).exit_code == 0
    assert not job.files.quarantine.exists()

"""``shoal plan`` as a person meets it: one screen, one line of JSON, and a run that goes on from there."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from shoal.cli import words
from shoal.cli.main import code_of
from shoal.jobs.job import Outcome, Planned
from shoal.models.tokenizer import Tokenizer
from tests.jobs.support import completion, results, write_lines

ROOT = Path(__file__).parents[2]
SHOAL = [sys.executable, "-m", "shoal.cli.main"]
ROWS = 60


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """An instruction, three documents, questions of their own."""
    documents = [f"Document {name}: " + name * 40 for name in "xyz"]
    rows = [
        completion(f"r{i}", f"Answer the question. {documents[i % 3]} Question {i}?", max_tokens=5)
        for i in range(ROWS)
    ]
    return write_lines(tmp_path / "in.jsonl", [*rows, {**rows[0], "custom_id": "again"}])


@pytest.fixture(autouse=True)
def no_signal_handlers_stay() -> object:
    old = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in old.items():
        signal.signal(number, handler)


def shoal(verb: str, source: Path, *flags: str) -> int:
    return code_of([verb, str(source), "--model", "null", *flags])


def test_one_screen(
    source: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert shoal("plan", source) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80
    told = " ".join(" ".join(lines).split())
    assert "rows 61, 1 take the answer of an equal one, 60 to run" in told
    assert re.search(r"sharing saves \d\d\.\d% of the prompt tokens: [\d,]+ instead of [\d,]+", told)
    assert "Answer the quest" in told
    assert "Document y" in told
    assert re.search(r"→ every level, forest [\d,]+ this plan", told)
    assert re.search(r"as they come, LRU cache [\d,]+ dry run", told)
    assert [file.name for file in source.parent.iterdir()] == ["in.jsonl"], "nothing is left behind"


def test_what_the_plan_says_is_what_the_run_does(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert shoal("plan", source, "--json") == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    found = json.loads(out)
    output = source.with_name("out.jsonl")
    assert shoal("run", source, "-o", str(output)) == 0
    told = capsys.readouterr().err
    computed = found["plan"]["computed"]
    assert f"planned {computed:,} prompt tokens, computed {computed:,}" in " ".join(told.split())
    assert re.search(r"predicted [\d.]+ s, measured [\d.]+ s \([+-]\d+%\)", told)
    lines = results(output)
    usage = [line["response"]["body"]["usage"]["prompt_tokens"] for line in lines]
    cached = [line["shoal"]["cached_tokens"] for line in lines]
    leaders = ["folded_into" not in line["shoal"] for line in lines]
    assert sum(tokens - saved for tokens, saved, leads in zip(usage, cached, leaders) if leads) == computed
    by_name = {row["name"]: row["tokens"] for row in found["alternatives"]}
    assert by_name["every level, forest"] == computed
    assert by_name["every level, forest"] < by_name["one level, batchllm"]
    assert by_name["one level, batchllm"] < by_name["as they come, nothing shared"]


def test_a_run_begins_with_what_a_plan_prepared(
    source: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    output = str(source.with_name("out.jsonl"))
    assert shoal("plan", source, "-o", output) == 0
    assert "'shoal run' with the same flags begins" in " ".join(capsys.readouterr().out.split())

    def never(*arguments: object, **named: object) -> object:
        raise AssertionError("tokenised again")

    monkeypatch.setattr(Tokenizer, "encode_batch", never)
    assert shoal("plan", source, "-o", output) == 0
    assert shoal("run", source, "-o", output, "-q") == 0
    assert len(results(Path(output))) == ROWS + 1
    capsys.readouterr()
    assert shoal("plan", source, "-o", output) == 0
    assert "finished already" in capsys.readouterr().err


def test_bad_rows(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with source.open("ab") as file:
        file.write(b"{bad\n")
    assert shoal("plan", source) == 3
    told = capsys.readouterr().out
    assert "1 bad" in told
    assert f"line {ROWS + 2}: " in told
    assert shoal("plan", source, "--strict") == 2
    assert f"line {ROWS + 2}: " in capsys.readouterr().out
    output = source.with_name("out.jsonl")
    assert shoal("plan", source, "--strict", "-o", str(output)) == 2
    assert f"{output}.quarantine.jsonl: 1 of 62 rows are bad" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--prefix-reuse", "off"], "rows share nothing"),
        (["--policy", "flover"], "rows share nothing"),
        (["--policy", "batchllm"], "→ one level, batchllm"),
        (["--reuse", "arrival"], "→ arrival"),
        (["--expected-tokens", "2"], "about 120 tokens"),
        (["--limit", "1"], "no two prompts begin alike"),
    ],
)
def test_flags_change_the_plan(
    source: Path, capsys: pytest.CaptureFixture[str], flags: list[str], said: str
) -> None:
    assert shoal("plan", source, *flags) == 0
    assert said in capsys.readouterr().out


def test_interrupted(tmp_path: Path) -> None:
    source = write_lines(
        tmp_path / "in.jsonl", [completion(f"r{i}", f"text {i} " * 20) for i in range(20_000)]
    )
    output = tmp_path / "out.jsonl"
    command = [*SHOAL, "plan", str(source), "-o", str(output), "--model", "null"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    while not output.with_name("out.jsonl.spool").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in told


def test_words() -> None:
    plan = Planned(rows=1, requests=1, prompt_tokens=10, computed=5, nodes=1, levels=1, bounded=1, exact=True)
    plan.answer_tokens, plan.pages, plan.peak_pages, plan.preemptions, plan.seconds = 7, 10, 5, 1, 90.0
    assert words.short(plan) == [
        "plan: 1 row; sharing saves 50.0% of the prompt tokens: 5 instead of 10",
        "      answers at most 7 tokens; 1 shared prefix in up to 1 level, "
        "5 of 10 KV pages at most (50%); 1 sequence will have to yield",
        "      predicted 1:30",
    ]
    outcome = Outcome(rows=3, exact=False, planned=9, predicted=2.0, computed=12, preemptions=2, seconds=3.0)
    said = "planned about 9 prompt tokens, computed 12, as 2 sequences had to yield"
    took = "predicted 2.0 s, measured 3.0 s (+50%)"
    assert words.outcome_rows(outcome, 1) == [("plan", said), ("", took)]
    left = ", for the 3 rows that the last session had left"
    assert words.outcome_rows(outcome, 2) == [("plan", said + left), ("", took)]

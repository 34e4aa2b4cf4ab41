"""``shoal bench``: every form of it, at small sizes; nothing here is judged by a clock."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shoal.bench.jobs import JOBS, LLAMA_135M
from shoal.bench.limit import Heads, Shapes
from shoal.cli.main import code_of
from tests.jobs.support import write_lines


class MadeUp:
    """A machine whose rates need no measuring."""

    read = 1e10

    def __init__(self, dtype: str, threads: int) -> None: ...

    def product(self, shapes: Shapes, rows: int) -> float:
        return 1e9

    def attention(self, heads: Heads, keys: int) -> float:
        return 1e9


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    folder = tmp_path / "small"
    folder.mkdir()
    small = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 300}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
    (folder / "config.json").write_text(json.dumps(LLAMA_135M | small | heads))
    return folder


def test_all_jobs_without_a_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert code_of(["bench", "--quick", "--model", "null", "--json"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    found = json.loads(line)
    assert [job["name"] for job in found["jobs"]] == list(JOBS)
    for job in found["jobs"]:
        assert job["share"] is None
        assert job["tokens_per_second"] == pytest.approx(job["output_tokens"] / job["seconds"])
        assert sum(job["stages"].values()) <= job["watched_seconds"]


def test_a_job_beside_its_limit(llama: Path, monkeypatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("shoal.bench.tensors.rates.MeasuredRates", MadeUp)
    flags = ["--quick", "--model", str(llama), "--load-format", "dummy", "--dtype", "bfloat16"]
    assert code_of(["bench", "decode,single", *flags, "--repeat", "2", "--json"]) == 0
    decode, single = json.loads(capsys.readouterr().out)["jobs"]
    assert decode["output_tokens"] == 32 * 16
    assert len(decode["runs"]) == 2
    assert [part["name"] for part in decode["limit"]["parts"]] == [
        "prompt",
        "decode",
        "vocabulary",
        "attention",
    ]
    seconds = sum(part["seconds"] for part in single["limit"]["parts"])
    assert single["share"] == pytest.approx(seconds / single["seconds"])
    assert {"schedule", "inputs", "head", "update"} <= set(decode["stages"])
    assert code_of(["bench", "single", *flags, "--at-least", "1e9"]) == 3
    said = capsys.readouterr()
    assert "of it reached" in said.out
    assert "where the time of a step goes" in said.out
    assert "less than" in said.err


def test_a_file_of_prompts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = write_lines(tmp_path / "in.jsonl", [{"prompt": f"row {i}", "max_tokens": 5} for i in range(20)])
    assert (
        code_of(["bench", str(rows), "--model", "null", "--temperature", "0", "--ignore-eos", "--json"]) == 0
    )
    (job,) = json.loads(capsys.readouterr().out)["jobs"]
    assert (job["requests"], job["output_tokens"]) == (20, 100)
    assert {"rows in", "detokenise", "journal"} <= set(job["stages"])
    assert [file.name for file in tmp_path.iterdir()] == ["in.jsonl"]


def test_what_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert code_of(["bench", "fastest", "--model", "null"]) == 2
    assert "valid: shared" in capsys.readouterr().err
    assert code_of(["bench", "roofline", "--model", "null"]) == 2
    assert code_of(["bench", "single", "--model", "null", "--no-limits", "--at-least", "0.5"]) == 2
    bad = write_lines(tmp_path / "bad.jsonl", [{"prompt": ""}])
    assert code_of(["bench", str(bad), "--model", "null"]) == 2
    assert "no row was answered" in capsys.readouterr().err


def test_roofline(llama: Path, monkeypatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("shoal.bench.tensors.roofline.ROWS", (1, 8))
    monkeypatch.setattr("shoal.bench.tensors.roofline.read_rate", lambda: 2e10)
    monkeypatch.setattr(
        "shoal.bench.tensors.roofline.product_rates",
        lambda shapes, rows, dtypes: dict.fromkeys(dtypes, 1e9 * rows),
    )
    flags = ["--model", str(llama), "--load-format", "dummy"]
    assert code_of(["bench", "roofline", *flags]) == 0
    said = capsys.readouterr().out
    assert "reads 20.0 GB/s" in said
    assert "8.0" in said
    assert code_of(["bench", "roofline", *flags, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["roofline"]
    assert found["rates"]["bfloat16"] == {"1": 1e9, "8": 8e9}

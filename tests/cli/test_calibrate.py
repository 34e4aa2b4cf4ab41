"""``shoal calibrate`` as a person meets it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shoal.cli.main import code_of
from tests.engine.test_build import CONFIG


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setenv("SHOAL_CACHE", str(tmp_path / "cache"))
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    return ["--model", str(tmp_path), "--load-format", "dummy", "--threads", "1", "--kv-memory", "4MiB"]


def test_measured_once_and_shown_again(model: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert code_of(["calibrate", *model, "--budget", "0.5"]) == 0
    told = capfd.readouterr()
    first = told.out.splitlines()
    assert first[0].split() == ["rows", "ms", "a", "step", "tokens/s"]
    assert first[1].split()[0] == "1"
    assert "A step takes up to" in told.out
    kept = Path(first[-1].removeprefix("Kept in "))
    assert kept.is_file()
    assert "CPU" in told.err or "cpu" in told.err
    written = kept.read_bytes()
    assert code_of(["calibrate", *model]) == 0
    assert capfd.readouterr().out.splitlines() == first
    assert kept.read_bytes() == written


def test_one_line_for_machines(model: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert code_of(["calibrate", *model, "--budget", "0.5", "--json"]) == 0
    told = capfd.readouterr()
    (line,) = told.out.splitlines()
    found = json.loads(line)
    assert [entry["rows"] for entry in found["rows"]] == found["table"]["row_counts"]
    assert found["step_rows"] > 0
    assert Path(found["file"]).is_file()
    assert told.err == ""
    assert code_of(["calibrate", *model, "--budget", "0.5", "--json", "--fresh"]) == 0
    assert json.loads(capfd.readouterr().out)["seconds"] != found["seconds"]


def test_there_is_nothing_to_measure_without_a_model(capfd: pytest.CaptureFixture[str]) -> None:
    assert code_of(["calibrate", "--model", "null"]) == 2
    assert "nothing to measure" in capfd.readouterr().err

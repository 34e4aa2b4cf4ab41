"""Commands that load no model import no torch, which takes longer to import than they take to answer."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.test_bad_start import CONFIG, folder_with, no_tokenizer
from tests.jobs.support import write_lines

PROGRAM = """
import sys
from shoal.cli.main import code_of
code = code_of(sys.argv[1:])
assert "torch" not in sys.modules, "torch was imported"
sys.exit(code)
"""


def code(*arguments: object) -> int:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *map(str, arguments)], capture_output=True, text=True, timeout=120
    )
    assert "torch was imported" not in done.stderr
    return done.returncode


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    lines = [{"prompt": [3, 4, 5, number], "max_tokens": 2, "temperature": 0} for number in range(6, 10)]
    return write_lines(tmp_path / "in.jsonl", lines)


def test_help() -> None:
    assert code("--help") == 0
    assert code("run", "--help") == 0
    assert code("bench", "--help") == 0


def test_a_plan(rows: Path, tmp_path: Path) -> None:
    assert code("plan", rows, "--model", no_tokenizer(tmp_path), "--kv-memory", "1MiB") == 0


def test_refusals(rows: Path, tmp_path: Path) -> None:
    model, output = no_tokenizer(tmp_path), tmp_path / "out.jsonl"
    assert code("run", tmp_path / "none.jsonl", "-o", output, "--model", model) == 2
    assert code("run", rows, "-o", tmp_path / "no" / "out", "--model", model) == 2
    assert code("run", rows, "-o", output, "--model", tmp_path / "none") == 2
    assert code("run", rows, "-o", output, "--model", model, "--order", "alphabetical") == 2
    bad = write_lines(tmp_path / "bad.jsonl", [{"prompt": [3, 99]}])
    assert code("run", bad, "-o", output, "--model", model, "--kv-memory", "1MiB", "--strict") == 2


def test_a_config_that_is_refused(tmp_path: Path, rows: Path) -> None:
    model = folder_with(tmp_path / "odd")
    (model / "config.json").write_text(json.dumps(CONFIG | {"model_type": "odd", "architectures": ["Odd"]}))
    assert code("run", rows, "-o", tmp_path / "out.jsonl", "--model", model, "--load-format", "dummy") == 2

"""A plan of a long file of token ids: a bound on its time and on its memory."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.sizes import size

ROOT = Path(__file__).parents[2]
PEAK = """
import sys
from shoal.cli.main import code_of
code = code_of(sys.argv[1:])
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(peak.split()[1], file=sys.stderr)
sys.exit(code)
"""
LONG, TOP, MIDDLE = 500, 200, 200
"""Tokens of a prompt, of its first prefix, and of the one within it."""
ROWS_AT_ONCE = 50_000


def write_ids(path: Path, rows: int, tops: int, below: int) -> None:
    """Prompts of LONG ids behind ``tops`` prefixes with ``below`` further ones in each, in random order."""
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rng = np.random.default_rng(5)
    first = rng.integers(3, 259, (tops, TOP), dtype=np.int32)
    second = rng.integers(3, 259, (tops * below, MIDDLE), dtype=np.int32)
    schema = pa.schema([("prompt", pa.list_(pa.int32()))])
    with parquet.ParquetWriter(path, schema) as writer:
        for start in range(0, rows, ROWS_AT_ONCE):
            count = min(ROWS_AT_ONCE, rows - start)
            group = rng.integers(0, tops * below, count)
            own = rng.integers(3, 259, (count, LONG - TOP - MIDDLE), dtype=np.int32)
            ids = np.concatenate([first[group // below], second[group], own], axis=1)
            ends = np.arange(0, count * LONG + 1, LONG, dtype=np.int32)
            writer.write_table(pa.table([pa.ListArray.from_arrays(ends, ids.ravel())], schema=schema))


@pytest.mark.timeout(1500)
def test_a_million_rows_of_ids(tmp_path: Path, figure: Callable[[str], None]) -> None:
    rows, tops, below, seconds, peak = size((20_000, 20, 10, 60, 700e6), (1_000_000, 100, 100, 300, 2e9))
    source = tmp_path / "ids.parquet"
    write_ids(source, rows, tops, below)
    command = [sys.executable, "-c", PEAK, "plan", str(source), "--model", "null", "--json", "-q"]
    command += ["--max-tokens", "8", "--temperature", "0"]
    started = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=1400)
    took = time.monotonic() - started
    assert done.returncode == 0, done.stderr
    most = int(done.stderr.split()[-1]) * 1024
    figure(f"{rows:,} rows of {LONG} ids planned in {took:.0f} s, {most / 1e6:,.0f} MB at most")
    plan = json.loads(done.stdout)["plan"]
    assert plan["rows"] == rows
    assert plan["levels"] == 2
    assert plan["exact"]
    # Whole pages of 16: the border of the second prefix lies on one, that of the first does not.
    shared = tops * (TOP // 16 * 16) + tops * below * (TOP + MIDDLE - TOP // 16 * 16)
    assert plan["computed"] == shared + rows * (LONG - TOP - MIDDLE)
    assert most <= peak
    assert took <= seconds or size(True, False)

"""Memory that does not grow with the file."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.sizes import size

ROOT = Path(__file__).parents[2]
PEAK = """
import sys
from shoal.cli.main import code_of
code = code_of(sys.argv[1:])
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(peak.split()[1])
sys.exit(code)
"""


def write_rows(path: Path, rows: int) -> None:
    """30-token prompts, 8 tokens out, one row in twenty equal to an earlier one."""
    rng = random.Random(3)
    recent: list[str] = []
    with path.open("w") as file:
        for i in range(rows):
            if recent and rng.random() < 0.05:
                prompt = rng.choice(recent)
            else:
                prompt = f"{rng.getrandbits(120):030x}"
            recent = [*recent[-99:], prompt]
            body = {"prompt": prompt, "max_tokens": 8, "temperature": 0}
            row = {"custom_id": f"r{i}", "method": "POST", "url": "/v1/completions", "body": body}
            file.write(json.dumps(row) + "\n")


def peak_of(folder: Path, rows: int) -> int:
    """Peak resident bytes of a whole run over ``rows`` rows."""
    source, output = folder / f"{rows}.jsonl", folder / f"{rows}.out.jsonl"
    write_rows(source, rows)
    command = [sys.executable, "-c", PEAK, "run", str(source), "-o", str(output), "--model", "null", "-q"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=280 + rows // 500)
    assert done.returncode == 0, done.stderr
    with output.open() as file:
        assert sum(1 for _ in file) == rows
    output.unlink()
    source.unlink()
    return int(done.stdout) * 1024


@pytest.mark.timeout(2500)
def test_peak_memory_hardly_grows_with_rows(tmp_path: Path, figure: Callable[[str], None]) -> None:
    rows, allowed = size((100_000, 20e6), (1_000_000, 100e6))
    small = peak_of(tmp_path, 1000)
    started = time.monotonic()
    large = peak_of(tmp_path, rows)
    seconds = time.monotonic() - started
    figure(f"{rows:,} rows in {seconds:.0f} s, {(large - small) / 1e6:.1f} MB above 1,000 rows")
    assert large - small <= allowed

"""From the shell to the first token, and to the first word of commands that load no model.

    python benchmarks/startup.py [--models llama135m,gemma270m] [--repeat 5] [--dtype bfloat16]

The job is ``single``: one prompt of 128 tokens. What is timed is ``shoal run`` from its start as a process
until the line with the first token stands in the output file; files are in the page cache, and Python keeps
what it compiled, as it does unless told not to. ``llama135m`` is a folder of random weights that is written
once under ``out/``; ``gemma270m`` is the demo model. The last line is the result as JSON; the exit code is 0
if every median is under its bound.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.models import llama135m
from shoal.bench.jobs import JOBS, LLAMA_135M

ROOT = Path(__file__).resolve().parent.parent
SHOAL = (sys.executable, "-m", "shoal.cli.main")
BOUNDS = {"llama135m": 2.5, "gemma270m": 4.0}
QUICK = 0.5
"""Seconds in which a command answers that loads no model."""
POLL = 0.002
VARIABLES = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def first_token(flags: list[str], rows: Path, folder: Path) -> tuple[float, float]:
    """Seconds until the first token is in the output file, and until the process has ended."""
    output = folder / "out.jsonl"
    for old in folder.glob("out.jsonl*"):
        old.unlink()
    begin = time.perf_counter()
    process = subprocess.Popen([*SHOAL, "run", str(rows), "-o", str(output), "-q", *flags], env=VARIABLES)
    while not (output.exists() and output.stat().st_size):
        if process.poll() is not None:
            raise SystemExit(f"shoal run ended with {process.returncode} and no token")
        time.sleep(POLL)
    first = time.perf_counter() - begin
    if process.wait():
        raise SystemExit(f"shoal run ended with {process.returncode}: {output.read_text()[:500]}")
    return first, time.perf_counter() - begin


def answered(command: list[str], code: int) -> float:
    """Seconds until a command has ended."""
    begin = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, env=VARIABLES)
    if done.returncode != code:
        raise SystemExit(f"{' '.join(command)}: {done.returncode}, not {code}: {done.stderr[:500]}")
    return time.perf_counter() - begin


def write_row(path: Path, vocabulary: int, bos: int | None) -> Path:
    """``single`` as a file, answered with one token."""
    (prompt,) = JOBS["single"](np.random.default_rng(0), vocabulary, False).prompts
    ids = prompt.tolist() if bos is None else [bos, *prompt.tolist()[1:]]
    path.write_text(json.dumps({"prompt": ids, "max_tokens": 1, "temperature": 0, "ignore_eos": True}) + "\n")
    return path


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--models", default=",".join(BOUNDS))
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--dtype", default="bfloat16", choices=["auto", "float32", "bfloat16"])
    options = parser.parse_args()
    options.models = options.models.split(",")
    return options


def said(name: str, seconds: list[float], bound: float | None = None) -> dict[str, Any]:
    found = median(seconds)
    verdict = "" if bound is None else f"   bound {bound:.1f}: {'ok' if found < bound else 'OVER'}"
    runs = " ".join(f"{value:.2f}" for value in seconds)
    print(f"{name:<36} median {found:.2f} s   ({runs}){verdict}", flush=True)
    return {"name": name, "median": found, "seconds": seconds, "bound": bound}


def main() -> int:
    options = arguments()
    found = []
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        folders = {"llama135m": str(llama135m(ROOT / "out" / "llama135m")), "gemma270m": "demo"}
        rows = {
            "llama135m": write_row(place / "llama.jsonl", LLAMA_135M["vocab_size"], None),
            "gemma270m": write_row(place / "gemma.jsonl", 262_144, 2),
        }
        count = range(options.repeat)
        for name in options.models:
            flags = ["--model", folders[name], "--dtype", options.dtype]
            first_token(flags, rows[name], place)
            both = [first_token(flags, rows[name], place) for _ in count]
            found.append(said(f"{name}: first token", [first for first, _ in both], BOUNDS[name]))
            said(f"{name}: end of the process", [end for _, end in both])
            command = [*SHOAL, "plan", str(rows[name]), *flags]
            found.append(said(f"{name}: shoal plan", [answered(command, 0) for _ in count], QUICK))
        refused = [*SHOAL, "run", str(place / "none.jsonl"), "-o", str(place / "x.jsonl"), "--model", "demo"]
        found.append(said("shoal --help", [answered([*SHOAL, "--help"], 0) for _ in count], QUICK))
        found.append(said("a refused input", [answered(refused, 2) for _ in count], QUICK))
        said("python -c 'import torch'", [answered([sys.executable, "-c", "import torch"], 0) for _ in count])
    print(json.dumps({"bench": "startup", "dtype": options.dtype, "rows": found}))
    return 0 if all(row["median"] < row["bound"] for row in found) else 1


if __name__ == "__main__":
    raise SystemExit(main())

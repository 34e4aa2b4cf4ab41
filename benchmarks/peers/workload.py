"""The jobs as files that every contestant reads, and the least time that the machine could take for them."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.environments import ROOT
from benchmarks.peers.models import GEMMA_BEGIN
from benchmarks.peers.roster import GEMMA
from shoal.bench.jobs import JOBS, Job

SEED = 0
LONGEST = 2048
"""Tokens of the longest sequence that contestants are told to expect."""


def job_of(name: str, model: str, folder: Path, quick: bool) -> Job:
    """A job in ids of ``model``; Gemma's prompts begin with its BOS, as the model needs it."""
    vocabulary = json.loads((folder / "config.json").read_text())["vocab_size"]
    job = JOBS[name](np.random.default_rng(SEED), vocabulary, quick)
    if model == GEMMA:
        for prompt in job.prompts:
            prompt[0] = GEMMA_BEGIN
    return job


def write(job: Job, path: Path) -> str:
    """The job as contestants read it; returns a digest of it."""
    content = {
        "name": job.name,
        "prompts": [prompt.tolist() for prompt in job.prompts],
        "outputs": job.outputs,
        "common": job.common,
    }
    text = json.dumps(content)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def limits(folder: Path, model: str, names: list[str], quick: bool, threads: int) -> dict[str, Any]:
    """Seconds of each job's least work at rates measured now, in a process of its own, and the rates."""
    command = [sys.executable, "-m", "benchmarks.peers.workload", str(folder), model, ",".join(names)]
    command += [str(threads), "quick" if quick else "full"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def _measure_limits(folder: Path, model: str, names: list[str], threads: int, quick: bool) -> dict[str, Any]:
    from shoal.bench.limit import limit_of
    from shoal.bench.tensors.rates import MeasuredRates
    from shoal.bench.work import least_work
    from shoal.models.registry import read_architecture

    architecture = read_architecture(json.loads((folder / "config.json").read_text()), str(folder))
    rates = MeasuredRates("bfloat16", threads)
    found = {}
    for name in names:
        job = job_of(name, model, folder, quick)
        limit = limit_of(least_work(job.prompts, job.outputs), job.side_by_side, architecture, rates, item=2)
        parts = {part.name: part.operations / part.seconds / 1e9 for part in limit.parts if part.seconds}
        found[name] = {"seconds": limit.seconds, "gflop_s": parts, "read_gb_s": rates.read / 1e9}
    return found


if __name__ == "__main__":
    where, which, asked, cores, size = sys.argv[1:]
    print(json.dumps(_measure_limits(Path(where), which, asked.split(","), int(cores), size == "quick")))

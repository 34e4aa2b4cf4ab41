"""Peak resident memory: packed weights once, the KV pool, and little else; logits never all at once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.models.test_load_memory import write_folder
from tests.sizes import size

ROOT = Path(__file__).parents[2]
MARGIN = 300 << 20
"""Bytes beyond weights and KV pool that a run may take, above a process that imported torch and loaded the
tokenizer."""
ROWS = 256
TOKENS = 16
"""Of an answer: the first is not done before the last has begun."""
MODELS = size(["tiny"], ["tiny", "demo"])


def child(*arguments: str) -> dict[str, int]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.engine.test_memory", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("model", MODELS)
def test_peak_of_resident_memory(model: str, dtype: str, tmp_path: Path) -> None:
    spec = str(write_folder(tmp_path, 1)) if model == "tiny" else model
    bare = child("bare", spec)
    found = child("run", spec, dtype)
    print(f"{model} {dtype}: bare {bare['resident'] >> 20} MB, {found}")
    assert found["emitting"] == ROWS
    assert found["peak"] <= bare["resident"] + found["weights"] + found["kv"] + MARGIN


def resident(key: str) -> int:
    """Bytes of VmRSS (now) or VmHWM (at most so far)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024
    raise OSError(f"no {key} in /proc/self/status")


def bare(spec: str) -> dict[str, int]:
    import torch

    from shoal.models.files import open_model

    torch.ones(4).add(1)
    files = open_model(spec)
    if files.has_tokenizer:
        files.tokenizer()
    return {"resident": resident("VmRSS")}


def run(spec: str, dtype: str) -> dict[str, int]:
    """Many sequences that decode in one step; every other row is drawn, some with log-probabilities."""
    import numpy as np

    from shoal.core.config import EngineConfig
    from shoal.core.request import Request, SamplingParams
    from shoal.engine.build import prepare, start

    # Rows as stated, not as fast as this machine happens to be.
    config = EngineConfig(
        model=spec,
        dtype=dtype,
        kv_memory=512 << 20,
        max_model_len=32,
        max_num_seqs=ROWS,
        max_num_batched_tokens=512,
        admission="sarathi-serve:rows=512",
    )
    prepared = prepare(config)
    engine = start(prepared)
    emitting = 0
    submit = engine.executor.submit

    def counted(plan) -> None:
        nonlocal emitting
        emitting = max(emitting, len(plan.emitting_rows()))
        submit(plan)

    engine.executor.submit = counted
    rng = np.random.default_rng(0)
    for row in range(ROWS):
        prompt = rng.integers(0, prepared.model.vocabulary, 8).astype(np.int32)
        drawn = {"temperature": float(row % 2), "logprobs": 3 if row % 8 == 0 else None}
        params = SamplingParams(max_tokens=TOKENS, ignore_eos=True, **drawn)
        engine.add(Request(id=str(row), prompt=prompt, params=params, seed=row), 0.0)
    while not engine.idle:
        for finished in engine.step(0.0).finished:
            assert finished.error is None, finished.error
            assert len(finished.tokens) == TOKENS
    model = engine.executor.model
    cache = engine.executor.cache
    kv = sum(half.nbytes for half in (*cache.keys, *cache.values))
    return {"peak": resident("VmHWM"), "weights": model.weights.bytes, "kv": kv, "emitting": emitting}


if __name__ == "__main__":
    verb, *rest = sys.argv[1:]
    print(json.dumps({"bare": bare, "run": run}[verb](*rest)))

"""Compiled kernels answer with the same bits whatever is beside a row: tokens and every log-probability."""

from __future__ import annotations

import numpy as np
import pytest

from shoal.core.config import EngineConfig
from shoal.core.request import Request, SamplingParams
from shoal.engine import machine
from shoal.engine.build import prepare, start
from tests.engine.harness import drain
from tests.models.tiny import VARIANTS, reference, save
from tests.sizes import size

pytestmark = pytest.mark.skipif(not machine.compiled(), reason="the compiled kernels were not built")

VOCABULARY, OUTPUT = 160, size(12, 40)
REQUESTS = size(40, 256)
STEM = 150
"""Tokens of a stem: longer than a block of 128 positions, so that whole blocks are shared."""
NAMES = size(("llama-plain", "gemma3-plain"), ("llama-plain", "qwen2-window", "qwen3-plain", "gemma3-plain"))
"""Biases, windows, norms of queries and keys, norms after: what kernels do differently for one or another."""
COMPANY = {
    "two": {"max_num_seqs": 2},
    "seven": {"max_num_seqs": 7},
    "sixty-four": {"max_num_seqs": 64},
    "two hundred and fifty-six": {"max_num_seqs": 256},
    "chunks of 16": {"max_num_batched_tokens": 16},
    "chunks of 100": {"max_num_batched_tokens": 100},
    "chunks of 2048": {"max_num_batched_tokens": 2048},
    "nothing shared": {"prefix_reuse": False},
    "preempted": {"kv_memory": "pages"},
    "pages of 7": {"page_size": 7},
    "pages of 64": {"page_size": 64},
    "one thread": {"threads": 1},
    "five threads": {"threads": 5},
    "slots": {"layout": "slots"},
    "contiguous": {"layout": "contiguous", "page_size": 32},
    "contiguous, larger pages": {"layout": "contiguous", "page_size": 128},
    "contiguous, seven places": {"layout": "contiguous", "page_size": 32, "max_num_seqs": 7},
    "contiguous, nothing shared": {"layout": "contiguous", "page_size": 32, "prefix_reuse": False},
    "contiguous, preempted": {"layout": "contiguous", "page_size": "least", "kv_memory": "pages"},
    "slots, moved": {"policy": "flover", "max_num_seqs": 7},
}


@pytest.fixture(scope="module", params=NAMES)
def folder(request, tmp_path_factory):
    variant = next(each for each in VARIANTS if each.name == request.param)
    return save(reference(variant), tmp_path_factory.mktemp("model"))


def requests():
    rng = np.random.default_rng(3)
    stems = [rng.integers(3, VOCABULARY, STEM) for _ in range(3)]
    for i in range(REQUESTS):
        stem = stems[i % 3][: rng.choice([0, 40, STEM])]
        own = rng.integers(3, VOCABULARY, rng.integers(1, 20))
        params = SamplingParams(
            temperature=0.0 if i % 2 else 0.9, max_tokens=OUTPUT, ignore_eos=True, logprobs=2
        )
        yield Request(
            id=f"r{i}", prompt=np.concatenate([stem, own]).astype(np.int32), params=params, seed=1000 + i
        )


def answers(folder, dtype, **changes):
    """(by request the tokens with the bits of their log-probabilities, preemptions)."""
    if changes.get("kv_memory") == "pages":
        # What the longest sequence needs, and a little more.
        prepared = prepare(EngineConfig(model=str(folder), dtype=dtype, kv_memory=32 << 20))
        token = prepared.architecture.kv_bytes_per_token(2 if dtype == "bfloat16" else 4)
        changes["kv_memory"] = (STEM + 32 + OUTPUT) * 5 // 4 * token
    if changes.get("page_size") == "least":
        # Of these models, what is a whole number of the system's pages.
        changes["page_size"] = 16 if dtype == "float32" else 32
    config = {
        "model": str(folder),
        "dtype": dtype,
        "kernels": "compiled",
        "threads": 2,
        "kv_memory": 32 << 20,
    }
    engine = start(prepare(EngineConfig(**(config | changes))))
    for item in requests():
        engine.add(item, 0.0)
    found = {
        name: [
            (token, np.float32(each.logprob).tobytes(), each.top) for token, each in zip(a.tokens, a.logprobs)
        ]
        for name, a in drain(engine).items()
    }
    return found, engine.scheduler.counters.preemptions


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def alone(folder, request):
    return folder, request.param, answers(folder, request.param, max_num_seqs=1, prefix_reuse=False)[0]


@pytest.mark.parametrize("how", COMPANY)
def test_the_same_bits(alone, how) -> None:
    folder, dtype, want = alone
    got, preempted = answers(folder, dtype, **COMPANY[how])
    assert got == want
    # In pages of 32 nobody grows enough here to make another yield.
    assert "preempted" not in how or preempted or (dtype == "bfloat16" and "contiguous" in how)


def test_a_hundred_runs_give_one_answer(folder) -> None:
    want, _ = answers(folder, "bfloat16")
    for _ in range(size(3, 100)):
        assert answers(folder, "bfloat16")[0] == want

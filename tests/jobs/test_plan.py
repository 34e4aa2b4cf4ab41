"""What a plan states is what the run then computes, to the token."""

from __future__ import annotations

import tempfile
from pathlib import Path
from random import Random
from typing import Any

import pytest

from shoal.core.config import EngineConfig
from shoal.engine.build import Prepared, prepare, start
from shoal.jobs.job import Job, Outcome
from shoal.jobs.plan import Planner
from shoal.jobs.runner import run_job
from tests.jobs.support import Listener, completion, write_lines
from tests.sizes import size

PAGE = 8
LONGEST = 128
POOLS = {"large": None, "small": 8 * PAGE * 60, "smallest": 8 * LONGEST}
"""KV memory of the null model, at 8 bytes a token."""


def some_rows(rng: Random) -> list[dict[str, Any]]:
    """Rows that go on from shared beginnings of any length, at several depths: equal ones, some that are the
    beginning of others, whole pages and odd ends, several answers, scored prompts."""
    texts: list[list[int]] = [[]]
    for _ in range(rng.randint(1, 6)):
        more = rng.choice([PAGE, 2 * PAGE, rng.randint(1, 3 * PAGE)])
        texts.append((rng.choice(texts) + rng.choices(range(3, 250), k=more))[:90])
    rows = []
    for i in range(rng.randint(1, 30)):
        ids = list(rng.choice(texts[1:]))
        if rng.random() < 0.5:
            ids += rng.choices(range(3, 250), k=rng.randint(1, PAGE + 2))
        ids = ids[: max(1, len(ids) - rng.choice([0, 0, 0, 1, 3]))]
        fields: dict[str, Any] = {"max_tokens": rng.randint(1, 9)}
        if rng.random() < 0.2:
            fields |= {"n": rng.randint(2, 4), "temperature": 1.0}
        if rng.random() < 0.2:
            fields["prompt_logprobs"] = 0
        rows.append(completion(f"r{i}", ids, **fields))
    return rows


def outcome_of(
    rows: list[dict[str, Any]], window_pages: int = 1 << 20, expected: int | None = None, **config: Any
) -> Outcome:
    """Run the rows on the null model; every answer must be there."""
    settings: dict[str, Any] = {"max_num_seqs": 8, "max_model_len": LONGEST, "page_size": PAGE, **config}
    prepared = prepare(EngineConfig(model="null", **settings))
    engines = []

    def started(prepared: Prepared) -> Any:
        engines.append(start(prepared))
        return engines[0]

    with tempfile.TemporaryDirectory() as folder:
        source = write_lines(Path(folder) / "in.jsonl", rows)
        job = Job(input=source, output=Path(folder) / "out.jsonl")
        planner = Planner(prepared, expected, window_pages)
        summary = run_job(job, prepared, started, Listener(), planner=planner)
    assert summary.answered == len(rows)
    engines[0].check()
    counters = engines[0].scheduler.counters
    assert summary.outcome is not None
    assert summary.outcome.computed == counters.computed - counters.generated
    return summary.outcome


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("policy", [{}, {"reuse": "forest:reorder=false"}, {"policy": "batchllm"}])
def test_stated_tokens_are_computed(policy: dict[str, str], pool: str) -> None:
    undisturbed = 0
    for seed in range(size(15, 150)):
        rng = Random(seed)
        outcome = outcome_of(
            some_rows(rng),
            window_pages=rng.choice([1 << 20, 6]),
            kv_memory=POOLS[pool],
            max_num_batched_tokens=rng.choice([4, 32, 512]),
            **policy,
        )
        assert outcome.exact
        if not outcome.preemptions:
            undisturbed += 1
            assert outcome.computed == outcome.planned, seed
    assert undisturbed


@pytest.mark.parametrize("reuse", ["arrival", "sorted"])
def test_as_they_come_with_all_memory(reuse: str) -> None:
    for seed in range(size(15, 150)):
        outcome = outcome_of(some_rows(Random(seed)), reuse=reuse)
        assert outcome.computed == outcome.planned, seed


def test_without_sharing_every_prompt_is_computed() -> None:
    for seed in range(size(8, 50)):
        outcome = outcome_of(some_rows(Random(seed)), prefix_reuse=False)
        assert outcome.exact
        assert outcome.computed == outcome.planned, seed

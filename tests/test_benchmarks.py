"""The least work of a benchmark job, against counting it row by row."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.jobs import JOBS, VOCABULARY, Job, least_work


def counted(job: Job) -> tuple[int, int, int]:
    """(prompt rows, decode rows, pairs): every distinct prefix of a prompt or answer is one row."""
    prompts: set[bytes] = set()
    decode = pairs = 0
    for ids, output in zip(job.prompts, job.outputs, strict=True):
        for end in range(1, len(ids) + 1):
            prefix = ids[:end].tobytes()
            pairs += end if prefix not in prompts else 0
            prompts.add(prefix)
        decode += output - 1
        pairs += sum(range(len(ids) + 1, len(ids) + output))
    return len(prompts), decode, pairs


@pytest.mark.parametrize("name", JOBS)
def test_the_least_work_is_each_distinct_prefix_once(name):
    job = JOBS[name](np.random.default_rng(3), True)
    work = least_work(job)
    assert (work.prompt_rows, work.decode_rows, work.pairs) == counted(job)
    assert work.emitted == sum(job.outputs)


@pytest.mark.parametrize("name", JOBS)
def test_jobs_follow_their_seed(name):
    one, same, other = (JOBS[name](np.random.default_rng(seed), True) for seed in (1, 1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(one.prompts, same.prompts, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(one.prompts, other.prompts, strict=False))
    assert all(ids.min() >= 0 and ids.max() < VOCABULARY for ids in one.prompts)

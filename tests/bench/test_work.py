"""The least work of a job, against counting it row by row."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.bench.jobs import JOBS
from shoal.bench.work import least_work

VOCABULARY = 1000


def counted(prompts, outputs, window: int | None) -> tuple[int, int, int]:
    """(prompt rows, decode rows, pairs): every distinct prefix of a prompt is one row."""
    known: set[bytes] = set()
    decode = pairs = 0
    for ids, output in zip(prompts, outputs, strict=True):
        for end in range(1, len(ids) + 1):
            prefix = ids[:end].tobytes()
            pairs += min(end, window or end) if prefix not in known else 0
            known.add(prefix)
        decode += output - 1
        pairs += sum(min(end, window or end) for end in range(len(ids) + 1, len(ids) + output))
    return len(known), decode, pairs


@pytest.mark.parametrize("name", JOBS)
@pytest.mark.parametrize("window", [None, 100])
def test_the_least_work_is_each_distinct_prefix_once(name: str, window: int | None) -> None:
    job = JOBS[name](np.random.default_rng(3), VOCABULARY, True)
    work = least_work(job.prompts, job.outputs)
    assert (work.prompt_rows, work.decode_rows, work.pairs(window)) == counted(
        job.prompts, job.outputs, window
    )
    assert work.emitted == sum(job.outputs)


@given(
    st.lists(
        st.tuples(st.lists(st.sampled_from([0, 1, 255, 256]), min_size=1, max_size=8), st.integers(1, 4)),
        min_size=1,
        max_size=12,
    ),
    st.sampled_from([None, 1, 3]),
)
def test_any_tree_of_prompts(rows, window) -> None:
    prompts = [np.array(ids, dtype=np.int32) for ids, _ in rows]
    outputs = [output for _, output in rows]
    work = least_work(prompts, outputs)
    assert (work.prompt_rows, work.decode_rows, work.pairs(window)) == counted(prompts, outputs, window)


@pytest.mark.parametrize("name", JOBS)
def test_jobs_follow_their_seed(name: str) -> None:
    one, same, other = (JOBS[name](np.random.default_rng(seed), VOCABULARY, True) for seed in (1, 1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(one.prompts, same.prompts, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(one.prompts, other.prompts, strict=False))
    assert all(ids.min() >= 0 and ids.max() < VOCABULARY for ids in one.prompts)

"""The batching that the contest brings to llama.cpp, against a cache that keeps every sequence's ids."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from benchmarks.peers.contestants.lines import Lines
from benchmarks.peers.contestants.protocol import Job


def token_after(ids: list[int]) -> int:
    return zlib.crc32(str(ids).encode()) % 50


def expected(job: Job) -> list[list[int]]:
    answers = []
    for prompt, output in zip(job.prompts, job.outputs):
        known = list(prompt)
        for _ in range(output):
            known.append(token_after(known))
        answers.append(known[len(prompt) :])
    return answers


def run(job: Job, rows: int, sequences: int, cells: int | None) -> tuple[list[list[int]], int]:
    """(answers, rows computed), with every promise about the cache checked."""
    lines, kept, computed = Lines(job, rows, sequences, cells), {}, 0
    while chunks := lines.next():
        for source, target in lines.moves:
            if target is None:
                kept.pop(source, None)
            else:
                assert not kept.get(target)
                kept[target] = list(kept[source])
        lines.moves.clear()
        assert sum(len(chunk.ids) for chunk in chunks) <= rows
        tokens = []
        for sequence, ids, position, emits in chunks:
            assert 0 <= sequence.id < sequences
            held = kept.setdefault(sequence.id, [])
            assert len(held) == position
            held += ids
            computed += len(ids)
            if emits:
                tokens.append(token_after(held))
        if cells is not None:
            assert len({tuple(ids[:end]) for ids in kept.values() for end in range(1, len(ids) + 1)}) <= cells
        lines.computed(chunks, tokens)
    return lines.answers, computed


def make_job(seed: int, groups: int, members: int, common: int) -> Job:
    rng = np.random.default_rng(seed)
    prompts = []
    for _ in range(groups):
        prefix = rng.integers(0, 1000, common).tolist()
        prompts += [prefix + rng.integers(0, 1000, rng.integers(1, 9)).tolist() for _ in range(members)]
    order = rng.permutation(len(prompts))
    outputs = rng.integers(1, 6, len(prompts)).tolist()
    return Job("made up", [prompts[i] for i in order], outputs, common)


@given(
    seed=st.integers(0, 2**32 - 1),
    groups=st.integers(1, 6),
    members=st.integers(1, 6),
    common=st.sampled_from([0, 1, 20]),
    rows=st.integers(1, 40),
    sequences=st.integers(2, 20),
    unified=st.booleans(),
)
def test_answers_are_those_of_each_request_alone(seed, groups, members, common, rows, sequences, unified):
    job = make_job(seed, groups, members, common)
    # Groups that happen to begin alike would share more.
    assume(not common or len({tuple(prompt[:common]) for prompt in job.prompts}) == groups)
    largest = common + members * (8 + 5)
    answers, computed = run(job, rows, sequences, largest + seed % 50 if unified else None)
    assert answers == expected(job)
    prompts = sum(map(len, job.prompts)) - (groups * (members - 1) * common if members > 1 else 0)
    assert computed == prompts + sum(job.outputs) - len(job.outputs)


def test_a_group_that_does_not_fit_is_refused():
    with pytest.raises(RuntimeError, match="larger than the KV pool"):
        run(make_job(0, 2, 3, 20), rows=8, sequences=4, cells=20)

"""Which rows run, in which order, and how long their answers are taken to be."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shoal.core.config import EngineConfig
from shoal.core.request import Constraint, SamplingParams
from shoal.engine.build import Prepared, prepare
from shoal.engine.costs import NULL_COST, Costed
from shoal.jobs.course import Course, rows_to_run
from shoal.jobs.job import Job, Planned
from shoal.jobs.lengths import AnswerLengths, Expectation
from shoal.jobs.opening import open_rows
from shoal.jobs.plan import Planner
from shoal.jobs.preflight import Preflight
from shoal.jobs.spool import Spool, pack
from tests.jobs.support import Listener, completion, mixed_rows, write_lines

NEVER = bool


@pytest.fixture
def prepared() -> Prepared:
    return prepare(EngineConfig(model="null", max_num_seqs=8, max_model_len=256))


def spooled(folder: Path, rows: list[dict[str, Any]], prepared: Prepared) -> Spool:
    job = Job(input=write_lines(folder / "in.jsonl", rows), output=folder / "out.jsonl")
    source = open_rows(job)
    Preflight(job, prepared.model, Listener(), NEVER).run(source)
    source.close()
    return Spool(job.files.spool)


def planned(planner: Planner, spool: Spool) -> tuple[Course, Planned]:
    return planner.plan(spool, np.zeros(spool.rows, dtype=bool), Listener(), NEVER)


def test_of_equal_rows_one_runs_even_when_its_leader_is_done(tmp_path: Path, prepared: Prepared) -> None:
    spool = spooled(tmp_path, [completion(f"r{i}", "same" if i % 2 else f"{i}") for i in range(8)], prepared)
    done = np.zeros(8, dtype=bool)
    assert rows_to_run(spool, done).tolist() == [0, 1, 2, 4, 6]
    done[[0, 3]] = True
    assert rows_to_run(spool, done).tolist() == [1, 2, 4, 6]
    done[1] = True
    # Rows 5 and 7 lost their lines after their leader's was written: 5 answers for both.
    assert rows_to_run(spool, done).tolist() == [2, 4, 5, 6]
    done[:] = True
    assert rows_to_run(spool, done).tolist() == []
    spool.close()


def test_every_row_has_its_turn_and_groups_stand_together(tmp_path: Path, prepared: Prepared) -> None:
    rows = [completion(f"r{i}", "abc"[i % 3] * 20 + str(i)) for i in range(30)]
    spool = spooled(tmp_path, rows, prepared)
    course, figures = planned(Planner(prepared), spool)
    turns = list(course)
    assert sorted(turn.row for turn in turns) == list(range(30))
    groups = [turn.row % 3 for turn in turns]
    assert sum(one != other for one, other in itertools.pairwise(groups)) == 2
    assert {turn.path[0].members for turn in turns} == {10}
    assert (figures.rows, figures.nodes, figures.levels, figures.windows) == (30, 3, 1, 1)
    assert figures.computed == figures.prompt_tokens - 3 * 9 * 16
    for first in (0, 1, 17, 29, 30):
        assert list(course.turns(first)) == turns[first:]
    spool.close()


def test_windows_share_nothing_with_each_other(tmp_path: Path, prepared: Prepared) -> None:
    rows = [completion(f"r{i}", "a" * 20 + f"{i:02}") for i in range(12)]
    spool = spooled(tmp_path, rows, prepared)
    course, figures = planned(Planner(prepared, window_pages=5), spool)
    assert figures.windows == 3
    assert [len(rows) for rows, _ in course.windows] == [5, 5, 2]
    turns = list(course)
    assert sorted(turn.row for turn in turns) == list(range(12))
    assert [turn.domain for turn in turns] == [0] * 5 + [1] * 5 + [2] * 2
    assert len({turn.path[0].node for turn in turns}) == 3
    assert figures.computed == 12 * 22 - (4 + 4 + 1) * 16
    for first in (3, 5, 11):
        assert list(course.turns(first)) == turns[first:]
    spool.close()


def test_a_rehearsal_computes_what_the_plan_states(tmp_path: Path, prepared: Prepared) -> None:
    spool = spooled(tmp_path, mixed_rows(80, 3), prepared)
    planner = Planner(prepared)
    course, figures = planned(planner, spool)
    stated = figures.computed
    planner.predict(Costed(prepared, NULL_COST), spool, course, figures, NEVER)
    assert figures.computed == stated
    assert figures.seconds
    assert 0 < (figures.peak_pages or 0) <= prepared.pages
    spool.close()


@pytest.mark.parametrize(
    ("params", "asked", "found"),
    [
        (SamplingParams(max_tokens=9), None, Expectation(9, True, 1, False)),
        (SamplingParams(max_tokens=9, n=3), 4, Expectation(4, False, 3, False)),
        (SamplingParams(max_tokens=9), 40, Expectation(9, True, 1, False)),
        (SamplingParams(max_tokens=9, min_tokens=7), 4, Expectation(7, False, 1, False)),
        (SamplingParams(max_tokens=9, prompt_logprobs=0), None, Expectation(9, True, 1, True)),
    ],
)
def test_expected_answers(
    params: SamplingParams, asked: int | None, found: Expectation, prepared: Prepared
) -> None:
    assert AnswerLengths(prepared.model, asked).of(pack(params)) == found


def test_choices_have_their_mean_length(prepared: Prepared) -> None:
    def expected(*choices: str) -> int:
        params = SamplingParams(max_tokens=50, constraint=Constraint(kind="choice", value=choices))
        return AnswerLengths(prepared.model, 30).of(pack(params)).tokens

    assert expected("four", "sixsix") == 5
    # After "yes" an end token says that it is not going on.
    assert expected("yes", "yes sir") == round((3 + 1 + 7) / 2)

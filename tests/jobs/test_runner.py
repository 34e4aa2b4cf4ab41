"""A job from start to end in one process: what runs, what is refused, what a failure leaves."""

from __future__ import annotations

import dataclasses
import fcntl
import os
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from shoal.core.config import EngineConfig
from shoal.core.errors import InternalError, OperatorError
from shoal.core.request import SamplingParams
from shoal.engine.engine import Engine
from shoal.jobs.ending import Interrupted
from shoal.jobs.job import Job
from shoal.jobs.templates import Layout, from_pattern
from tests.jobs.support import Listener, answers, chat, completion, mixed_rows, results, run, write_lines


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(input=write_lines(tmp_path / "in.jsonl", mixed_rows(60, 5)), output=tmp_path / "out.jsonl")


def midway(job: Job) -> Any:
    """A ``stopping`` that asks to stop once some rows have their line."""
    return lambda: job.output.exists() and job.output.read_bytes().count(b"\n") >= 8


def test_every_row_is_answered_once(job: Job) -> None:
    summary = run(job)
    assert sorted(answers(job.output)) == list(range(1, 61))
    assert (summary.rows, summary.answered, summary.failed, summary.exit_code) == (60, 60, 0, 0)
    assert summary.folded > 0
    assert [file.name for file in sorted(job.output.parent.iterdir())] == [
        "in.jsonl",
        "out.jsonl",
        "out.jsonl.journal",
        "out.jsonl.report.html",
    ]


def test_an_interrupted_job_goes_on(job: Job, tmp_path: Path) -> None:
    run(dataclasses.replace(job, output=tmp_path / "whole.jsonl"))
    with pytest.raises(Interrupted):
        run(job, stopping=midway(job))
    before = job.output.read_text()
    assert 0 < len(results(job.output)) < 60
    summary = run(job)
    assert summary.sessions == 2
    assert summary.outcome is not None
    assert 0 < summary.outcome.rows < 60, "the plan is of what was left"
    assert summary.outcome.computed == summary.outcome.planned
    assert job.output.read_text().startswith(before)
    assert answers(job.output) == answers(tmp_path / "whole.jsonl")


def test_interrupted_in_preflight(job: Job) -> None:
    with pytest.raises(Interrupted):
        run(job, stopping=lambda: True)
    assert not job.output.exists()
    assert run(job).answered == 60


def test_a_finished_job_says_so_and_keeps_its_code(job: Job) -> None:
    bad = dataclasses.replace(
        job, input=write_lines(job.input.with_name("bad.jsonl"), [b"{", {"prompt": "x"}])
    )
    first = run(bad)
    text = bad.output.read_text()
    listener = Listener()
    second = run(bad, watcher=listener)
    assert (first.exit_code, second.exit_code) == (3, 3)
    assert "finished already" in listener.said[0]
    assert bad.output.read_text() == text


def test_ordered(job: Job) -> None:
    assert [line["shoal"]["line"] for line in _ordered(job)] == list(range(1, 61))


def test_ordered_after_the_end(job: Job) -> None:
    run(job)
    assert [line["shoal"]["line"] for line in _ordered(job)] == list(range(1, 61))


def _ordered(job: Job) -> list[dict[str, Any]]:
    run(dataclasses.replace(job, ordered=True))
    return results(job.output)


def test_an_empty_file_is_answered_at_once(tmp_path: Path) -> None:
    job = Job(input=write_lines(tmp_path / "in.jsonl", []), output=tmp_path / "out.jsonl")
    assert run(job).exit_code == 0
    assert job.output.read_bytes() == b""


def test_limit_runs_the_first_rows(job: Job) -> None:
    assert run(dataclasses.replace(job, limit=7)).rows == 7
    assert sorted(answers(job.output)) == list(range(1, 8))


def test_equal_greedy_rows_are_computed_once(tmp_path: Path) -> None:
    rows = [completion(f"g{i}", "same") for i in range(5)] + [
        completion("other", "same", max_tokens=5),
        completion("s1", "same", temperature=1, seed=4),
        completion("s2", "same", temperature=1, seed=4),
        completion("s3", "same", temperature=1, seed=5),
        completion("s4", "same", temperature=1),
        completion("s5", "same", temperature=1),
        chat("c1", "same"),
    ]
    job = Job(input=write_lines(tmp_path / "in.jsonl", rows), output=tmp_path / "out.jsonl")
    counted: list[Engine] = []
    assert run(job, engine=counted.append).folded == 5
    lines = results(job.output)
    assert {line["custom_id"] for line in lines if "folded_into" in line["shoal"]} == {
        *("g1", "g2", "g3", "g4", "s2")
    }
    order = [line["custom_id"] for line in lines]
    assert all(order.index(f"g{i}") < order.index("g0") for i in range(1, 5))
    texts = {line["custom_id"]: line["response"]["body"]["choices"][0].get("text") for line in lines}
    assert len({texts[f"g{i}"] for i in range(5)}) == 1
    computed = sum(line["shoal"]["computed_tokens"] for line in lines)
    assert computed == counted[0].scheduler.counters.computed


def test_rows_without_a_seed_get_one_of_their_own(tmp_path: Path) -> None:
    rows = [completion(f"s{i}", "same", temperature=1) for i in range(3)]
    seeds = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        job = Job(
            input=write_lines(tmp_path / "in.jsonl", rows), output=tmp_path / f"{name}.jsonl", seed=seed
        )
        run(job)
        seeds.append([line["shoal"]["sampling"]["seed"] for line in answers(job.output).values()])
    assert seeds[0] == seeds[1] != seeds[2]
    assert len(set(seeds[0])) == 3


def test_a_row_that_the_engine_refuses_is_an_error_line(job: Job) -> None:
    def refuse_long(engine: Engine) -> None:
        add = engine.add

        def picky(request: Any, now: float) -> int:
            if len(request.prompt) > 30:
                raise ValueError("too much for me")
            return add(request, now)

        engine.add = picky  # type: ignore[method-assign]

    summary = run(job, engine=refuse_long)
    failed = [line for line in results(job.output) if line["error"]]
    assert summary.exit_code == 3
    assert summary.failed == len(failed) > 0
    assert summary.answered + summary.failed == 60
    assert failed[0]["error"]["who"] == "us"
    assert "too much for me" in failed[0]["error"]["message"]
    assert failed[0]["response"] is None


def test_a_step_that_fails_takes_only_its_rows(job: Job) -> None:
    def fail_once(engine: Engine) -> None:
        steps = iter(range(10**9))
        engine.executor.fail = lambda plan: RuntimeError("boom") if next(steps) == 3 else None  # type: ignore[attr-defined]

    summary = run(job, engine=fail_once)
    assert summary.failed > 0
    assert summary.answered > 0
    assert summary.answered + summary.failed == 60
    assert len(answers(job.output)) == 60


def test_an_output_without_a_journal_is_not_touched(job: Job) -> None:
    job.output.write_text("precious\n")
    with pytest.raises(OperatorError, match="not overwritten"):
        run(job)
    assert job.output.read_text() == "precious\n"
    assert not job.files.journal.exists()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"parameters": {"temperature": 0.5}}, "--temperature was null, is now 0.5"),
        ({"input": "other.jsonl"}, "the input had"),
        ({"input": "same-size.jsonl"}, "contents changed"),
    ],
)
def test_another_job_is_refused_by_what_differs(job: Job, change: dict[str, Any], named: str) -> None:
    run(job)
    data = job.input.read_bytes()
    job.input.with_name("other.jsonl").write_bytes(data + b'{"prompt": "more"}\n')
    job.input.with_name("same-size.jsonl").write_bytes(data[:-20].replace(b"a", b"b") + data[-20:])
    if "input" in change:
        change = {"input": job.input.with_name(change["input"])}
    before = job.output.read_bytes()
    with pytest.raises(OperatorError, match="another job") as refusal:
        run(dataclasses.replace(job, **change))
    assert named in str(refusal.value)
    assert job.output.read_bytes() == before


def test_nothing_answered_yet_is_no_obstacle(job: Job) -> None:
    with pytest.raises(Interrupted):
        run(job, stopping=lambda: True)
    assert run(dataclasses.replace(job, parameters={"top-p": 0.5})).answered == 60


def test_two_runs_on_one_journal(job: Job) -> None:
    descriptor = os.open(job.files.journal, os.O_RDWR | os.O_CREAT)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        with pytest.raises(OperatorError, match="another shoal run"):
            run(job)
    finally:
        os.close(descriptor)


def test_a_file_that_is_no_journal(job: Job) -> None:
    job.files.journal.write_text("hello\n")
    job.output.write_text("mine\n")
    with pytest.raises(OperatorError, match="not a journal"):
        run(job)
    assert job.output.read_text() == "mine\n"


def test_an_edited_output_is_refused(job: Job) -> None:
    with pytest.raises(Interrupted):
        run(job, stopping=midway(job))
    lines = job.output.read_text().splitlines(keepends=True)
    job.output.write_text("".join([*lines[:1], "edited\n", *lines[1:]]))
    with pytest.raises(OperatorError, match="line 2 is not a result line"):
        run(job)
    job.output.write_text("".join([*lines, lines[0]]))
    with pytest.raises(OperatorError, match="stands twice"):
        run(job)


def test_a_lost_output_is_noticed(job: Job) -> None:
    run(job)
    job.output.unlink()
    with pytest.raises(OperatorError, match="output is gone"):
        run(job)


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Files of this process cannot grow beyond ``size`` bytes: a disk that is full for one file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, old)


def test_a_full_disk_leaves_whole_lines_and_the_job_goes_on(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", [completion(f"r{i}", f"text {i}") for i in range(60)])
    job = Job(input=source, output=tmp_path / "out.jsonl")
    with file_size_limit(15_000), pytest.raises(OperatorError) as refusal:
        run(job)
    assert str(job.output) in str(refusal.value)
    assert job.output.read_bytes().endswith(b"\n")
    written = len(results(job.output))
    assert 0 < written < 60
    assert run(job).answered == 60
    assert len(answers(job.output)) == 60


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_unwritable_folder(job: Job, tmp_path: Path) -> None:
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o500)
    with pytest.raises(OperatorError, match="Permission"):
        run(dataclasses.replace(job, output=folder / "out.jsonl"))


def test_a_folder_that_is_not_there(job: Job, tmp_path: Path) -> None:
    with pytest.raises(OperatorError, match="there is no folder"):
        run(dataclasses.replace(job, output=tmp_path / "nowhere" / "out.jsonl"))
    with pytest.raises(OperatorError, match="No such file"):
        run(dataclasses.replace(job, input=tmp_path / "nothing.jsonl"))
    with pytest.raises(OperatorError, match="not a regular file"):
        run(dataclasses.replace(job, output=tmp_path))
    job.output.symlink_to(job.input)
    with pytest.raises(OperatorError):
        run(job)


def test_defaults_hold_only_where_a_row_names_none(tmp_path: Path) -> None:
    rows = [{"prompt": "a"}, {"prompt": "b", "max_tokens": 2, "temperature": 1.0, "top_p": 0.9}]
    job = Job(
        input=write_lines(tmp_path / "in.jsonl", rows),
        output=tmp_path / "out.jsonl",
        defaults=SamplingParams(temperature=0, max_tokens=5, stop=("zzz",)),
    )
    run(job)
    first, second = (answers(job.output)[line]["shoal"]["sampling"] for line in (1, 2))
    assert first == {"temperature": 0.0, "max_tokens": 5, "stop": ["zzz"]}
    assert second.pop("seed") >= 0
    plain = {"temperature": 1.0, "max_tokens": 2, "top_p": 0.9, "top_k": 0, "min_p": 0.0}
    assert second == plain | {"stop": ["zzz"]}


def test_max_tokens_ends_where_the_longest_sequence_does(tmp_path: Path) -> None:
    rows = [completion("a", "x" * 250, max_tokens=None)]
    job = Job(input=write_lines(tmp_path / "in.jsonl", rows), output=tmp_path / "out.jsonl")
    run(job, config=EngineConfig(model="null", max_model_len=256))
    line = answers(job.output)[1]
    assert line["response"]["body"]["usage"]["completion_tokens"] == 6
    assert line["response"]["body"]["choices"][0]["finish_reason"] == "length"


def test_text_that_no_tokenizer_takes_spoils_only_its_row(tmp_path: Path) -> None:
    """A template may write half of a surrogate pair, which JSON cannot."""
    rows = [{"text": "a"}, {"text": "b"}, {"text": "c"}]

    def question(columns: dict[str, Any]) -> str:
        return "\ud83d" if columns["text"] == "b" else str(columns["text"])

    job = Job(
        input=write_lines(tmp_path / "in.jsonl", rows),
        output=tmp_path / "out.jsonl",
        layout=Layout(question=question),
    )
    assert run(job).exit_code == 3
    assert sorted(answers(job.output)) == [1, 3]
    assert [entry["line"] for entry in results(job.files.quarantine)] == [2]


def test_an_engine_that_refuses_everything_answers_everything_with_an_error(tmp_path: Path) -> None:
    def refuse(engine: Engine) -> None:
        def add(request: Any, now: float) -> int:
            raise ValueError("no")

        engine.add = add  # type: ignore[method-assign]

    rows = [completion(f"r{i}", f"text {i}") for i in range(50)]
    job = Job(input=write_lines(tmp_path / "in.jsonl", rows), output=tmp_path / "out.jsonl", window=4)
    assert run(job, engine=refuse).failed == 50
    assert len(answers(job.output)) == 50


def test_an_engine_that_loses_sequences_is_our_fault(tmp_path: Path) -> None:
    def lose(engine: Engine) -> None:
        engine.add = lambda request, now: 5  # type: ignore[method-assign]

    job = Job(input=write_lines(tmp_path / "in.jsonl", [completion("a", "x")]), output=tmp_path / "out.jsonl")
    with pytest.raises(InternalError, match="lost 1 sequences"):
        run(job, engine=lose)
    assert run(job).answered == 1


def test_token_ids_out_of_a_table(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    ids = [[65, 66, 67], [], None, [259], [-1], [2**40], [65, 66, 67], [68]]
    table = pa.table({"prompt": pa.array(ids, pa.list_(pa.int64())), "id": [f"t{i}" for i in range(8)]})
    parquet.write_table(table, tmp_path / "in.parquet")
    job = Job(
        input=tmp_path / "in.parquet",
        output=tmp_path / "out.jsonl",
        form="parquet",
        layout=Layout(question=from_pattern("{prompt}")),
        defaults=SamplingParams(temperature=0, max_tokens=4),
    )
    assert run(job).folded == 1
    assert sorted(answers(job.output)) == [1, 7, 8]
    reasons = {entry["line"]: entry["reason"] for entry in results(job.files.quarantine)}
    assert list(reasons) == [2, 3, 4, 5, 6]
    assert "empty" in reasons[2]
    assert "null" in reasons[3]
    assert "259" in reasons[4]
    assert "-1" in reasons[5]
    assert "out of range" in reasons[6]
    listed = tmp_path / "in.jsonl"
    write_lines(listed, [{"id": "t0", "prompt": [65, 66, 67]}, {"id": "t7", "prompt": [68]}])
    run(dataclasses.replace(job, input=listed, form="jsonl", layout=Layout(), output=tmp_path / "2.jsonl"))
    again, first = answers(tmp_path / "2.jsonl"), answers(job.output)
    for line, other in ((1, 1), (8, 2)):
        assert first[line]["response"]["body"]["choices"] == again[other]["response"]["body"]["choices"]

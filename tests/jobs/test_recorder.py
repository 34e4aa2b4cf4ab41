"""What a recorder keeps: every total, whatever the length; every session; and nothing that grows."""

from __future__ import annotations

import inspect
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.core.errors import InternalError
from shoal.core.policy import Admission, Range
from shoal.core.request import Finished, FinishReason, Request, SamplingParams, SharedPrefix
from shoal.jobs import trace
from shoal.jobs.recorder import Recorder
from shoal.jobs.trace import Bins, Histogram, Trace
from shoal.memory.retention.lru import LRU
from shoal.schedule.order.fcfs import FCFS
from shoal.schedule.victim.last import Last


class Portions(Admission):
    """In portions.

    More of it.
    """

    def __init__(self, rows: Annotated[int, Range(1, 99)] = 7) -> None:
        self.rows = rows


class Engine:
    """What a recorder reads of an engine."""

    def __init__(self, pages: int = 100) -> None:
        ledger = SimpleNamespace(total=pages, free=pages, cached=0)
        names = ("steps", "computed", "generated", "emitted", "cached", "preemptions", "lost")
        self.counters = SimpleNamespace(**dict.fromkeys(names, 0))
        self.memory = SimpleNamespace(ledger=ledger, policies=(LRU(),))
        self.scheduler = SimpleNamespace(
            counters=self.counters,
            gauges=SimpleNamespace(running=3, waiting=2, held=0, cached=0),
            max_running=8,
            max_length=64,
            order=FCFS(),
            admission=Portions(),
            victim=Last(),
        )
        self.executor = SimpleNamespace(page_size=16)
        self.vocabulary = 259
        self.answers = SimpleNamespace(model=SimpleNamespace(name="toy"))

    def did(self, prompt: int, generated: int) -> None:
        self.counters.steps += 1
        self.counters.computed += prompt + generated
        self.counters.generated += generated
        self.counters.emitted += generated


def finished(
    *,
    ended: float = 4.0,
    prompt: int = 10,
    tokens: int = 3,
    cached: int = 0,
    path: tuple[SharedPrefix, ...] = (),
    first_id: int = 1,
    preemptions: int = 0,
) -> Finished:
    request = Request(
        id="r", prompt=np.full(prompt, first_id, dtype=np.int32), params=SamplingParams(), path=path
    )
    return Finished(
        handle=0,
        request=request,
        tokens=np.ones(tokens, dtype=np.int32),
        reason=FinishReason.LENGTH,
        cached=cached,
        preemptions=preemptions,
        lost=5 * preemptions,
        arrived=1.0,
        admitted=2.0,
        first_token=3.0,
        ended=ended,
    )


def recorder(tmp_path: Path, engine: Any, now: float = 0.0) -> Recorder:
    made = Recorder(tmp_path / "trace", "mark")
    made.begin(engine, now, 1e9)
    return made


COUNTED = ("steps", "prompt", "generated", "emitted", "taken", "preemptions", "lost")


@given(
    st.lists(st.tuples(*[st.integers(-5, 10**9)] * 4, st.floats(1e-6, 1e6)), min_size=1, max_size=60),
    st.integers(1, 20),
)
def test_merging_keeps_every_total(rows: list[tuple[int, int, int, int, float]], most: int) -> None:
    count = len(rows)
    columns = {name: [row[i % 4] for row in rows] for i, name in enumerate(COUNTED)}
    seconds = [row[4] for row in rows]
    weighted = {name: list(seconds) for name in ("held", "cached", "free", "running", "waiting")}
    bins = Bins(seconds=seconds, fullest=[row[0] for row in rows], **columns, **weighted)
    fewer = bins.merged(most)
    assert len(fewer) <= min(most, count)
    assert {len(getattr(fewer, name)) for name in Bins.__struct_fields__} == {len(fewer)}
    for name in COUNTED:
        assert sum(getattr(fewer, name)) == sum(getattr(bins, name))
    for name in ("seconds", *weighted):
        assert math.fsum(getattr(fewer, name)) == pytest.approx(math.fsum(seconds))
    assert max(fewer.fullest) == max(bins.fullest)


def test_a_long_run_stays_small_and_loses_no_token(tmp_path: Path) -> None:
    engine = Engine()
    made = recorder(tmp_path, engine)
    rng = np.random.default_rng(1)
    now, prompt, generated = 0.0, 0, 0
    for more, less, seconds in zip(
        *rng.integers(0, 300, (2, 30_000)).tolist(), rng.exponential(0.02, 30_000)
    ):
        engine.did(more, less)
        prompt, generated, now = prompt + more, generated + less, now + float(seconds)
        engine.scheduler.gauges.held = more % 100
        made.step(now)
    made.save(last=True)
    bins = made.trace.bins
    assert 500 < len(bins) <= trace.MOST_BINS
    assert (sum(bins.steps), sum(bins.prompt), sum(bins.generated)) == (30_000, prompt, generated)
    assert made.trace.seconds == pytest.approx(now)
    pages = math.fsum(bins.held) + math.fsum(bins.cached) + math.fsum(bins.free)
    assert pages == pytest.approx(100 * now)
    assert math.fsum(bins.running) == pytest.approx(3 * now)
    assert max(bins.fullest) == 99
    assert made.path.stat().st_size < 1_000_000


def test_a_resumed_job_tells_of_both_sessions(tmp_path: Path) -> None:
    for session in range(2):
        engine = Engine()
        made = recorder(tmp_path, engine, now=50.0 + session)
        made.phase("loading weights", 2.0)
        for step in range(1, 11):
            engine.did(7, 1)
            made.step(50.0 + session + step)
        made.row(session + 1, f"row {session}", [finished(ended=4.0 + session)])
        made.save(last=True)
    note = Recorder(tmp_path / "trace", "mark").trace
    assert [entry.start for entry in note.sessions] == [0.0, 10.0]
    assert [(entry.seconds, entry.prompt, entry.generated) for entry in note.sessions] == [(10.0, 70, 10)] * 2
    assert (sum(note.bins.prompt), sum(note.bins.generated), note.seconds) == (140, 20, 20.0)
    assert note.phases == {"loading weights": 4.0}
    assert [row.id for row in note.slowest] == ["row 1", "row 0"]
    assert note.latency.count == note.rows == 2


@pytest.mark.parametrize(
    "left", [b"", b"\x00" * 40, b"{}", msgspec.msgpack.encode(Trace(1, "other", rows=9))]
)
def test_what_is_no_trace_of_this_job_is_begun_anew(tmp_path: Path, left: bytes) -> None:
    path = tmp_path / "trace"
    path.write_bytes(left)
    assert Recorder(path, "mark").trace == Trace(trace.VERSION, "mark")


def test_the_file_is_replaced_and_removed(tmp_path: Path) -> None:
    made = recorder(tmp_path, Engine())
    for _ in range(2):
        made.save()
        assert [file.name for file in tmp_path.iterdir()] == ["trace"]
    made.remove()
    assert not made.path.exists()


def test_the_slowest_rows_are_kept_with_where_their_time_went(tmp_path: Path) -> None:
    made = recorder(tmp_path, Engine())
    for i in np.random.default_rng(2).permutation(1000).tolist():
        made.row(i, f"r{i}", [finished(ended=4.0 + i), finished(ended=3.5, preemptions=1)])
    made.save()
    slowest = made.trace.slowest
    assert [row.id for row in slowest] == [f"r{i}" for i in range(999, 979, -1)]
    row = slowest[0]
    assert (row.queue, row.prefill, row.decode, row.latency) == (1.0, 1.0, 1000.0, 1002.0)
    assert (row.answers, row.answer, row.preemptions, row.lost) == (2, 6, 1, 5)
    assert made.trace.preempted == 1000


def test_failed_rows_are_counted_by_reason(tmp_path: Path) -> None:
    made = recorder(tmp_path, Engine())
    for i in range(200):
        made.row(i, "x" * 500, [], InternalError(f"reason {i % 100}" + "y" * 900))
    note = made.trace
    assert (note.rows, note.failed, note.latency.count) == (200, 200, 0)
    assert sum(note.reasons.values()) == 200
    assert len(note.reasons) <= trace.MOST_REASONS + 1
    assert len(note.failures) == trace.MOST_ROWS
    assert max(len(row.id) + len(row.reason) for row in note.failures) < 500


def test_each_planned_prefix_is_credited_with_its_own_stretch(tmp_path: Path) -> None:
    made = recorder(tmp_path, Engine())
    path = (SharedPrefix(3, 32, 10), SharedPrefix(8, 64, 4))
    for cached in (0, 48, 64, 80):
        made.row(5, "r", [finished(cached=cached, path=path, prompt=90)])
    made.row(6, "s", [finished(cached=16)])
    savings = made.trace.savings
    assert [(group.start, group.tokens, group.requests) for group in savings.groups.values()] == [
        (0, 32, 4),
        (32, 64, 4),
    ]
    assert [group.saved for group in savings.groups.values()] == [96, 16 + 32 + 32]
    assert savings.unplanned == 16 + 16
    assert sum(group.saved for group in savings.groups.values()) + savings.unplanned == 48 + 64 + 80 + 16


def test_a_prefix_is_the_same_group_whatever_its_number(tmp_path: Path) -> None:
    for node in (3, 8):
        made = recorder(tmp_path, Engine())
        path = (SharedPrefix(node, 32, node),)
        made.row(node, "r", [finished(cached=32, path=path, prompt=40)])
        made.row(node, "r", [finished(cached=32, path=(SharedPrefix(9, 32, 2),), prompt=40, first_id=7)])
        made.save(last=True)
    groups = list(made.trace.savings.groups.values())
    assert [(group.line, group.members, group.requests, group.saved) for group in groups] == [
        (3, 8, 2, 64),
        (3, 2, 2, 64),
    ]


def test_many_groups_take_bounded_room_and_the_largest_stay(tmp_path: Path) -> None:
    made = recorder(tmp_path, Engine())
    root = SharedPrefix(0, 16, 10**6)
    count = 3 * trace.MOST_GROUPS
    for node in range(1, count):
        saved = 32 if node % 1000 else 48
        path = (root, SharedPrefix(node, 48, 2))
        made.row(node, "r", [finished(cached=saved, path=path, prompt=48, first_id=node)])
    savings = made.trace.savings
    groups = savings.groups
    assert len(groups) <= trace.MOST_GROUPS
    assert set(range(1000, count, 1000)) <= {group.line for group in groups.values()}
    total = sum(group.saved for group in groups.values()) + savings.others_saved
    assert total == 32 * (count - 1) + 16 * 12


@given(st.lists(st.floats(1e-6, 1e6) | st.integers(0, 10**6), min_size=1, max_size=50))
def test_a_histogram_knows_every_value_closely(values: list[float]) -> None:
    found = Histogram()
    for value in values:
        found.add(value)
    ordered = sorted(values)
    assert (found.count, found.low, found.high) == (len(values), ordered[0], ordered[-1])
    assert found.mean == pytest.approx(math.fsum(values) / len(values))
    for share in (0.01, 0.5, 0.9, 1.0):
        exact = ordered[math.ceil(share * len(values)) - 1]
        assert found.quantile(share) == pytest.approx(exact, rel=1 / 64)
    assert sum(count for _, _, count in found.bins()) == len(values)
    assert all(low <= high for low, high, _ in found.bins())


def test_the_settings_in_force_are_kept(tmp_path: Path) -> None:
    made = recorder(tmp_path, Engine())
    policies = {name: (value, note) for name, value, note in made.trace.settings["Policies"]}
    assert policies["order"] == ("FCFS()", inspect.getdoc(FCFS).split("\n")[0])
    assert policies["admission"] == ("Portions(rows=7)", "In portions. (rows 1 to 99)")
    assert ("KV pool", "1,600 tokens", "100 pages of 16") in made.trace.settings["Engine"]


def test_small_whole_numbers_have_a_bin_each() -> None:
    found = Histogram()
    for value in range(128):
        for _ in range(value + 1):
            found.add(value)
    assert [(low, count) for low, _, count in found.bins()] == [(i, i + 1) for i in range(128)]

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.core.errors import OperatorError
from shoal.core.request import Constraint, SamplingParams
from shoal.jobs.files import JobFiles
from shoal.jobs.journal import Journal, differences
from shoal.jobs.spool import NOBODY, Spool, SpoolRow, SpoolWriter, pack, unpack


@pytest.fixture
def files(tmp_path: Path) -> JobFiles:
    return JobFiles(tmp_path / "out.jsonl")


def test_events_come_back(files: JobFiles) -> None:
    journal = Journal(files)
    journal.create(model={"a": 1}, parameters={}, input={})
    journal.write("progress", durable=False, done=3)
    journal.write("progress", done=5)
    journal.close()
    again = Journal(files)
    assert [event["event"] for event in again.events] == ["created", "progress"]
    assert again.identity["model"] == {"a": 1}
    assert again.last("progress") == {"event": "progress", "done": 5}
    assert again.last("done") is None
    again.close()


def test_any_torn_end_is_cut(files: JobFiles) -> None:
    journal = Journal(files)
    journal.create(model={}, parameters={}, input={})
    journal.write("session")
    journal.close()
    data = files.journal.read_bytes()
    first = data.index(b"\n") + 1
    for length in range(len(data) + 1):
        files.journal.write_bytes(data[:length])
        torn = Journal(files)
        assert len(torn.events) == (length >= first) + (length == len(data))
        torn.close()
        assert files.journal.stat().st_size == (
            0 if length < first else first if length < len(data) else length
        )


def test_one_process_at_a_time(files: JobFiles) -> None:
    first = Journal(files)
    with pytest.raises(OperatorError, match="another shoal run") as refusal:
        Journal(files)
    assert str(files.journal) in str(refusal.value)
    first.close()
    Journal(files).close()


@pytest.mark.parametrize(
    "data", [b"plain text\n", b"no end of line", b"{}\n", b'{"event":"created","version":99}\n', b"\xff\n"]
)
def test_something_else_is_refused(files: JobFiles, data: bytes) -> None:
    files.journal.write_bytes(data)
    with pytest.raises(OperatorError):
        Journal(files)
    assert files.journal.read_bytes() == data


def test_differences_are_named() -> None:
    assert differences({"a": 1, "b": 2}, {"a": 1, "b": 3, "c": "x"}) == [
        "b was 2, is now 3",
        'c was null, is now "x"',
    ]


rows = st.builds(
    SpoolRow,
    line=st.integers(1, 2**31),
    id=st.text(max_size=5),
    kind=st.sampled_from([0, 1]),
    ids=st.binary(max_size=40),
    sampling=st.binary(max_size=9),
    seed=st.integers(0, 2**64 - 1),
    echo=st.none() | st.text(max_size=5),
    columns=st.binary(max_size=9),
    model=st.none() | st.text(max_size=5),
)


@settings(max_examples=50)
@given(st.lists(rows, max_size=20, unique_by=lambda row: row.line))
def test_spool_rows_come_back(tmp_path_factory: pytest.TempPathFactory, written: list[SpoolRow]) -> None:
    written.sort(key=lambda row: row.line)
    path = tmp_path_factory.mktemp("spool") / "spool"
    writer = SpoolWriter(path)
    for row in written:
        writer.append(row)
    leader = np.arange(len(written), dtype=np.int32)
    follower = np.full(len(written), NOBODY, dtype=np.int32)
    assert writer.finish(leader, follower) == path.stat().st_size
    writer.close()
    spool = Spool(path)
    assert [spool.read(row) for row in range(spool.rows)] == written
    assert [spool.row_of(row.line) for row in written] == list(range(len(written)))
    assert spool.row_of(2**32 - 1) == NOBODY
    assert np.array_equal(spool.leader, leader)
    spool.close()


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(),
        SamplingParams(temperature=0, max_tokens=None, stop=("a", "b"), logit_bias={5: -1.5, 7: 2.0}),
        SamplingParams(n=3, stop_token_ids=(1, 2), constraint=Constraint(kind="choice", value=("x", "y"))),
        SamplingParams(constraint=Constraint(kind="regex", value="a+"), logprobs=0, ignore_eos=True),
    ],
)
def test_sampling_packs_and_unpacks(params: SamplingParams) -> None:
    assert unpack(pack(params)) == params
    assert msgspec.msgpack.decode(pack(SamplingParams())) == {}

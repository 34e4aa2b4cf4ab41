from __future__ import annotations

import csv
import hashlib
import io
import os
import string
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.core.errors import OperatorError
from shoal.jobs.sources import JsonLines
from shoal.jobs.tables import form_of, open_source


@given(
    lines=st.lists(st.binary(max_size=30).map(lambda data: data.replace(b"\n", b"")), max_size=20),
    ended=st.booleans(),
    limit=st.integers(5, 40),
)
def test_lines_against_a_plain_split(lines: list[bytes], ended: bool, limit: int) -> None:
    data = b"\n".join(lines) + (b"\n" if ended else b"")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "in.jsonl"
        path.write_bytes(data)
        source = JsonLines(path, limit)
        rows = list(source.rows())
        assert source.sha256() == hashlib.sha256(data).hexdigest()
        assert source.done == source.size == len(data)
        source.close()
    wanted = []
    for number, line in enumerate(data.split(b"\n"), 1):
        line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
        if len(line) > limit + 3 * (number == 1):
            wanted.append((number, None))
        elif line.strip(b" \t\r\n"):
            wanted.append((number, line.strip(b" \t\r\n")))
    found = [(row.line, None if row.error else row.data) for row in rows]
    if not data.startswith(b"\xef\xbb\xbf") and wanted and len(data.split(b"\n")[0]) <= limit:
        assert found == wanted


def test_a_line_over_the_limit_is_passed_by(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"1\n" + b"x" * (5 << 20) + b"\n2\n" + b"y" * 101)
    rows = list(JsonLines(path, 100).rows())
    assert [(row.line, row.error is None) for row in rows] == [(1, True), (2, False), (3, True), (4, False)]
    assert len(rows[1].data) <= 1024


def test_the_rest_is_hashed_after_an_early_stop(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"1\n" * 3_000_000)
    source = JsonLines(path)
    next(source.rows())
    assert source.sha256() == hashlib.sha256(path.read_bytes()).hexdigest()


cells = st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), max_size=8)


@given(st.lists(st.tuples(cells, cells), max_size=15))
def test_csv_against_the_csv_module(rows: list[tuple[str, str]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, quoting=csv.QUOTE_ALL)
    writer.writerows([("a", "b"), *rows])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "in.csv"
        path.write_bytes(b"\xef\xbb\xbf" + text.getvalue().encode())
        source = open_source(path, "csv")
        found = [row.data for row in source.rows()]
        assert source.sha256() == hashlib.sha256(path.read_bytes()).hexdigest()
        source.close()
    assert found == [{"a": a, "b": b} for a, b in rows]


def test_bad_rows_of_a_table_are_their_own(tmp_path: Path) -> None:
    path = tmp_path / "in.csv"
    path.write_bytes(
        b'text,label\ngood,1\nshort\nlong,1,2\n"two\nlines",3\nbad \xff byte,4\nnul\x00,5\n\n'
        + b"x" * 500
        + b",6\nlast,7\n"
    )
    rows = list(open_source(path, "csv", 100).rows())
    assert [row.line for row in rows] == [2, 3, 4, 5, 7, 8, 10, 11]
    reasons = [row.error.what if row.error else None for row in rows]
    assert [reason is None for reason in reasons] == [True, False, False, True, False, False, False, True]
    assert "1 fields" in str(reasons[1])
    assert "3 fields" in str(reasons[2])
    assert "UTF-8" in str(reasons[4])
    assert "NUL" in str(reasons[5])
    assert "100" in str(reasons[6])
    assert rows[3].data == {"text": "two\nlines", "label": "3"}


def test_tsv(tmp_path: Path) -> None:
    path = tmp_path / "in.tsv"
    path.write_text("a\tb\n1,5\tx\n")
    assert [row.data for row in open_source(path, "tsv").rows()] == [{"a": "1,5", "b": "x"}]


def test_parquet(tmp_path: Path) -> None:
    path = tmp_path / "in.parquet"
    table = pa.table({"text": [f"t{i}" for i in range(3000)], "score": [i / 2 for i in range(3000)]})
    pyarrow.parquet.write_table(table, path, row_group_size=700)
    source = open_source(path, "parquet", columns=["text"])
    rows = list(source.rows())
    assert [row.line for row in rows] == list(range(1, 3001))
    assert rows[2999].data == {"text": "t2999", "score": 1499.5}
    assert source.done == source.size
    assert source.sha256() == hashlib.sha256(path.read_bytes()).hexdigest()
    source.close()


def test_lists_of_integers_stay_arrays(tmp_path: Path) -> None:
    path = tmp_path / "in.parquet"
    ids = [[1, 2, 3], [], None, [4]]
    kinds = {"small": pa.list_(pa.int32()), "wide": pa.large_list(pa.int64()), "bytes": pa.list_(pa.uint8())}
    columns = {name: pa.array(ids, kind) for name, kind in kinds.items()}
    columns["fixed"] = pa.array([[1, 2], [3, 4], [7, 8], [5, 6]], pa.list_(pa.int32(), 2))
    columns["holed"] = pa.array([[1, None], [2], [], None], pa.list_(pa.int32()))
    columns["texts"] = pa.array([["a"], [], None, ["b"]])
    pyarrow.parquet.write_table(pa.table(columns), path)
    rows = [row.data for row in open_source(path, "parquet").rows()]
    for name in kinds:
        assert [None if row[name] is None else row[name].tolist() for row in rows] == ids
        assert isinstance(rows[0][name], np.ndarray)
    assert [row["fixed"].tolist() for row in rows] == [[1, 2], [3, 4], [7, 8], [5, 6]]
    assert [row["holed"] for row in rows] == [[1, None], [2], [], None]
    assert [row["texts"] for row in rows] == [["a"], [], None, ["b"]]


@pytest.mark.parametrize(
    ("name", "data", "named"),
    [
        ("in.csv", b"", "names no column"),
        ("in.csv", b"a,a\n1,2\n", "twice"),
        ("in.csv", b"a,b\n1,2\n", "no column `text`"),
        ("in.parquet", b"PAR1 garbage PAR1", "not a readable Parquet file"),
        ("in.parquet", b"", "not a readable Parquet file"),
    ],
)
def test_a_table_that_cannot_be_read(tmp_path: Path, name: str, data: bytes, named: str) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(OperatorError, match=named) as refusal:
        open_source(path, form_of(path), columns=["text"])
    assert str(path) in str(refusal.value)


def test_parquet_without_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "in.parquet"
    path.write_bytes(b"")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    with pytest.raises(OperatorError, match=r"shoal\[parquet\]"):
        open_source(path, "parquet")


@given(st.text(string.ascii_letters, min_size=1, max_size=6))
def test_endings(ending: str) -> None:
    known = {"jsonl", "ndjson", "json", "csv", "tsv", "parquet", "pq"}
    if ending.lower() in known:
        assert form_of(Path(f"x.{ending}")) in {"jsonl", "csv", "tsv", "parquet"}
    else:
        with pytest.raises(OperatorError):
            form_of(Path(f"x.{ending}"))


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "in.jsonl")
    with pytest.raises(OperatorError, match="not a regular file"):
        JsonLines(tmp_path / "in.jsonl")

"""Rows out of tables (CSV, TSV, Parquet), and the choice of a reader by the form of the file."""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shoal.core.errors import CallerError, OperatorError
from shoal.jobs.sources import (
    BUFFER,
    LINE_LIMIT,
    HashedFile,
    JsonLines,
    Raw,
    Source,
    line_too_long,
    sha256_of,
)

if TYPE_CHECKING:
    import pyarrow as pa

FORMS = ("jsonl", "csv", "tsv", "parquet")
_ENDINGS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".pq": "parquet"}
PARQUET_ROWS = 1024


def form_of(path: Path) -> str:
    """The form that the file's ending names.

    Raises:
        OperatorError: it names none.
    """
    ending = path.suffix.lower()
    form = _ENDINGS.get(ending, ending[1:])
    if form not in FORMS:
        raise OperatorError(
            f"the ending {ending!r} names no known form",
            where=str(path),
            remedy="give --format jsonl, csv, ...",
        )
    return form


def open_source(path: Path, form: str, limit: int = LINE_LIMIT, columns: Sequence[str] = ()) -> Source:
    """A reader for ``path``; a table must have the ``columns``.

    Raises:
        OperatorError: it cannot be read, or a column is missing.
    """
    if form == "jsonl":
        return JsonLines(path, limit)
    if form == "parquet":
        return Parquet(path, columns)
    return Delimited(path, "\t" if form == "tsv" else ",", limit, columns)


def _check_columns(path: Path, present: Sequence[str], wanted: Sequence[str]) -> None:
    for name in wanted:
        if name not in present:
            raise OperatorError(
                f"no column `{name}`", where=str(path), remedy=f"columns: {', '.join(present)[:200]}"
            )


class Delimited:
    """CSV or TSV with a header line. A row's number is that of the line on which it begins."""

    def __init__(self, path: Path, delimiter: str, limit: int, columns: Sequence[str]) -> None:
        self._raw = HashedFile(path)
        # Bytes that are no UTF-8 become lone surrogates, so that only their own row is bad.
        self._text = io.TextIOWrapper(
            io.BufferedReader(self._raw, BUFFER), encoding="utf-8-sig", errors="surrogateescape", newline=""
        )
        self.size = self._raw.size
        self._limit = limit
        self._overlong = False
        csv.field_size_limit(limit)
        self._reader = csv.reader(self._lines(), delimiter=delimiter)
        try:
            self.columns = next(self._reader, [])
        except csv.Error as error:
            raise OperatorError(f"no header line: {error}", where=str(path), remedy="give one") from None
        if not self.columns or len(set(self.columns)) < len(self.columns):
            raise OperatorError(
                "the header names no column, or one twice", where=str(path), remedy="correct the first line"
            )
        _check_columns(path, self.columns, columns)

    def _lines(self) -> Iterator[str]:
        """Physical lines; of one beyond the limit only the beginning, so that memory stays bounded."""
        while line := self._text.readline(self._limit + 1):
            if len(line) > self._limit and not line.endswith("\n"):
                self._overlong = True
                while (rest := self._text.readline(BUFFER)) and not rest.endswith("\n"):
                    pass
            yield line

    @property
    def done(self) -> int:
        return self._raw.done

    def rows(self) -> Iterator[Raw]:
        while True:
            number = self._reader.line_num + 1
            self._overlong = False
            try:
                values = next(self._reader)
            except StopIteration:
                return
            except csv.Error as error:
                reason = CallerError(f"the row is not readable: {error}", remedy="correct the quoting")
                yield Raw(number, {}, reason)
                continue
            if values:
                yield self._row(number, values)

    def _row(self, number: int, values: list[str]) -> Raw:
        row = dict(zip(self.columns, values))
        if self._overlong:
            return Raw(number, {}, line_too_long(self._limit))
        if len(values) != len(self.columns):
            reason = f"the row has {len(values)} fields, the header {len(self.columns)}"
            return Raw(number, row, CallerError(reason, remedy="correct the row or its quoting"))
        text = "".join(values)
        if "\0" in text:
            return Raw(number, row, CallerError("the row holds NUL bytes", remedy="remove them"))
        try:
            text.encode()
        except UnicodeEncodeError:
            return Raw(
                number, row, CallerError("the row is not valid UTF-8", remedy="save the file as UTF-8")
            )
        return Raw(number, row)

    def sha256(self) -> str:
        return self._raw.sha256()

    def close(self) -> None:
        self._text.close()


class Parquet:
    """A Parquet file, read in batches of rows. A row's number counts from 1.

    Columns that are lists of integers come as numpy arrays, one a row, the others as Python values.
    """

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        try:
            from pyarrow.parquet import ParquetFile
        except ImportError:
            raise OperatorError(
                "reading Parquet needs pyarrow", where=str(path), remedy="pip install 'shoal[parquet]'"
            ) from None
        self._path = path
        with HashedFile(path) as file:
            self.size = file.size
        try:
            # Without a buffer, a whole column of a row group is read at once.
            self._file = ParquetFile(path, buffer_size=BUFFER)
            self._rows = max(1, self._file.metadata.num_rows)
        except Exception as error:
            raise self._damaged(error) from None
        self._read = 0
        _check_columns(path, self._file.schema_arrow.names, columns)

    def _damaged(self, error: Exception) -> OperatorError:
        line = " ".join(str(error).split())[:200]
        return OperatorError(
            f"not a readable Parquet file: {line}", where=str(self._path), remedy="write it again"
        )

    @property
    def done(self) -> int:
        return self.size * min(self._read, self._rows) // self._rows

    def rows(self) -> Iterator[Raw]:
        batches = self._file.iter_batches(batch_size=PARQUET_ROWS)
        while True:
            try:
                batch = next(batches, None)
                columns = [] if batch is None else [_values(column) for column in batch.columns]
            except Exception as error:
                raise self._damaged(error) from None
            if batch is None:
                return
            names = batch.schema.names
            for values in zip(*columns):
                self._read += 1
                yield Raw(self._read, dict(zip(names, values)))

    def sha256(self) -> str:
        return sha256_of(self._path)

    def close(self) -> None:
        self._file.close()


def _values(column: pa.Array) -> list[Any]:
    """The values of a column: lists of integers as arrays over one buffer, whatever is null as None."""
    import pyarrow as pa

    kind = column.type
    if pa.types.is_fixed_size_list(kind):
        kind = pa.list_(kind.value_type)
        column = column.cast(kind)
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    if not lists or not pa.types.is_integer(kind.value_type) or column.values.null_count:
        listed: list[Any] = column.to_pylist()
        return listed
    numbers = column.values.to_numpy()
    ends = column.offsets.to_numpy().tolist()
    rows = [numbers[start:end] for start, end in itertools.pairwise(ends)]
    if column.null_count:
        rows = [row if valid else None for row, valid in zip(rows, column.is_valid().to_pylist())]
    return rows

"""Prepared rows on disk: made once, read by every session, so that memory does not grow with the file.

records     msgpack, one a row, back to back, in input order
columns     offset int64[rows + 1], line uint32[rows], leader int32[rows], follower int32[rows]
trailer     16 bytes: number of rows and offset of the columns, int64 each
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from shoal.core.request import SamplingParams
from shoal.jobs.files import open_file, read_at, sync, write_all

CHAT, COMPLETION = 0, 1
NOBODY = -1
WRITE_BYTES = 1 << 20
READ_BYTES = 1 << 20


class SpoolRow(msgspec.Struct, array_like=True):
    """One row, ready to run.

    Attributes:
        line: number of its line (or table row) in the input, from 1.
        id: the caller's, or ``row-LINE``.
        kind: CHAT or COMPLETION.
        ids: prompt token ids, int32 little-endian.
        sampling: effective parameters as ``pack`` writes them; the seed apart.
        seed: of the noise, resolved, 0 <= seed < 2**64.
        echo: the prompt's text, where the answer must repeat it.
        columns: kept columns as one JSON object, or empty.
        model: the model that the row named, where it is not the job's own.
    """

    line: int
    id: str
    kind: int
    ids: bytes
    sampling: bytes
    seed: int
    echo: str | None = None
    columns: bytes = b""
    model: str | None = None


class Head(msgspec.Struct, array_like=True):
    """The beginning of a ``SpoolRow``: what a plan reads of it."""

    line: int
    id: str
    kind: int
    ids: bytes
    sampling: bytes


def pack(params: SamplingParams) -> bytes:
    """The fields that differ from their defaults, as msgpack: small, and equal for equal parameters."""
    plain = msgspec.to_builtins(params)
    return msgspec.msgpack.encode({name: plain[name] for name in plain if plain[name] != _DEFAULTS[name]})


def unpack(data: bytes) -> SamplingParams:
    return msgspec.msgpack.decode(data, type=SamplingParams)


_DEFAULTS = msgspec.to_builtins(SamplingParams())


class SpoolWriter:
    """Appends rows; ``finish`` adds the columns. Holds 12 bytes a row (``offset`` and ``line``)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.offset = array("q", [0])
        self.line = array("I")
        self._descriptor = open_file(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
        self._encoder = msgspec.msgpack.Encoder()
        self._buffer = bytearray()
        self._written = 0

    def append(self, row: SpoolRow) -> None:
        self._buffer += self._encoder.encode(row)
        self.offset.append(self._written + len(self._buffer))
        self.line.append(row.line)
        if len(self._buffer) >= WRITE_BYTES:
            self.flush()

    def id_of(self, row: int) -> str:
        """The id of a row that was flushed."""
        start = self.offset[row]
        data = read_at(self._descriptor, start, self.offset[row + 1] - start, self.path)
        return msgspec.msgpack.decode(data, type=SpoolRow).id

    def flush(self) -> None:
        write_all(self._descriptor, self._buffer, self.path)
        self._written += len(self._buffer)
        self._buffer.clear()

    def finish(self, leader: npt.NDArray[np.int32], follower: npt.NDArray[np.int32]) -> int:
        """Write the columns and make all durable; returns the size of the file in bytes.

        leader: shape (rows,), the row whose answer this one shares, itself, or NOBODY for a row that is
            not to run at all.
        follower: shape (rows,), the next row with the same leader, or NOBODY.
        """
        rows = len(self.line)
        self.flush()
        trailer = np.array([rows, self._written], dtype=np.int64)
        for column in (self.offset, self.line, leader, follower, trailer):
            write_all(self._descriptor, column.tobytes(), self.path)
        sync(self._descriptor, self.path)
        return os.fstat(self._descriptor).st_size

    def close(self) -> None:
        os.close(self._descriptor)


class Spool:
    """Random access to the rows of a finished spool. Holds 20 bytes a row, and no row itself.

    Raises:
        OperatorError: the file cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = open_file(path, os.O_RDONLY)
        self._decoder = msgspec.msgpack.Decoder(SpoolRow)
        try:
            size = os.fstat(self._descriptor).st_size
            rows, start = (int(value) for value in np.frombuffer(self._read(size - 16, 16), dtype=np.int64))
            self.rows = rows
            self.offset = self._column(start, rows + 1, np.int64)
            self.line = self._column(start + 8 * (rows + 1), rows, np.uint32)
            self.leader = self._column(start + 8 * (rows + 1) + 4 * rows, rows, np.int32)
            self.follower = self._column(start + 8 * (rows + 1) + 8 * rows, rows, np.int32)
        except BaseException:
            os.close(self._descriptor)
            raise

    def _read(self, start: int, length: int) -> bytes:
        return read_at(self._descriptor, start, length, self.path)

    def _column(self, start: int, count: int, kind: type[np.generic]) -> npt.NDArray[np.generic]:
        return np.frombuffer(self._read(start, count * np.dtype(kind).itemsize), dtype=kind)

    def read(self, row: int) -> SpoolRow:
        start = int(self.offset[row])
        return self._decoder.decode(self._read(start, int(self.offset[row + 1]) - start))

    def heads(self, rows: npt.NDArray[np.int32]) -> Iterator[list[Head]]:
        """The heads of ``rows``, which ascend, as many at a time as lie within READ_BYTES of the file."""
        decode = msgspec.msgpack.Decoder(Head).decode
        begin = 0
        while begin < len(rows):
            start = int(self.offset[rows[begin]])
            end = int(np.searchsorted(self.offset, start + READ_BYTES, side="right")) - 1
            stop = max(begin + 1, int(np.searchsorted(rows, end)))
            offsets = self.offset[rows[begin:stop]] - start
            ends = self.offset[rows[begin:stop] + 1] - start
            data = memoryview(self._read(start, int(ends[-1])))
            yield [decode(data[first:last]) for first, last in zip(offsets.tolist(), ends.tolist())]
            begin = stop

    def followers(self, row: int) -> list[int]:
        """The rows that share the answer of leader ``row``, in input order."""
        found = []
        following = int(self.follower[row])
        while following != NOBODY:
            found.append(following)
            following = int(self.follower[following])
        return found

    def row_of(self, line: int) -> int:
        """The row made from input line ``line``, or NOBODY."""
        row = int(np.searchsorted(self.line, line))
        return row if row < self.rows and self.line[row] == line else NOBODY

    def close(self) -> None:
        os.close(self._descriptor)

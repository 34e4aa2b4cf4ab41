"""The output file: each line in it is a row that is done, and nothing else says so."""

from __future__ import annotations

import os
from collections.abc import Callable

import msgspec
import numpy as np
import numpy.typing as npt

from shoal.core.errors import OperatorError
from shoal.jobs.files import JobFiles, open_file, refused, remove, sync_folder, write_all
from shoal.jobs.spool import NOBODY, Spool

GROUP_ROWS = 1000
GROUP_SECONDS = 0.2
BUFFER = 1 << 20


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Choice(msgspec.Struct):
    finish_reason: str = ""


class _Body(msgspec.Struct):
    usage: _Usage
    choices: list[_Choice]


class _Response(msgspec.Struct):
    body: _Body


class _Accounts(msgspec.Struct):
    line: int
    cached_tokens: int = 0
    computed_tokens: int = 0
    folded_into: int = 0


class ResultLine(msgspec.Struct):
    """The part of a result line that counts: which row it answers, how, and at what cost."""

    shoal: _Accounts
    response: _Response | None = None
    error: msgspec.Raw | None = None


class Results:
    """Appends result lines, one write a row, and makes them durable in groups.

    A killed process loses nothing that was written; a power cut loses at most one group.
    """

    def __init__(self, files: JobFiles) -> None:
        self.path = files.output
        self._descriptor = open_file(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._waiting = 0
        self._since = 0.0

    def append(self, line: bytes) -> None:
        write_all(self._descriptor, line, self.path)
        self._waiting += 1

    def due(self, now: float) -> bool:
        """Whether the lines since the last ``sync`` make a group: by number, or by age in seconds."""
        if not self._waiting:
            self._since = now
        return self._waiting >= GROUP_ROWS or (self._waiting > 0 and now - self._since >= GROUP_SECONDS)

    def sync(self) -> None:
        if self._waiting:
            try:
                os.fsync(self._descriptor)
            except OSError as error:
                raise refused(error, self.path) from None
            self._waiting = 0

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def scan(files: JobFiles, take: Callable[[ResultLine, int, int], None]) -> None:
    """Hand every whole result line to ``take`` with its offset and length; cut away a torn end.

    Lines that a power cut garbled are cut too, as long as nothing readable follows them.

    Raises:
        OperatorError: something in the middle of the file is not a result line.
    """
    decoder = msgspec.json.Decoder(ResultLine)
    path = files.output
    offset = good = 0
    bad_line = 0
    with open(open_file(path, os.O_RDONLY), "rb", BUFFER) as file:
        for number, data in enumerate(file, 1):
            try:
                line = decoder.decode(data) if data.endswith(b"\n") else None
            except (msgspec.DecodeError, UnicodeDecodeError):
                line = None
            if line is None:
                bad_line = bad_line or number
            elif bad_line:
                raise OperatorError(
                    f"line {bad_line} is not a result line of this job",
                    where=str(path),
                    remedy="restore the file, or move it away with its journal and start again",
                )
            else:
                take(line, offset, len(data))
                good = offset + len(data)
            offset += len(data)
    if good < offset:
        os.truncate(path, good)


def in_input_order(files: JobFiles, spool: Spool) -> None:
    """Rewrite the output in input order. Killed at any moment, the file is either the old or the new one.

    Holds 16 bytes a row while it works.

    Raises:
        OperatorError: no room for the second copy.
    """
    start = np.full(spool.rows, NOBODY, dtype=np.int64)
    length = np.zeros(spool.rows, dtype=np.int64)

    def take(line: ResultLine, offset: int, size: int) -> None:
        row = spool.row_of(line.shoal.line)
        start[row], length[row] = offset, size

    scan(files, take)
    present = np.flatnonzero(start != NOBODY)
    if np.all(np.diff(start[present]) > 0):
        return
    _copy(files, start[present], length[present])
    os.replace(files.sorted, files.output)
    sync_folder(files.output)


def _copy(files: JobFiles, start: npt.NDArray[np.int64], length: npt.NDArray[np.int64]) -> None:
    source = open_file(files.output, os.O_RDONLY)
    target = -1
    try:
        target = open_file(files.sorted, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
        buffer = bytearray()
        for offset, size in zip(start, length):
            buffer += os.pread(source, int(size), int(offset))
            if len(buffer) >= BUFFER:
                write_all(target, buffer, files.sorted)
                buffer.clear()
        write_all(target, buffer, files.sorted)
        os.fsync(target)
    except OperatorError:
        remove(files.sorted)
        raise
    finally:
        os.close(source)
        if target >= 0:
            os.close(target)

"""The output file: each line in it is a row that is done, and nothing else says so."""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable

import msgspec
import numpy as np
import numpy.typing as npt

from shoal.core.errors import OperatorError
from shoal.jobs.files import JobFiles, open_file, read_at, refused, remove, sync, sync_folder, write_all

GROUP_ROWS = 1000
GROUP_SECONDS = 0.2
BUFFER = 1 << 20
LINE_START = b'{"id":"batch-'
"""How every result line begins."""


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
    """The part of a result line that counts: which row it answers, how, and at what cost. A row that failed
    has no response."""

    shoal: _Accounts
    response: _Response | None


class Results:
    """Appends result lines, one write a row, and makes them durable in groups.

    A killed process loses nothing that was written; a power cut loses at most one group.
    """

    def __init__(self, files: JobFiles) -> None:
        self.path = files.output
        new = not self.path.exists()
        self._descriptor = open_file(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        if new:
            sync_folder(self.path)
        self._waiting = 0
        self._synced = 0.0

    def append(self, line: bytes) -> None:
        write_all(self._descriptor, line, self.path)
        self._waiting += 1

    def due(self, now: float) -> bool:
        """Whether the lines since the last ``sync`` make a group: by number, or by seconds since then."""
        return self._waiting >= GROUP_ROWS or (self._waiting > 0 and now - self._synced >= GROUP_SECONDS)

    def sync(self, now: float) -> None:
        """Returns when every line so far would survive a power cut."""
        if self._waiting:
            sync(self._descriptor, self.path)
        self._waiting = 0
        self._synced = now

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def scan(files: JobFiles, take: Callable[[ResultLine, int, int], None]) -> None:
    """Hand every whole result line to ``take`` with its offset and length; cut away a torn end.

    A torn end is the beginning of a result line, or what a power cut leaves of blocks that were never
    written (zeros). Whatever else stands there is somebody's, and is not touched.

    Raises:
        OperatorError: something in the file is not a result line.
    """
    decoder = msgspec.json.Decoder(ResultLine)
    path = files.output
    offset = good = torn = 0
    with open(open_file(path, os.O_RDONLY), "rb", BUFFER) as file:
        for number, data in enumerate(file, 1):
            try:
                line = decoder.decode(data) if data.endswith(b"\n") else None
            except (msgspec.DecodeError, UnicodeDecodeError):
                line = None
            if line is None and _is_torn(data):
                torn = torn or number
            elif line is None or torn:
                raise OperatorError(
                    f"line {torn or number} is not a result line of this job",
                    where=str(path),
                    remedy="restore the file, or move it away with its journal and begin again",
                )
            else:
                take(line, offset, len(data))
                good = offset + len(data)
            offset += len(data)
    if good < offset:
        os.truncate(path, good)


def _is_torn(data: bytes) -> bool:
    return b"\0" in data or (not data.endswith(b"\n") and data.startswith(LINE_START[: len(data)]))


def in_input_order(files: JobFiles) -> None:
    """Rewrite the output in input order. Killed at any moment, the file is either the old or the new one.

    Holds 12 bytes a row, and 24 while it sorts.

    Raises:
        OperatorError: no room for the second copy.
    """
    lines, ends = array("I"), array("q", [0])

    def take(line: ResultLine, offset: int, size: int) -> None:
        lines.append(line.shoal.line)
        ends.append(offset + size)

    scan(files, take)
    numbers = np.frombuffer(lines, dtype=np.uint32)
    if np.all(numbers[1:] > numbers[:-1]):
        return
    _copy(files, np.argsort(numbers), np.frombuffer(ends, dtype=np.int64))
    try:
        os.replace(files.sorted, files.output)
        sync_folder(files.output)
    except OSError as error:
        raise refused(error, files.output) from None


def _copy(files: JobFiles, order: npt.NDArray[np.int64], ends: npt.NDArray[np.int64]) -> None:
    """Line ``i`` of the output lies at ``ends[i] : ends[i + 1]``."""
    source = open_file(files.output, os.O_RDONLY)
    target = -1
    try:
        target = open_file(files.sorted, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
        buffer = bytearray()
        for place in order:
            start = int(ends[place])
            buffer += read_at(source, start, int(ends[place + 1]) - start, files.output)
            if len(buffer) >= BUFFER:
                write_all(target, buffer, files.sorted)
                buffer.clear()
        write_all(target, buffer, files.sorted)
        sync(target, files.sorted)
    except OperatorError:
        remove(files.sorted)
        raise
    finally:
        os.close(source)
        if target >= 0:
            os.close(target)

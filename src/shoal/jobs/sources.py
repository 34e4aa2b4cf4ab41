"""Rows out of a file, one at a time: JSON lines here, tables in ``tables``."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from shoal.core.errors import CallerError, OperatorError
from shoal.jobs.files import open_file, refused

LINE_LIMIT = 16 << 20
BUFFER = 1 << 20
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class Raw(NamedTuple):
    """One row as it stands in the file; ``error`` says that it cannot even be looked at.

    ``data`` is the line's bytes, or the columns of a table's row by name.
    """

    line: int
    data: bytes | dict[str, Any]
    error: CallerError | None = None


class Source(Protocol):
    """A file of rows, read once from front to back.

    Attributes:
        size: bytes in the file.
        done: bytes read so far (for a progress bar).
    """

    size: int

    @property
    def done(self) -> int: ...

    def rows(self) -> Iterator[Raw]:
        """Every row in order; blank lines are passed over but counted."""

    def sha256(self) -> str:
        """Of the whole file, which is read to its end for it."""

    def close(self) -> None: ...


class HashedFile(io.RawIOBase):
    """A file that is hashed as it is read, front to back.

    Raises:
        OperatorError: it cannot be opened, or is not a regular file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        # Opening a pipe that nobody writes to would wait for ever.
        if path.exists() and not path.is_file():
            raise OperatorError("not a regular file", where=str(path), remedy="write the rows to a file")
        self._descriptor = open_file(path, os.O_RDONLY)
        self._hash = hashlib.sha256()
        self.done = 0
        self.size = os.fstat(self._descriptor).st_size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            count = os.readv(self._descriptor, [buffer])
        except OSError as error:
            raise refused(error, self.path) from None
        self._hash.update(memoryview(buffer)[:count])
        self.done += count
        return count

    def sha256(self) -> str:
        """Reads what is left."""
        buffer = bytearray(BUFFER)
        while self.readinto(buffer):
            pass
        return self._hash.hexdigest()

    def close(self) -> None:
        if not self.closed:
            os.close(self._descriptor)
        super().close()


class JsonLines:
    """One row a line. No more than ``limit`` bytes of a line are ever held in memory."""

    def __init__(self, path: Path, limit: int = LINE_LIMIT) -> None:
        self._raw = HashedFile(path)
        self._file = io.BufferedReader(self._raw, BUFFER)
        self.limit = limit
        self.size = self._raw.size

    @property
    def done(self) -> int:
        return self._raw.done

    def rows(self) -> Iterator[Raw]:
        number = 0
        limit = self.limit
        while data := self._file.readline(limit + 1):
            number += 1
            if number == 1:
                data = data.removeprefix(BYTE_ORDER_MARK)
            if len(data) > limit and not data.endswith(b"\n"):
                self._skip_line()
                yield Raw(number, data[:1024], line_too_long(limit))
                continue
            data = data.strip(b" \t\r\n")
            if data:
                yield Raw(number, data)

    def _skip_line(self) -> None:
        while data := self._file.readline(BUFFER):
            if data.endswith(b"\n"):
                return

    def sha256(self) -> str:
        return self._raw.sha256()

    def close(self) -> None:
        self._file.close()


def line_too_long(limit: int) -> CallerError:
    return CallerError(f"the line is longer than {limit} bytes", remedy="shorten it, or raise --line-limit")


def sha256_of(path: Path) -> str:
    """Raises OperatorError if the file cannot be read."""
    file = HashedFile(path)
    try:
        return file.sha256()
    finally:
        file.close()

"""The files of a job, and the few ways in which they are written."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from pathlib import Path

from shoal.core.errors import OperatorError


@dataclass(frozen=True)
class JobFiles:
    """Where a job keeps what it knows: all beside its output, all named after it."""

    output: Path

    def _beside(self, ending: str) -> Path:
        return self.output.with_name(self.output.name + ending)

    @property
    def journal(self) -> Path:
        return self._beside(".journal")

    @property
    def spool(self) -> Path:
        return self._beside(".spool")

    @property
    def quarantine(self) -> Path:
        return self._beside(".quarantine.jsonl")

    @property
    def sorted(self) -> Path:
        return self._beside(".sorted")

    @property
    def trace(self) -> Path:
        return self._beside(".trace")

    @property
    def report(self) -> Path:
        return self._beside(".report.html")

    @property
    def crash(self) -> Path:
        return self._beside(".crash.txt")


def size_of(path: Path) -> int:
    """Bytes in the file, 0 where there is none."""
    return path.stat().st_size if path.exists() else 0


def refused(error: OSError, path: Path) -> OperatorError:
    """The one line for a file that cannot be read or written."""
    remedies = {
        errno.ENOSPC: "free some space and run the same command again: it goes on from here",
        errno.EDQUOT: "raise the quota and run the same command again: it goes on from here",
        errno.EFBIG: "raise the file size limit (ulimit -f) and run the same command again",
        errno.EACCES: "give this user access, or choose another path",
        errno.EPERM: "give this user access, or choose another path",
        errno.EROFS: "choose a path on a writable file system",
        errno.ENOENT: "check the path",
        errno.EISDIR: "name a file, not a folder",
        errno.ENOTDIR: "check the path",
    }
    what = error.strerror or str(error)
    remedy = remedies.get(error.errno or 0, "check the disk, then run the same command again")
    return OperatorError(what, where=str(path), remedy=remedy)


def open_file(path: Path, flags: int) -> int:
    """A file descriptor, mode 0o666 less the umask.

    Raises:
        OperatorError: it cannot be opened.
    """
    try:
        return os.open(path, flags | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise refused(error, path) from None


def write_all(descriptor: int, data: bytes | bytearray | memoryview, path: Path) -> None:
    """All of ``data`` at the end of an O_APPEND file, in one write where the disk has room.

    Raises:
        OperatorError: it could not be written; what was written of ``data`` is cut away again.
    """
    written = 0
    try:
        while written < len(data):
            written += os.write(descriptor, memoryview(data)[written:] if written else data)
    except OSError as error:
        if written:
            os.ftruncate(descriptor, os.fstat(descriptor).st_size - written)
        raise refused(error, path) from None


def read_at(descriptor: int, start: int, length: int, path: Path) -> bytes:
    """Exactly ``length`` bytes from ``start`` on.

    Raises:
        OperatorError: the file cannot be read, or ends before that.
    """
    try:
        data = os.pread(descriptor, length, start)
    except OSError as error:
        raise refused(error, path) from None
    if len(data) != length:
        raise OperatorError(
            f"the file ends at byte {start + len(data)}, too early", where=str(path), remedy="restore it"
        )
    return data


def sync(descriptor: int, path: Path) -> None:
    """Return when all that was written to the file would survive a power cut.

    Raises:
        OperatorError: it cannot be made to.
    """
    try:
        os.fsync(descriptor)
    except OSError as error:
        raise refused(error, path) from None


def sync_folder(path: Path) -> None:
    """Make a creation, rename or removal in the folder of ``path`` survive a power cut."""
    descriptor = open_file(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        sync(descriptor, path.parent)
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    path.unlink(missing_ok=True)

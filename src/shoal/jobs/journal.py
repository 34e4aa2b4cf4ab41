"""The journal: a few JSON lines beside the output that let a job go on after any death.

    {"event": "created", "version": 1, "model": {...}, "parameters": {...}, "input": {...}, ...}
    {"event": "prepared", "rows": ..., "sha256": ..., ...}     the spool is whole
    {"event": "session", ...}                                  a process took the job up
    {"event": "progress", "finished": ..., "computed": ...}    what this session wrote so far
    {"event": "interrupted"} / {"event": "done", "summary": {...}}

What is done is told by the output file alone; the journal says which job it is. The one lock of a job is
held on this file for as long as a process works on it.
"""

from __future__ import annotations

import fcntl
import os
from typing import Any

import msgspec

from shoal.core.errors import InternalError, OperatorError
from shoal.jobs.files import JobFiles, open_file, refused, sync, sync_folder, write_all

VERSION = 1
LINE_START = b'{"event":"'
"""How every line begins."""


class Journal:
    """Opened and locked on construction; ``events`` are the lines that earlier sessions left.

    Raises:
        OperatorError: another process works on this job, or the file is not a journal.
    """

    def __init__(self, files: JobFiles) -> None:
        self.path = files.journal
        self.output = files.output
        self._descriptor = open_file(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        try:
            self._lock()
            self.events: list[dict[str, Any]] = []
            for line in self._read():
                self._keep(line)
        except BaseException:
            os.close(self._descriptor)
            raise

    def _lock(self) -> None:
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OperatorError(
                "another shoal run is working on this job",
                where=str(self.path),
                remedy="wait until it ends, or give this one another output with -o",
            ) from None
        except OSError as error:
            raise refused(error, self.path) from None

    def _read(self) -> list[dict[str, Any]]:
        """All whole lines; a torn last one is cut away."""
        data = b""
        while chunk := os.pread(self._descriptor, 1 << 20, len(data)):
            data += chunk
        whole = data.rfind(b"\n") + 1
        torn = data[whole:]
        if torn and not (LINE_START.startswith(torn[: len(LINE_START)]) or b"\0" in torn):
            raise self._unreadable("not a journal of shoal")
        try:
            events = [msgspec.json.decode(line, type=dict[str, Any]) for line in data[:whole].splitlines()]
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise self._unreadable("not a journal of shoal") from None
        if events and (events[0].get("event") != "created" or events[0].get("version") != VERSION):
            raise self._unreadable("a journal of another version of shoal, or not a journal")
        if not all(isinstance(line.get("event"), str) for line in events):
            raise self._unreadable("not a journal of shoal")
        if torn:
            os.ftruncate(self._descriptor, whole)
        return events

    def _unreadable(self, what: str) -> OperatorError:
        remedy = f"choose another output with -o, or remove {self.path.name} and {self.output.name}"
        return OperatorError(what, where=str(self.path), remedy=remedy)

    def last(self, event: str) -> dict[str, Any] | None:
        """The latest line of this kind."""
        return next((line for line in reversed(self.events) if line["event"] == event), None)

    def write(self, event: str, *, durable: bool = True, **values: Any) -> None:
        """Append one line; ``durable`` waits until it would survive a power cut."""
        line = {"event": event, **values}
        write_all(self._descriptor, msgspec.json.encode(line) + b"\n", self.path)
        if durable:
            sync(self._descriptor, self.path)
        self._keep(line)

    def _keep(self, line: dict[str, Any]) -> None:
        """Remember a line; of progress lines in a row only the last, so that days of them take no memory."""
        if self.events and line["event"] == "progress" == self.events[-1]["event"]:
            self.events.pop()
        self.events.append(line)

    def create(self, **values: Any) -> None:
        """The first line; the job exists from here on."""
        self.write("created", version=VERSION, **values)
        sync_folder(self.path)

    def clear(self) -> None:
        """Forget everything: nothing was answered yet, or the job was refused."""
        os.ftruncate(self._descriptor, 0)
        self.events = []

    def remove(self) -> None:
        """Delete the file while its lock is still held."""
        self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Give up the lock. Safe to call twice."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    @property
    def identity(self) -> dict[str, Any]:
        if not self.events:
            raise InternalError("a journal without a first line was asked for its job")
        return self.events[0]


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """``name was A, is now B`` for each entry that is not the same in both."""
    return [
        f"{name} was {_shown(old.get(name))}, is now {_shown(new.get(name))}"
        for name in dict.fromkeys([*old, *new])
        if old.get(name) != new.get(name)
    ]


def _shown(value: Any) -> str:
    text = msgspec.json.encode(value).decode()
    return text if len(text) <= 60 else text[:57] + "..."

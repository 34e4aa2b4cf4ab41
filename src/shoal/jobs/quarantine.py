"""Bad rows go here, each with its line, the reason and what to do about it."""

from __future__ import annotations

import os
from typing import Any

import msgspec

from shoal.core.errors import ShoalError
from shoal.jobs.files import JobFiles, open_file, remove, sync, write_all

EXCERPT = 300
"""Characters of the raw line that are shown."""


class Quarantine:
    """The file appears with the first bad row."""

    def __init__(self, files: JobFiles) -> None:
        self.path = files.quarantine
        self.rows = 0
        self._descriptor = -1
        remove(self.path)

    def add(self, line: int, error: ShoalError, raw: bytes | dict[str, Any], identifier: str | None) -> None:
        """Raises OperatorError if it cannot be written."""
        if self._descriptor < 0:
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND
            self._descriptor = open_file(self.path, flags)
        entry = {
            "line": line,
            "custom_id": identifier,
            "reason": error.what,
            "remedy": error.remedy,
            "raw": excerpt(raw),
        }
        write_all(self._descriptor, msgspec.json.encode(entry) + b"\n", self.path)
        self.rows += 1

    def sync(self) -> None:
        if self._descriptor >= 0:
            sync(self._descriptor, self.path)

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def excerpt(raw: bytes | dict[str, Any]) -> str:
    """The beginning of a row as text; bytes that are no UTF-8 appear as escapes."""
    if not isinstance(raw, bytes):
        raw = repr(raw).encode("utf-8", "backslashreplace")
    text = raw[: 4 * EXCERPT].decode("utf-8", "backslashreplace")
    return text if len(text) <= EXCERPT else text[:EXCERPT] + "..."

"""The error tree: who can fix it, what went wrong, where, and the remedy in one line.

ShoalError
  CallerError     the request is wrong: its author can fix it        (a row's error, HTTP 400)
  OperatorError   the files, flags or machine are wrong: whoever
                  started shoal can fix it                           (exit code 2)
  InternalError   shoal is wrong: we must fix it                     (exit code 1, HTTP 500)
"""

from __future__ import annotations


class ShoalError(Exception):
    """One line for a person: ``what`` went wrong, ``where``, and the ``remedy``."""

    who = "us"

    def __init__(self, what: str, *, where: str = "", remedy: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.remedy = remedy

    def __str__(self) -> str:
        line = f"{self.where}: {self.what}" if self.where else self.what
        return f"{line} ({self.remedy})" if self.remedy else line


class CallerError(ShoalError):
    """The request cannot be answered as asked; everything else goes on."""

    who = "caller"


class OperatorError(ShoalError):
    """Nothing can run until whoever started shoal changes a file, a flag or the machine."""

    who = "operator"


class InternalError(ShoalError):
    """A fault of shoal itself; the message carries what a bug report needs."""

    who = "us"

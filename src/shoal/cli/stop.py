"""The two ways in which a person stops a run: once politely, twice at once."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from types import FrameType

from shoal.jobs.ending import INTERRUPTED

SHOW_CURSOR = b"\x1b[?25h\n"
"""The live panel hides it."""


class Stop:
    """Turns SIGINT and SIGTERM into a question that the run asks between steps."""

    def __init__(self) -> None:
        self.asked = False

    def install(self) -> None:
        """Take the two signals over for the rest of the process."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._stop)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            if sys.stderr is not None and sys.stderr.isatty():
                _tell(SHOW_CURSOR)
            os._exit(INTERRUPTED)
        self.asked = True
        if number == signal.SIGINT:
            _tell(b"\nstopping after this step; once more stops at once\n")

    def __call__(self) -> bool:
        return self.asked


def _tell(text: bytes) -> None:
    """Past Python's buffers, which the signal may have interrupted. Ctrl-C ends a pipe's reader as well
    (``2>&1 | tee log``), and who reads nothing need not be told."""
    if sys.stderr is not None:
        with suppress(OSError):
            os.write(sys.stderr.fileno(), text)

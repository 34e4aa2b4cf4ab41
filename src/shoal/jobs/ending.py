"""How a job can end. Imported by everything that starts one, so it imports nothing."""

from __future__ import annotations

ANSWERED, OUR_FAULT, REFUSED, SOME_FAILED, INTERRUPTED = 0, 1, 2, 3, 130
"""Exit codes."""


class Interrupted(Exception):
    """Somebody asked the job to stop; everything is saved, and the same command goes on."""

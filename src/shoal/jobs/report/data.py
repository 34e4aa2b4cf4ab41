"""Everything that a report shows, as one value: whoever has it can write the page."""

from __future__ import annotations

import msgspec

from shoal.jobs.job import Planned, Summary
from shoal.jobs.settings import Settings
from shoal.jobs.trace import Group, Trace


class Prefix(msgspec.Struct):
    """A planned prefix and how its own stretch of text begins."""

    group: Group
    text: str = ""


class BadRow(msgspec.Struct):
    """A row that was put into quarantine, as it stands in that file."""

    line: int
    reason: str = ""
    remedy: str = ""
    id: str | int | None = msgspec.field(default=None, name="custom_id")
    raw: str = ""


class Story(msgspec.Struct, kw_only=True):
    """What happened in a job.

    Attributes:
        input, output: file names. written: when, for people.
        planned: what the plan of the latest session said.
        prefixes: those that saved most, at most ``MOST_PREFIXES``.
        bad: the first quarantined rows; ``quarantine``: the name of the file that has them all.
        settings: by heading: (name, value, what it means).
    """

    input: str
    output: str
    written: str
    summary: Summary
    trace: Trace
    planned: Planned | None = None
    prefixes: list[Prefix] = []
    bad: list[BadRow] = []
    quarantine: str = ""
    settings: Settings = {}


MOST_PREFIXES = 12
MOST_BAD = 20

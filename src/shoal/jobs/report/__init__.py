"""The report of a job, ``OUT.report.html``: one file that needs no network, for people."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from itertools import islice

import msgspec

from shoal.jobs.files import JobFiles
from shoal.jobs.job import Job, Planned, Summary
from shoal.jobs.report.data import MOST_BAD, MOST_PREFIXES, BadRow, Prefix, Story
from shoal.jobs.settings import Settings
from shoal.jobs.trace import Group, Trace, replace_file

Excerpt = Callable[[Group], str]
"""The beginning of a prefix's own stretch as text."""


def tell(
    job: Job,
    summary: Summary,
    trace: Trace,
    *,
    planned: Planned | None = None,
    asked: Settings | None = None,
    excerpt: Excerpt = lambda group: "",
    now: datetime | None = None,
) -> Story:
    """Gather what the report of a finished job shows.

    Args:
        planned: what the plan of the latest session said.
        asked: further settings, by heading, such as what the job's flags were.
        excerpt: called for the few prefixes that are shown.
        now: when it was written.
    """
    groups = sorted(trace.savings.groups.values(), key=lambda group: group.saved, reverse=True)
    return Story(
        input=job.input.name,
        output=job.output.name,
        written=(now or datetime.now()).strftime("%Y-%m-%d %H:%M"),
        summary=summary,
        trace=trace,
        planned=planned,
        prefixes=[Prefix(group, excerpt(group)) for group in groups[:MOST_PREFIXES] if group.requests > 1],
        bad=_bad_rows(job.files) if summary.quarantined else [],
        quarantine=job.files.quarantine.name,
        settings=trace.settings | (asked or {}),
    )


def _bad_rows(files: JobFiles) -> list[BadRow]:
    """The first entries of the quarantine file; none if somebody took it away."""
    try:
        with files.quarantine.open("rb") as file:
            return [msgspec.json.decode(line, type=BadRow) for line in islice(file, MOST_BAD)]
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return []


def write_report(files: JobFiles, story: Story) -> None:
    """Write ``OUT.report.html``, or replace it.

    Raises:
        OperatorError: it cannot be written.
    """
    from shoal.jobs.report.page import render

    replace_file(files.report, render(story).encode("utf-8", "replace"))

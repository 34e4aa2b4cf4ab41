"""The report of a job, ``OUT.report.html``: one file that needs no network, for people."""

from __future__ import annotations

from datetime import datetime
from itertools import islice
from typing import Any

import msgspec
import numpy as np

from shoal.core.request import SamplingParams
from shoal.engine.model import TextModel
from shoal.jobs.files import JobFiles
from shoal.jobs.job import Job, Planned, Summary
from shoal.jobs.journal import Journal
from shoal.jobs.report.data import MOST_BAD, MOST_PREFIXES, BadRow, Prefix, Story
from shoal.jobs.settings import Settings
from shoal.jobs.spool import NOBODY, Spool
from shoal.jobs.trace import Group, Trace, replace_file

EXCERPT = 80
"""Tokens of a prefix that are shown."""


def write_report(
    job: Job, journal: Journal, model: TextModel, spool: Spool, summary: Summary, trace: Trace
) -> None:
    """Write ``OUT.report.html`` of a job whose rows all have their line, or replace it.

    Raises:
        OperatorError: it cannot be written.
    """
    from shoal.jobs.report.page import render

    story = tell(job, journal, model, spool, summary, trace)
    replace_file(job.files.report, render(story).encode("utf-8", "replace"))


def tell(job: Job, journal: Journal, model: TextModel, spool: Spool, summary: Summary, trace: Trace) -> Story:
    """Gather what the report of a job shows."""
    plan = journal.last("plan")
    shared = [group for group in trace.savings.groups.values() if group.requests > 1]
    shared.sort(key=lambda group: group.saved, reverse=True)
    return Story(
        input=job.input.name,
        output=job.output.name,
        written=datetime.now().strftime("%Y-%m-%d %H:%M"),
        summary=summary,
        trace=trace,
        planned=None if plan is None else msgspec.convert(plan, Planned),
        prefixes=[Prefix(group, excerpt(group, model, spool)) for group in shared[:MOST_PREFIXES]],
        bad=_bad_rows(job.files) if summary.quarantined else [],
        quarantine=job.files.quarantine.name,
        settings=_settings(trace, journal),
    )


def excerpt(group: Group, model: TextModel, spool: Spool) -> str:
    """How the stretch of a prefix begins, as text."""
    row = spool.row_of(group.line)
    if row == NOBODY:
        return ""
    ids = np.frombuffer(spool.read(row).ids, dtype=np.int32)[group.start : group.tokens]
    # A stretch may begin or end within a character.
    return model.tokenizer.decode(ids[:EXCERPT], False).strip("\ufffd")


def _settings(trace: Trace, journal: Journal) -> Settings:
    found = dict(trace.settings)
    plan = journal.last("plan")
    if plan is not None and "Policies" in found:
        reuse = ("reuse", plan["policy"], "In which order rows run, and what of them is computed once.")
        found["Policies"] = [*found["Policies"], reuse]
    return found | asked(journal.identity)


def asked(identity: dict[str, Any]) -> Settings:
    """The model and the job's parameters as the journal knows them, but for those left at nothing or at
    their default."""
    plain = {name.replace("_", "-"): value for name, value in msgspec.to_builtins(SamplingParams()).items()}
    found: Settings = {}
    for heading, name in (("Model", "model"), ("Job", "parameters")):
        values: dict[str, Any] = identity.get(name, {})
        found[heading] = [
            (key, _written(value), "")
            for key, value in values.items()
            if value not in (None, False, "", [], {}) and (key not in plain or value != plain[key])
        ]
    return {heading: entries for heading, entries in found.items() if entries}


def _written(value: Any) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def _bad_rows(files: JobFiles) -> list[BadRow]:
    """The first entries of the quarantine file; none if somebody took it away."""
    try:
        with files.quarantine.open("rb") as file:
            return [msgspec.json.decode(line, type=BadRow) for line in islice(file, MOST_BAD)]
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return []

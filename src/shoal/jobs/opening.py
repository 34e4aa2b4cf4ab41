"""The first look at a job's files, before anything is written, loaded or even imported for it."""

from __future__ import annotations

import os

from shoal.core.errors import OperatorError
from shoal.jobs.files import size_of
from shoal.jobs.job import Job
from shoal.jobs.sources import Source
from shoal.jobs.tables import open_source


def open_rows(job: Job) -> Source:
    """The job's input, once it is clear that input and output can be used; nothing is written.

    Raises:
        OperatorError: the input cannot be read, or the output is not this job's.
    """
    source = open_source(job.input, job.form, job.line_limit, job.layout.needs)
    try:
        _check_output(job)
    except OperatorError:
        source.close()
        raise
    return source


def _check_output(job: Job) -> None:
    """Refuse, before anything is written, an output that no journal speaks for.

    Raises:
        OperatorError: it exists and is not this kind of job's, or cannot be written.
    """
    output, journal = job.files.output, job.files.journal
    if not output.parent.is_dir():
        raise OperatorError(
            f"there is no folder {output.parent}", where=str(output), remedy="create it, or name another"
        )
    if output.exists() and not output.is_file():
        raise OperatorError("not a regular file", where=str(output), remedy="name a file to write")
    if output.exists() and os.path.samefile(output, job.input):
        raise OperatorError(
            "input and output are one file", where=str(output), remedy="choose another with -o"
        )
    if size_of(output) and not size_of(journal):
        raise OperatorError(
            "the file exists and there is no journal for it, so it is not overwritten",
            where=str(output),
            remedy="choose another output with -o, or move the file away",
        )

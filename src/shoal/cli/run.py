"""``shoal run``: answer a file of prompts."""

from __future__ import annotations

from typing import Any

import click

from shoal.cli.flags import FILE, engine_flags, input_flags, sampling_flags

EPILOG = """\b
Exit codes:
  0    every row was answered
  1    a fault of shoal (one line says where the traceback is)
  2    refused: nothing was run, or the job cannot go on; one line says why
  3    finished, with rows that failed or were quarantined
  130  interrupted; the same command goes on

\b
Files beside OUT:
  OUT.journal             which job this is; the same command resumes it
  OUT.quarantine.jsonl    bad rows, each with line, reason and remedy
  OUT.spool               prepared rows, removed at the end
  OUT.report.html         what the run did and why, for people
"""


@click.command(epilog=EPILOG)
@click.argument("input", type=FILE, metavar="IN")
@click.option("-o", "--output", type=FILE, required=True, metavar="OUT", help="Result lines, one a row.")
@click.option("--strict", is_flag=True, help="Run nothing if any row is bad.")
@click.option("--ordered", is_flag=True, help="At the end, put the results in input order.")
@click.option("-q", "--quiet", is_flag=True, help="Say nothing but errors.")
@input_flags
@sampling_flags
@engine_flags
def run(**flags: Any) -> int:
    """Answer every row of IN and append the results to OUT as they finish.

    IN is JSON lines (OpenAI batch lines, or {"prompt": ...} / {"messages": ...} with optional id and
    sampling fields), CSV, TSV or Parquet. OUT is OpenAI batch output. Killed at any moment, the same
    command goes on where it stopped. Sampling flags are defaults for rows that name none; with a
    template a row is data, and only its prompt, its id and kept columns are taken from it.
    """
    from shoal.cli.start import run_with

    return run_with(flags)

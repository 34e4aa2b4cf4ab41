"""``shoal plan``: what a run would cost, without running it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import msgspec

from shoal.cli.flags import FILE, engine_flags, input_flags, sampling_flags
from shoal.jobs.ending import ANSWERED, REFUSED

EPILOG = """\b
Exit codes:
  0    planned
  1    a fault of shoal (one line says where the traceback is)
  2    refused; one line says why
  3    planned, without the rows that are bad
  130  interrupted; with -o, the same command goes on
"""


@click.command(epilog=EPILOG)
@click.argument("input", type=FILE, metavar="IN")
@click.option(
    "-o",
    "--output",
    type=FILE,
    metavar="OUT",
    help="Keep what is prepared beside OUT: 'shoal run IN -o OUT' begins with it.",
)
@click.option("--strict", is_flag=True, help="Refuse the file if any row is bad.")
@click.option("--ordered", is_flag=True, help="Makes no difference here.")
@click.option("--json", "machine", is_flag=True, help="One line of JSON on standard output.")
@click.option("-q", "--quiet", is_flag=True, help="No progress on standard error.")
@input_flags
@sampling_flags
@engine_flags
def plan(**flags: Any) -> int:
    """Say what 'shoal run IN' with the same flags would cost: tokens, memory and time.

    Every row is read, checked and tokenised as in a run, and nothing is run. What rows have in common is
    computed once, so the plan says which prefixes they share, how many prompt tokens are left to compute,
    to the token, and how many other orders and policies would compute.
    """
    from shoal.cli.start import plan_with

    # Without OUT there is no quarantine file to be referred to: the screen itself lists bad rows.
    strict = flags["strict"] and flags["output"] is None
    with _output(flags["output"]) as output:
        found = plan_with({**flags, "output": output, "strict": flags["strict"] and not strict})
        if found is None:
            click.echo("This job is finished already; nothing is left to plan.", err=True)
            if flags["machine"]:
                click.echo('{"finished":true}')
            return ANSWERED
        if flags["machine"]:
            click.echo(msgspec.json.encode(found))
        else:
            from shoal.cli.outlook import show

            show(found, flags["output"])
        return REFUSED if strict and found.bad else found.exit_code


@contextmanager
def _output(named: Path | None) -> Iterator[Path]:
    """Where the job is prepared: beside its output, or in a folder that is gone afterwards."""
    if named is not None:
        yield named
        return
    with tempfile.TemporaryDirectory(prefix="shoal-plan-") as folder:
        yield Path(folder) / "plan"

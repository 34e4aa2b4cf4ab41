"""``shoal reproduce``: run the experiment that justifies a system, and say which of its claims hold."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from shoal.core.errors import OperatorError
from shoal.jobs.ending import ANSWERED, SOME_FAILED

if TYPE_CHECKING:
    from shoal.experiments.claims import Outcome

ALL = "all"
PICTURES = Path("out", "reproduce")
FORMATS = (".svg", ".png", ".pdf")
FILE = click.Path(path_type=Path)
HELP = """Run the experiment that justifies a system: workload, baselines and policy in one process.

NAME is a system of 'shoal reproduce --list', or 'all'. Each claim is a row: what is claimed, the baseline,
what the policy reached, and what it should be. Counted claims (tokens, steps, bytes, simulated time) are the
same on every machine; clocked ones are wall time here."""
EPILOG = """\b
Exit codes:
  0    every judged claim holds
  2    refused: one line says why
  3    some claim does not hold
"""


@click.command(help=HELP, epilog=EPILOG)
@click.argument("name", required=False)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the workload.")
@click.option("--quick", is_flag=True, help="Small sizes, at most 10 s; clocked claims are not judged.")
@click.option("--json", "machine", is_flag=True, help="One line of JSON on standard output, nothing else.")
@click.option("--list", "listing", is_flag=True, help="Name every system, and what its experiment shows.")
@click.option("--picture", type=FILE, help=f"Where to draw.  [default: {PICTURES}/NAME.svg]")
@click.option("--page", type=FILE, help="Write NAME.md and its picture into this folder.")
def reproduce(
    name: str | None,
    seed: int,
    quick: bool,
    machine: bool,
    listing: bool,
    picture: Path | None,
    page: Path | None,
) -> int:
    from shoal.experiments.registry import registry

    known = registry()
    if listing:
        _list(known.names(), machine)
        return ANSWERED
    if name is None:
        raise OperatorError("which system?", remedy=f"valid: {', '.join(known.names())}, {ALL}")
    names = known.names() if name == ALL else [name]
    if picture is not None and len(names) > 1:
        raise OperatorError("--picture is one file, but there are several systems", remedy="leave it out")
    if picture is not None and picture.suffix not in FORMATS:
        raise OperatorError(
            "a picture of unknown form", where=str(picture), remedy=f"valid: {', '.join(FORMATS)}"
        )
    for each in names:
        known.get(each)
    held = [_one(each, seed, quick, machine, picture, page) for each in names]
    return ANSWERED if all(held) else SOME_FAILED


def _list(names: list[str], machine: bool) -> None:
    from shoal.experiments.registry import summary

    if machine:
        found = [{"name": name, "summary": summary(name)} for name in names]
        click.echo(msgspec.json.encode(found).decode())
        return
    width = max(map(len, names))
    for name in names:
        click.echo(f"{name:<{width}}  {summary(name)}")


def _one(name: str, seed: int, quick: bool, machine: bool, picture: Path | None, page: Path | None) -> bool:
    """Whether its claims hold."""
    from shoal.cli.outcome import Watch, console, show
    from shoal.experiments import registry, text

    watch = Watch(name)
    with watch.running():
        outcome = registry.reproduce(name, seed, quick, watch)
    if machine:
        click.echo(text.as_json(outcome))
    else:
        show(outcome, registry.summary(name), console())
    asked = picture or (page and page / f"{name}.svg")
    try:
        drawn = _draw(outcome, asked or PICTURES / f"{name}.svg")
        if page is not None:
            from shoal.experiments.pages import write_page

            click.echo(f"page {write_page(outcome, drawn, page)}", err=True)
    except OSError as error:
        if asked:
            raise OperatorError(f"cannot write there: {error}", where=str(page or picture)) from None
        click.echo(f"no picture: {error}", err=True)
    return outcome.passed


def _draw(outcome: Outcome, path: Path) -> Path | None:
    """Where the picture was written, if there is one. Raises OSError where it cannot be."""
    if outcome.draw is None:
        return None
    from shoal.experiments.picture import save

    written = save(outcome, path)
    if written is None:
        click.echo("no picture: matplotlib is not installed (pip install 'shoal[report]')", err=True)
    else:
        click.echo(f"picture {written}", err=True)
    return written

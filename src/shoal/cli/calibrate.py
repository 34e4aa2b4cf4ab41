"""``shoal calibrate``: measure what steps cost here, and keep it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click
import msgspec

from shoal.cli.flags import engine_flags
from shoal.cli.options import engine_config
from shoal.core.errors import OperatorError
from shoal.jobs.ending import ANSWERED

if TYPE_CHECKING:
    from shoal.engine.build import Prepared
    from shoal.engine.calibration import Stored

HELP = """Measure how long a step takes here by the rows in it, and keep the table for later runs.

It holds for one model, type, device, number of threads, layout, page size and version of shoal, and is
measured anew when one of them changes. 'shoal plan' predicts with it, and the default admission takes its
rows a step from it."""
BAR = 24


@click.command(help=HELP)
@click.option("--fresh", is_flag=True, help="Measure although a table is there.")
@click.option(
    "--budget",
    type=click.FloatRange(0.5, 60.0),
    help="Seconds that measuring may take, roughly.  [default: 20]",
)
@click.option("--json", "machine", is_flag=True, help="One line of JSON on standard output, nothing else.")
@engine_flags
def calibrate(fresh: bool, budget: float | None, machine: bool, **flags: Any) -> int:
    from shoal.engine.build import prepare
    from shoal.engine.calibration import load

    prepared = prepare(engine_config({**flags, "seed": 0}))
    if prepared.identity is None:
        raise OperatorError("the null model computes nothing to measure", remedy="name another with --model")
    stored, _ = load(prepared.identity)
    if stored is None or fresh:
        if not machine:
            click.echo(prepared.description, err=True)
        _measure(prepared, budget)
        stored, trouble = load(prepared.identity)
        if stored is None:
            raise OperatorError(trouble or "the calibration is gone again", remedy="try again")
    _show(prepared, stored, machine)
    return ANSWERED


def _measure(prepared: Prepared, budget: float | None) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from shoal.engine.build import start
    from shoal.engine.calibrate import BUDGET
    from shoal.engine.costs import keep, measure

    console = Console(stderr=True)
    columns = TextColumn("{task.description:<16}"), BarColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("loading", total=1.0)
        update: Callable[..., None] = progress.update
        engine = start(prepared, lambda done, size: update(task, completed=done / max(1, size)))
        found = measure(
            prepared,
            engine,
            progress=lambda what, share: update(task, description=what, completed=share),
            budget=BUDGET if budget is None else budget,
        )
    keep(prepared, found)


def _show(prepared: Prepared, stored: Stored, machine: bool) -> None:
    from shoal.engine.build import step_rows
    from shoal.engine.calibration import path_of

    table, path = stored.table, path_of(stored.identity)
    rows = step_rows(prepared.config, table, prepared.pages)
    seconds = {count: table.rows(count) for count in table.row_counts}
    if machine:
        line = {
            "model": stored.model,
            "file": str(path),
            "measured": stored.measured,
            "seconds": stored.seconds,
            "identity": stored.identity,
            "rows": [{"rows": count, "seconds": took} for count, took in seconds.items()],
            "step_rows": rows,
            "table": table,
        }
        click.echo(msgspec.json.encode(line).decode())
        return
    best = max(count / took for count, took in seconds.items())
    click.echo(f"{'rows':>6} {'ms a step':>10} {'tokens/s':>9}")
    for count, took in seconds.items():
        bar = "█" * max(1, round(BAR * count / took / best))
        mark = "  ← rows a step" if count == rows else ""
        click.echo(f"{count:>6} {1e3 * took:>10.1f} {count / took:>9,.0f}  {bar}{mark}")
    click.echo(f"\nA step takes up to {rows} rows. Measured in {stored.seconds:.0f} s, {stored.measured}.")
    click.echo(f"Kept in {path}")

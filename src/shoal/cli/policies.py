"""``shoal policies``: what can be chosen for each seam."""

from __future__ import annotations

import click

from shoal.core.policies import registry
from shoal.core.policy import SEAMS


@click.command(help="List the scheduling policies by seam, those of installed packages included.")
def policies() -> None:
    for seam in SEAMS:
        click.echo(f"--{seam}")
        names = registry(seam)
        for name in names.names():
            summary = (names.get(name).__doc__ or "").strip().splitlines()
            click.echo(f"    {name:<12} {summary[0] if summary else ''}")

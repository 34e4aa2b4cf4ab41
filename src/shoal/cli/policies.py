"""``shoal policies``: what can be chosen for each seam."""

from __future__ import annotations

import inspect
import shutil

import click

from shoal.core.policies import DEFAULTS, registry
from shoal.core.policy import SEAMS, Policy, seams_of


@click.command(
    help="List the published systems, and the policies by seam, those of installed packages included."
)
def policies() -> None:
    width = shutil.get_terminal_size((100, 24)).columns
    formatter = click.HelpFormatter(width=min(100, max(40, width)))
    for seam in ("policy", *SEAMS):
        names = registry(seam)
        with formatter.section(f"--{seam}"):
            formatter.write_dl([(name, _about(seam, name, names.get(name))) for name in names.names()])
    click.echo(formatter.getvalue().rstrip())


def _about(seam: str, name: str, kind: type[Policy]) -> str:
    said = (inspect.getdoc(kind) or "").partition("\n\n")[0].replace("``", "")
    if seam == "policy":
        return f"({', '.join(seams_of(kind))}) {said}"
    return f"{said} (default)" if DEFAULTS[seam] == name else said

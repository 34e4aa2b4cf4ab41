"""What a person sees of an experiment: a line while it runs, a row a claim, and its tables."""

from __future__ import annotations

import os
import sys
import time
from contextlib import AbstractContextManager, nullcontext

import click
from rich.console import Console, Group
from rich.status import Status
from rich.table import Table
from rich.text import Text

from shoal.experiments import claims, text

NARROW = 78
"""Columns below which a claim takes two lines instead of a row."""
PIPE_WIDTH = 120
GAP = 2
"""Columns between two columns of a table."""
PLAIN_SECONDS = 5.0
COLOURS = {"pass": "green", "FAIL": "bold red"}


class Watch:
    """A line of progress on stderr: redrawn on a terminal, said again every few seconds elsewhere."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._began = self._last = time.monotonic()
        terminal = sys.stderr is not None and sys.stderr.isatty()
        self._status = Status(name, console=Console(stderr=True)) if terminal else None

    def running(self) -> AbstractContextManager[object]:
        return self._status or nullcontext()

    def __call__(self, doing: str) -> None:
        now = time.monotonic()
        line = f"{self.name} · {now - self._began:.0f} s · {doing}"
        if self._status is not None:
            self._status.update(Text(line, no_wrap=True, overflow="ellipsis"))
        elif now - self._last >= PLAIN_SECONDS:
            self._last = now
            click.echo(line, err=True)


def console() -> Console:
    """Standard output; a pipe has room for a whole row."""
    if sys.stdout.isatty() or "COLUMNS" in os.environ:
        return Console(highlight=False)
    return Console(highlight=False, width=PIPE_WIDTH)


def show(outcome: claims.Outcome, about: str, screen: Console) -> None:
    """Print what the experiment is about, the claims, the further tables, and how it ended."""
    screen.print(Text(outcome.name, style="bold"), Text(about), end="\n\n")
    screen.print(_claims(outcome, screen.width))
    for table in outcome.tables:
        screen.print()
        screen.print(_table(table, screen))
    screen.print()
    screen.print(Text(text.ending(outcome), style="green" if outcome.passed else "bold red"))


def _claims(outcome: claims.Outcome, width: int) -> Table | Group:
    rows = [text.cells(claim) for claim in outcome.claims]
    if width < NARROW:
        return Group(*(_two_lines(row) for row in rows))
    found = Table(box=None, padding=(0, GAP, 0, 0), header_style="bold", pad_edge=False)
    for title in text.COLUMNS:
        middle = title in ("baseline", "value")
        found.add_column(title, justify="right" if middle else "left", no_wrap=title != "claim")
    for *row, verdict in rows:
        found.add_row(*map(Text, row), Text(verdict, style=COLOURS.get(verdict, "dim")))
    return found


def _two_lines(row: tuple[str, str, str, str, str]) -> Text:
    name, baseline, value, should, verdict = row
    line = Text(f"{name}: ")
    line.append(verdict, style=COLOURS.get(verdict, "dim"))
    if value:
        line.append(f"\n    {value}, should be {should}")
    if baseline:
        line.append(f", baseline {baseline}")
    return line


def _table(table: claims.Table, screen: Console) -> Table | Group:
    """A table; where its columns do not fit, a few lines a row."""
    title = Text(table.title, style="bold")
    rows = [[text.number(cell) for cell in row] for row in table.rows]
    columns = list(zip(table.columns, *rows))
    widths = _widths(columns, screen.width - GAP * (len(columns) - 1))
    if widths is None:
        lines = (zip(table.columns[1:], row[1:]) for row in rows)
        said = (", ".join(f"{name} {cell}" for name, cell in line) for line in lines)
        return Group(title, *(Text(f"{row[0]}: {line}") for row, line in zip(rows, said)))
    found = Table(box=None, padding=(0, GAP, 0, 0), pad_edge=False, header_style="dim")
    for place, (column, width) in enumerate(zip(table.columns, widths)):
        numbers = any(not isinstance(row[place], str) for row in table.rows)
        found.add_column(column, justify="right" if numbers else "left", width=width)
    for row in rows:
        found.add_row(*map(Text, row))
    return Group(title, found)


def _widths(columns: list[tuple[str, ...]], room: int) -> list[int] | None:
    """Widths that fit: texts may be broken between words, numbers not at all; None if they cannot."""
    widths = [max(map(len, column)) for column in columns]
    least = [max(len(word) for cell in column for word in cell.split() or [""]) for column in columns]
    if sum(least) > room:
        return None
    while sum(widths) > room:
        place = max((i for i in range(len(widths)) if widths[i] > least[i]), key=widths.__getitem__)
        widths[place] -= 1
    return widths

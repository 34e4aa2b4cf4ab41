"""A plan on one screen."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import click

from shoal.cli import words
from shoal.jobs.outlook import Outlook, SharedText

PIPE_WIDTH = 120
LABEL = 10


def show(found: Outlook, output: Path | None) -> None:
    """Print it to standard output, no line wider than the terminal."""
    width = shutil.get_terminal_size((PIPE_WIDTH, 24)).columns
    if not sys.stdout.isatty() and "COLUMNS" not in os.environ:
        width = PIPE_WIDTH
    for line in lines(found, output, max(40, width)):
        click.echo(line)


def lines(found: Outlook, output: Path | None, width: int) -> Iterator[str]:
    """The screen, line by line: sentences are broken, rows of tables cut."""
    for name, text in _sentences(found):
        yield from _broken(text, width, name)
    for row in _tables(found, output, width):
        yield row if len(row) <= width else row[: width - 1] + "…"
    if output is not None:
        yield ""
        yield from _broken(
            f"Prepared beside {output}: 'shoal run' with the same flags begins with it.", width
        )


def _broken(text: str, width: int, name: str = "") -> list[str]:
    label = f"{name:<{LABEL}}" if name else ""
    return textwrap.wrap(text, width, initial_indent=label, subsequent_indent=" " * len(label))


def _sentences(found: Outlook) -> Iterator[tuple[str, str]]:
    plan = found.plan
    yield "rows", _rows(found)
    if not plan.rows:
        yield "plan", words.reason(plan)
        return
    yield "prompts", words.prompts(plan)
    yield "answers", words.answers(plan)
    yield "memory", words.memory(plan, found.token_bytes)
    yield "time", _time(found)
    yield "policy", f"{plan.policy}: {words.reason(plan)}"
    if plan.windows > 1:
        yield "parts", f"{plan.windows}, one after the other: too many rows to plan at once"


def _tables(found: Outlook, output: Path | None, width: int) -> Iterator[str]:
    plan = found.plan
    if found.largest:
        nodes, levels = words.plural(plan.nodes, "shared prefix"), words.plural(plan.levels, "level")
        yield ""
        yield f"{nodes} in up to {levels}; those that save most:"
        yield from _prefixes(found.largest, width)
    if plan.rows:
        yield ""
        yield "prompt tokens that would be computed"
        yield from _alternatives(found)
    if found.bad_rows:
        yield ""
        yield from _bad(found, output)


def _rows(found: Outlook) -> str:
    parts = [f"{found.rows:,}"]
    if found.done:
        parts.append(f"{found.done:,} answered already")
    if found.folded:
        parts.append(f"{found.folded:,} take the answer of an equal one")
    if found.bad:
        parts.append(f"{found.bad:,} bad")
    if found.plan.rows != found.rows:
        parts.append(f"{found.plan.rows:,} to run")
    if found.plan.requests != found.plan.rows:
        parts.append(f"{found.plan.requests:,} answers")
    return ", ".join(parts)


def _time(found: Outlook) -> str:
    if found.plan.seconds is not None:
        how = "about" if found.plan.bounded == 0 else "at most about"
        return f"{how} {words.duration(found.plan.seconds)}"
    return "not known: run 'shoal calibrate' with the same model once"


def _prefixes(largest: list[SharedText], width: int) -> Iterator[str]:
    yield f"{'requests':>9} {'tokens':>8} {'saved':>12}  beginning of its own text"
    for prefix in largest:
        room = max(10, width - 34)
        text = prefix.text if len(prefix.text) <= room else prefix.text[: room - 1] + "…"
        yield f"{prefix.requests:>9,} {prefix.tokens:>8,} {prefix.saved:>12,}  {text}"


def _alternatives(found: Outlook) -> Iterator[str]:
    for row in found.alternatives:
        mark = "→" if row.chosen else " "
        tokens = "-" if row.tokens is None else f"{row.tokens:,}"
        how = "" if row.how == "exact" else row.how
        chosen = "this plan" if row.chosen else ""
        yield f"{mark} {row.name:<30} {tokens:>16}  {', '.join(filter(None, (how, chosen)))}".rstrip()


def _bad(found: Outlook, output: Path | None) -> Iterator[str]:
    where = "" if output is None else f", all of them in {output}.quarantine.jsonl"
    yield f"{words.plural(found.bad, 'bad row')}{where}"
    for row in found.bad_rows:
        yield f"  line {row.line}: {row.reason}" + (f" ({row.remedy})" if row.remedy else "")

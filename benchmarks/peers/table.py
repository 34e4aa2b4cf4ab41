"""What the contest found, for people: a section of docs/benchmarks.md, a picture, and the numbers as JSON."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.peers import picture
from benchmarks.peers.record import FAR, Cell, Record
from benchmarks.peers.roster import MODELS, PEERS, SHARES, THRESHOLDS
from shoal.bench.jobs import JOBS

PAGE, NUMBERS, PICTURE = "benchmarks.md", "peers.json", "peers.svg"
BEGIN, END = "<!-- contest: begin -->", "<!-- contest: end -->"
HEAD = (
    "| job | peer | shoal, tokens/s | peer, tokens/s | ratio | least to largest, pairs "
    "| of the best peer | share of the limit |",
    "|---|---|---|---|---|---|---|---|",
)


def publish(record: Record, folder: Path) -> list[Path]:
    """Write page, picture and numbers into ``folder``; the page's other sections stay. Returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    numbers = folder / NUMBERS
    numbers.write_text(json.dumps(json.loads(record.path.read_text()), indent=1) + "\n")
    drawn = picture.save(ordered(record), folder / PICTURE)
    page = folder / PAGE
    page.write_text(between(page.read_text() if page.is_file() else "", section(record, drawn)))
    return [file for file in (page, numbers, drawn) if file is not None]


def between(page: str, text: str) -> str:
    """``page`` with ``text`` between the markers, which are added at its end if they are missing."""
    if BEGIN not in page:
        page = f"{page.rstrip()}\n\n{BEGIN}\n{END}\n".lstrip()
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}\n{text.strip()}\n{END}{rest.partition(END)[2]}"


def section(record: Record, drawn: Path | None) -> str:
    """The tables, and what they were measured with."""
    lines = [_where(record)]
    if drawn is not None:
        lines += ["", f"![how many times as fast as each peer]({drawn.name})"]
    for model in MODELS:
        cells = [cell for cell in ordered(record) if cell.model == model]
        if cells:
            lines += ["", f"### {model}", "", *HEAD, *_rows(cells, record.limits.get(model, {}))]
    lines += ["", "### Measured with", "", *_contestants(ordered(record))]
    return "\n".join(lines)


def ordered(record: Record) -> list[Cell]:
    """By model, job and peer, as the roster has them."""
    names = (f"{model}/{job}/{peer}" for model in MODELS for job in JOBS for peer in PEERS)
    return [record.cells[name] for name in names if name in record.cells]


def _where(record: Record) -> str:
    machine = record.machine
    digests = sorted({cell.key["sources"] for cell in record.cells.values()})
    said = " and ".join(digests)
    disturbed = sum(pair.disturbed for cell in record.cells.values() for pair in cell.pairs)
    subject = "1 pair was" if disturbed == 1 else f"{disturbed} pairs were"
    noise = f" {subject} disturbed every time." if disturbed else ""
    return (
        f"Measured on {machine['processor']} ({machine['instructions']}), {machine['threads']} threads, "
        f"with shoal's sources {said}. Peers that took more than {FAR:g} times as long as the fastest in a "
        f"job got one pair there.{noise}"
    )


def _rows(cells: list[Cell], limits: dict[str, Any]) -> Iterator[str]:
    by_job: dict[str, list[Cell]] = defaultdict(list)
    for cell in cells:
        by_job[cell.job].append(cell)
    for job, contested in by_job.items():
        best = best_of(contested)
        for cell in contested:
            yield "| " + " | ".join(_row(cell, cell is best, limits.get(job))) + " |"


def best_of(cells: Iterable[Cell]) -> Cell | None:
    """The cell of the fastest peer of the same class, None if nobody has figures."""
    rivals = [cell for cell in cells if counts(cell) and not PEERS[cell.peer].tier.get(cell.model)]
    return min(rivals, key=lambda cell: cell.ratios[0], default=None)


def counts(cell: Cell) -> bool:
    return bool(cell.pairs) and not cell.void


def _row(cell: Cell, best: bool, limit: dict[str, Any] | None) -> list[str]:
    head = [f"`{cell.job}`", _peer(cell)]
    if not counts(cell):
        reason = (
            f"void: {cell.void}" if cell.void else f"not run: {cell.failed}" if cell.failed else "not run yet"
        )
        return [*head, "–", "–", "–", reason.replace("|", "/"), "", ""]
    ours, theirs = cell.rates
    median, least, largest = cell.ratios
    return [
        *head,
        f"{ours:,.1f}",
        f"{theirs:,.1f}",
        f"**{median:.2f}x**" if best else f"{median:.2f}x",
        f"{least:.2f} to {largest:.2f}, {_pairs(cell)}",
        _verdict(median, THRESHOLDS[cell.model][cell.job], "x") if best else "",
        _share(cell, ours, limit) if best else "",
    ]


def _reason(cell: Cell) -> str:
    if cell.void:
        return f"void: {cell.void}"
    return f"not run: {cell.failed}" if cell.failed else "not run yet"


def _peer(cell: Cell) -> str:
    tier = PEERS[cell.peer].tier.get(cell.model)
    return f"{cell.peer} ({tier})" if tier else cell.peer


def _pairs(cell: Cell) -> str:
    disturbed = sum(pair.disturbed for pair in cell.pairs)
    short = f" of {cell.wanted}" if len(cell.pairs) < cell.wanted else ""
    return f"{len(cell.pairs)}{short}" + (f" ({disturbed} disturbed)" if disturbed else "")


def _verdict(value: float, threshold: float, unit: str) -> str:
    said = f"{threshold:.0%}" if unit == "%" else f"{threshold:g}{unit}"
    return f"at least {said}: {'reached' if value >= threshold else 'missed'}"


def _share(cell: Cell, rate: float, limit: dict[str, Any] | None) -> str:
    if limit is None:
        return ""
    share = rate * limit["seconds"] / cell.tokens
    return f"{share:.0%} of {cell.tokens / limit['seconds']:,.0f}, {_verdict(share, SHARES[cell.job], '%')}"


def _contestants(cells: list[Cell]) -> Iterator[str]:
    """Versions, settings and the way to cold caches, once for each contestant; pools differ by job."""
    told = {}
    for cell in cells:
        for name, about in (("shoal", cell.ours), (cell.peer, cell.theirs)):
            if about.get("settings") and (name not in told or cell.job != "forest"):
                told.setdefault(name, about)
    for name, about in told.items():
        versions = ", ".join(f"{package} {version}" for package, version in about.get("versions", {}).items())
        head = f"- **{name}**" + (f" ({versions})" if versions else "")
        yield f"{head}: {', '.join(about['settings'])}. Cold by: {about['cold_by']}."

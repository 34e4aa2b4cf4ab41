"""What ``shoal bench`` shows: tables for people, one line of JSON for machines."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import click
import msgspec

from shoal.engine.machine import isa, processor

if TYPE_CHECKING:
    from shoal.bench.limit import Limit
    from shoal.bench.measure import Measured
    from shoal.bench.roofline import Roofline
    from shoal.engine.build import Prepared

BAR = 32
LEAST = 0.0005
"""Share of a run below which a stage is not worth a line."""


def show(found: Measured) -> None:
    """One job: its speed, its limit, and where the time went."""
    for line in (*_head(found), *_limit(found.limit, found), *_stages(found)):
        click.echo(line)


def table(found: list[Measured]) -> None:
    """Several jobs beside each other."""
    click.echo(f"\n{'job':<8} {'tokens/s':>9} {'limit':>9} {'share':>6} {'seconds':>8} {'steps':>6}")
    for one in found:
        limit = f"{one.output_tokens / one.limit.seconds:,.1f}" if one.limit else "-"
        share = "-" if one.share is None else f"{one.share:.0%}"
        rate, seconds = f"{one.rate:,.1f}", f"{one.seconds:.2f}"
        click.echo(f"{one.name:<8} {rate:>9} {limit:>9} {share:>6} {seconds:>8} {one.steps:>6,}")


def _head(found: Measured) -> Iterator[str]:
    runs = f", median of {len(found.runs)} runs" if len(found.runs) > 1 else ""
    what = f"{found.requests:,} requests, {found.output_tokens:,} tokens in {found.seconds:.2f} s"
    rows = f"{found.computed:,} rows computed in {found.steps:,} steps"
    yield ""
    yield f"{found.name}: {what}: {found.rate:,.1f} tokens/s{runs}"
    yield f"  {rows}, {found.cached:,} tokens from the cache, {found.preemptions:,} preempted"


def _limit(limit: Limit | None, found: Measured) -> Iterator[str]:
    if limit is None:
        return
    yield (
        f"  limit {found.output_tokens / limit.seconds:,.1f} tokens/s ({limit.seconds:.2f} s): "
        f"{found.share:.0%} of it reached"
    )
    yield f"    {'':<12} {'seconds':>8} {'GFLOP':>9} {'GFLOP/s':>8}"
    for part in limit.parts:
        work, rate = f"{part.operations / 1e9:,.0f}", f"{part.rate / 1e9:,.1f}"
        yield f"    {part.name:<12} {part.seconds:>8.3f} {work:>9} {rate:>8}  {part.how}"


def _stages(found: Measured) -> Iterator[str]:
    steps = max(1, found.watched_steps)
    yield f"  where the time of a step goes ({steps:,} steps, {found.watched_seconds:.2f} s)"
    yield f"    {'':<22} {'seconds':>8} {'ms a step':>10} {'share':>6}"
    outside = found.watched_seconds - sum(found.stages.values())
    for name, seconds in {**found.stages, "outside of steps": outside}.items():
        share = seconds / found.watched_seconds
        if share >= LEAST:
            each, bar = 1e3 * seconds / steps, "█" * round(BAR * share)
            yield f"    {name:<22} {seconds:>8.3f} {each:>10.3f} {share:>6.1%}  {bar}".rstrip()


def say(found: Iterable[Measured], prepared: Prepared) -> None:
    """Everything, for machines."""
    head = {"bench": "jobs", "engine": prepared.description, "dtype": prepared.dtype}
    click.echo(msgspec.json.encode({**head, **_machine(), "jobs": [_plain(one) for one in found]}))


def _plain(found: Measured) -> dict[str, Any]:
    line: dict[str, Any] = msgspec.to_builtins(found)
    line |= {"tokens_per_second": found.rate, "share": found.share}
    if found.limit:
        line["limit_tokens_per_second"] = found.output_tokens / found.limit.seconds
        for part, plain in zip(found.limit.parts, line["limit"]["parts"]):
            plain["seconds"] = part.seconds
    return line


def roofline(found: Roofline, machine: bool) -> None:
    """Rates by rows, as a table and a picture."""
    if machine:
        click.echo(msgspec.json.encode({"bench": "roofline", **_machine(), "roofline": found}))
        return
    shapes = ", ".join(f"{outputs}x{inputs}" for outputs, inputs in found.shapes)
    click.echo(f"{processor()}, {isa()}, {found.threads} threads")
    click.echo(f"a plain loop reads {found.read / 1e9:.1f} GB/s")
    click.echo(f"torch's products of {shapes}, in GFLOP/s\n")
    click.echo(f"{'rows':>6} " + " ".join(f"{dtype:>9}" for dtype in found.rates))
    best = max(rate for by_rows in found.rates.values() for rate in by_rows.values())
    for rows in next(iter(found.rates.values())):
        rates = [by_rows[rows] for by_rows in found.rates.values()]
        bar = "█" * max(1, round(BAR * max(rates) / best))
        click.echo(f"{rows:>6} " + " ".join(f"{rate / 1e9:>9.1f}" for rate in rates) + f"  {bar}")
    click.echo(
        f"\nA row alone is bound by reading: {found.read / 4e9 * 2:.1f} GFLOP/s at 4 bytes a weight, "
        f"{found.read / 2e9 * 2:.1f} at 2."
    )


def _machine() -> dict[str, str]:
    return {"processor": processor(), "isa": isa()}

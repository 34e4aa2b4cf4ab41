"""Pairs: shoal, the peer, shoal, the peer. Who waits is stopped; a pair beside a stranger is run again."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from benchmarks.peers import machine
from benchmarks.peers.environments import Unavailable
from benchmarks.peers.record import Cell, Pair, Record

RETRIES = 3
"""How often a disturbed pair is run again before it is kept with a mark."""
OURS = "shoal"

Say = Callable[[str], None]
Watch = Callable[[], Any]


class Runner(Protocol):
    """A loaded contestant (``process.Process``)."""

    about: dict[str, Any]

    def run(self, job: Path, out: Path) -> dict[str, Any]: ...

    def stop(self) -> None: ...

    def go_on(self) -> None: ...


class Mismatch(Exception):
    """Somebody produced another number of tokens than was asked for: the comparison is void."""


def _watch() -> Any:
    return machine.watched([os.getpid()])


def turn(
    runner: Runner, name: str, job: Path, outputs: list[int], watch: Watch = _watch
) -> tuple[float, machine.Turn]:
    """One run of a job by a contestant that is stopped before and after it.

    Raises:
        Mismatch: its token counts are not ``outputs``.
        Unavailable: it failed.
        RuntimeError: it is shoal that failed, which is no fault of the peer.
    """
    runner.go_on()
    try:
        with watch() as seen:
            reply = runner.run(job, job.with_suffix(f".{name}.out"))
    except Unavailable as error:
        if name == OURS:
            raise RuntimeError(f"{OURS} failed: {error}") from None
        raise
    finally:
        runner.stop()
    if reply["tokens"] != outputs:
        raise Mismatch(
            f"{name} produced {sum(reply['tokens']):,} tokens for {len(reply['tokens']):,} requests, "
            f"{sum(outputs):,} for {len(outputs):,} were asked for"
        )
    return reply["seconds"], seen


def pair(ours: Runner, theirs: Runner, job: Path, outputs: list[int], watch: Watch = _watch) -> Pair:
    """Both, one after the other; again while a stranger computes beside them, ``RETRIES`` times at most."""
    retries = -1
    disturbed = True
    while disturbed and retries < RETRIES:
        retries += 1
        first, beside_first = turn(ours, OURS, job, outputs, watch)
        second, beside_second = turn(theirs, "peer", job, outputs, watch)
        disturbed = beside_first.disturbed or beside_second.disturbed
    return Pair(first, second, disturbed, retries)


def measure(
    record: Record,
    cell: Cell,
    ours: Runner,
    theirs: Runner,
    job: Path,
    outputs: list[int],
    say: Say,
    watch: Watch = _watch,
) -> None:
    """Pairs until the cell is whole; the record is on disk after each.

    Raises:
        Unavailable: a contestant failed. A mismatch makes the cell void instead.
    """
    cell.ours, cell.theirs, cell.failed = cell.ours | ours.about, cell.theirs | theirs.about, ""
    while not cell.whole:
        try:
            cell.pairs.append(pair(ours, theirs, job, outputs, watch))
        except Mismatch as error:
            cell.void = str(error)
        except Unavailable as error:
            cell.failed = str(error)
            record.save()
            raise
        record.save()
        say(_line(cell))


def _line(cell: Cell) -> str:
    head = f"{cell.model} {cell.job} {cell.peer}"
    if cell.void:
        return f"{head}: void: {cell.void}"
    last = cell.pairs[-1]
    mark = " (disturbed)" if last.disturbed else ""
    rates = f"shoal {cell.tokens / last.ours:,.1f}, {cell.peer} {cell.tokens / last.theirs:,.1f} tokens/s"
    return f"{head} {len(cell.pairs)}/{cell.wanted}: {rates}, ratio {last.ratio:.2f}{mark}"

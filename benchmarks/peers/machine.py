"""What the operating system tells: who belongs to a process, what it has computed, and who else computes."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
TICK = os.sysconf("SC_CLK_TCK")
STRANGER = 0.05
"""Share of all cores that others may take before a turn counts as disturbed: the system itself takes some."""
LEAST = 0.1
"""Seconds of others that are never held against a turn: the clocks of /proc tick in hundredths."""
ABOVE = 2.0
"""How far the load average may be above the number of cores: a contestant has helpers of its own."""


@dataclass(frozen=True)
class Entry:
    """A process: its parent, its state (T is stopped), and seconds that it and its dead children computed."""

    parent: int
    state: str
    seconds: float


def processes() -> dict[int, Entry]:
    found = {}
    for folder in PROC.iterdir():
        if folder.name.isdigit():
            # Who ends meanwhile is nobody's process.
            with contextlib.suppress(OSError):
                found[int(folder.name)] = _entry((folder / "stat").read_text())
    return found


def _entry(stat: str) -> Entry:
    # The name stands in brackets and may hold anything.
    fields = stat.rpartition(")")[2].split()
    return Entry(int(fields[1]), fields[0], sum(map(int, fields[11:15])) / TICK)


def family(root: int, known: dict[int, Entry] | None = None) -> list[int]:
    """``root`` and all below it that live."""
    known = processes() if known is None else known
    found = [root] if root in known else []
    for member in found:
        found += [pid for pid, entry in known.items() if entry.parent == member]
    return found


def stop(root: int) -> None:
    """Stop a family; returns when none of it runs and none is new."""
    _signal_until(root, signal.SIGSTOP, lambda state: state in "TtZX")


def go_on(root: int) -> None:
    """Let a stopped family run again."""
    _signal_until(root, signal.SIGCONT, lambda state: state not in "Tt")


def _signal_until(root: int, number: signal.Signals, done: Callable[[str], bool]) -> None:
    deadline = time.monotonic() + 30
    while True:
        known = processes()
        members = family(root, known)
        left = [pid for pid in members if not done(known[pid].state)]
        if not left:
            return
        if time.monotonic() > deadline:
            raise RuntimeError(f"{len(left)} processes do not take {number.name}")
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        time.sleep(0.01)


def end(root: int) -> None:
    """End a family, stopped or not."""
    for pid in family(root):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@dataclass
class Turn:
    """What a turn took, besides its own seconds.

    Attributes:
        others: seconds that neither the contestant nor the contest computed, stolen ones included.
        allowed: seconds of others that do not matter.
        load: load average of the last minute at its end.
    """

    others: float = 0.0
    allowed: float = LEAST
    load: float = 0.0

    @property
    def disturbed(self) -> bool:
        return self.others > self.allowed or self.load > (os.cpu_count() or 1) + ABOVE


@contextlib.contextmanager
def watched(roots: Iterable[int]) -> Iterator[Turn]:
    """Look who computes beside these families, from /proc/stat and the load average."""
    roots = list(roots)
    turn = Turn()
    busy, own, begin = _busy(), _computed(roots), time.monotonic()
    yield turn
    turn.others = max(0.0, _busy() - busy - (_computed(roots) - own))
    turn.allowed = max(LEAST, STRANGER * (os.cpu_count() or 1) * (time.monotonic() - begin))
    turn.load = os.getloadavg()[0]


def _computed(roots: list[int]) -> float:
    known = processes()
    members = {pid for root in roots for pid in family(root, known)}
    return sum(known[pid].seconds for pid in members)


def _busy() -> float:
    """Seconds of all cores so far, everything but idle and waiting for disks; guests are in user and nice."""
    names = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")
    numbers = (PROC / "stat").read_text().split("\n", 1)[0].split()[1:]
    found = dict(zip(names, map(int, numbers)))
    return sum(value for name, value in found.items() if name not in ("idle", "iowait")) / TICK

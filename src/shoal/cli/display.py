"""What a person sees of a run: a live panel on a terminal, plain lines elsewhere, nothing when quiet."""

from __future__ import annotations

import sys
import time
from collections import deque
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple

import click

from shoal.cli import words
from shoal.cli.words import duration
from shoal.jobs.job import Job, Planned, Status, Summary

if TYPE_CHECKING:
    from rich.live import Live

    from shoal.engine.engine import Engine

PLAIN_SECONDS = 5.0
RATE_SECONDS = 10.0
NARROW = 60
"""Columns below which a table would break every line."""


class Sample(NamedTuple):
    """Counters at one moment: tokens computed, emitted, taken from the cache; rows done."""

    now: float
    computed: int
    emitted: int
    cached: int
    done: int


class Quiet:
    """Says nothing, and is the base of those that do."""

    def __init__(self) -> None:
        self.engine: Engine | None = None
        self._samples: deque[Sample] = deque()
        self._begin: Sample | None = None
        self._preparing: tuple[float, int] | None = None

    def __enter__(self) -> Quiet:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None: ...

    def say(self, text: str) -> None: ...

    def preparing(self, done: int, size: int, rows: int, bad: int, tokens: int) -> None: ...

    def planning(self, done: int, rows: int) -> None: ...

    def measuring(self, what: str, share: float) -> None: ...

    def planned(self, plan: Planned) -> None: ...

    def begin(self, engine: Engine) -> None:
        self.engine = engine

    def loading(self, done: int, size: int) -> None: ...

    def running(self, status: Status, now: float) -> None: ...

    def interrupted(self, job: Job) -> None: ...

    def finished(self, job: Job, summary: Summary) -> None: ...

    def _prepared(self, done: int, size: int, rows: int, bad: int, tokens: int) -> str:
        """What is read so far, how fast, and how long the rest will take."""
        now = time.monotonic()
        begin = self._preparing = self._preparing or (now, done)
        seconds = max(now - begin[0], 1e-9)
        figures = [f"{rows:,} rows", f"{bad:,} bad"]
        if seconds > 1.0 and done > begin[1]:
            left = (size - done) * seconds / (done - begin[1])
            figures += [f"{tokens / seconds / 1e6:.2f} M tokens/s", f"{duration(left)} left"]
        return " · ".join(figures)

    def _take(self, status: Status, now: float) -> Sample:
        counters = self.engine.scheduler.counters if self.engine else None
        sample = (
            Sample(now, counters.computed, counters.emitted, counters.cached, status.done)
            if counters
            else Sample(now, 0, 0, 0, status.done)
        )
        self._samples.append(sample)
        self._begin = self._begin or sample
        while len(self._samples) > 2 and now - self._samples[0].now > RATE_SECONDS:
            self._samples.popleft()
        return sample

    def _figures(self, status: Status, now: float) -> dict[str, str]:
        """The figures of this moment by name, each short."""
        new, old = self._take(status, now), self._samples[0]
        seconds = max(new.now - old.now, 1e-9)
        emitted = new.emitted - old.emitted
        # Rows side by side end in bursts: only all of the time since the start foretells the rest.
        begin = self._begin or new
        rows = (new.done - begin.done) / max(new.now - begin.now, 1e-9)
        prompt = new.cached + new.computed - new.emitted
        left = (status.rows - status.done) / rows if rows > 0 else None
        figures = {
            "rows": f"{status.done:,}/{status.rows:,}",
            "prefill": f"{max(0, new.computed - old.computed - emitted) / seconds:,.0f} tok/s",
            "decode": f"{emitted / seconds:,.0f} tok/s",
            "reused": f"{new.cached / prompt:.0%}" if prompt > 0 else "-",
            "KV": self._kv(),
            "left": "-" if left is None else duration(left),
        }
        if status.failed:
            figures["failed"] = f"{status.failed:,}"
        return figures

    def _kv(self) -> str:
        if self.engine is None:
            return "-"
        ledger = self.engine.memory.ledger
        return f"{1 - ledger.available / max(1, ledger.total):.0%}"


class Lines(Quiet):
    """A line on stderr every few seconds, and the summary at the end."""

    def __init__(self) -> None:
        super().__init__()
        self._last = time.monotonic()

    def say(self, text: str) -> None:
        # Whoever reads this may be gone, or a log's disk full: no reason to end the job.
        with suppress(OSError):
            click.echo(text, err=True)

    def _due(self) -> bool:
        now = time.monotonic()
        if now - self._last < PLAIN_SECONDS:
            return False
        self._last = now
        return True

    def preparing(self, done: int, size: int, rows: int, bad: int, tokens: int) -> None:
        figures = self._prepared(done, size, rows, bad, tokens)
        if self._due():
            self.say(f"preparing {done / max(1, size):.0%}: {figures}")

    def planning(self, done: int, rows: int) -> None:
        if self._due():
            self.say(f"planning {done / max(1, rows):.0%} of {rows:,} rows")

    def measuring(self, what: str, share: float) -> None:
        if self._due():
            self.say(f"measuring steps {share:.0%}: {what}")

    def planned(self, plan: Planned) -> None:
        for line in words.short(plan):
            self.say(line)

    def loading(self, done: int, size: int) -> None:
        if self._due():
            self.say(f"loading {done / max(1, size):.0%} of {size / 2**30:.2f} GiB")

    def running(self, status: Status, now: float) -> None:
        if self._due():
            self.say(" · ".join(f"{name} {value}" for name, value in self._figures(status, now).items()))
        else:
            self._take(status, now)

    def interrupted(self, job: Job) -> None:
        self.say(f"interrupted; everything finished is in {job.output}. The same command goes on from there.")

    def finished(self, job: Job, summary: Summary) -> None:
        for name, value in summary_rows(job, summary):
            self.say(f"{name:<14} {value}")


class Panel(Lines):
    """The same figures, redrawn in place on a terminal."""

    def __init__(self) -> None:
        super().__init__()
        self._live: Live | None = None

    def close(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def say(self, text: str) -> None:
        if self._live is not None:
            self._live.console.print(text, markup=False, highlight=False)
        else:
            super().say(text)

    def _show(self, share: float, *lines: str) -> None:
        from rich.console import Console
        from rich.live import Live
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        if self._live is None:
            console = Console(stderr=True)
            self._live = Live(console=console, refresh_per_second=8, transient=True)
            self._live.start()
        width = max(1, self._live.console.width)
        # A bar ends no line of its own; in a grid it does.
        panel = Table.grid()
        panel.add_row(ProgressBar(total=1.0, completed=share, width=width))
        for line in lines:
            panel.add_row(Text(line, no_wrap=True, overflow="ellipsis"))
        self._live.update(panel)

    def preparing(self, done: int, size: int, rows: int, bad: int, tokens: int) -> None:
        self._show(done / max(1, size), "preparing · " + self._prepared(done, size, rows, bad, tokens))

    def planning(self, done: int, rows: int) -> None:
        self._show(done / max(1, rows), f"planning {rows:,} rows")

    def measuring(self, what: str, share: float) -> None:
        self._show(share, f"measuring what steps cost here, once · {what}")

    def loading(self, done: int, size: int) -> None:
        self._show(done / max(1, size), f"loading {size / 2**30:.2f} GiB of weights")

    def running(self, status: Status, now: float) -> None:
        figures = self._figures(status, now)
        rows, left = figures.pop("rows"), figures.pop("left")
        rates = " · ".join(f"{name} {value}" for name, value in figures.items())
        self._show(status.done / max(1, status.rows), f"{rows} rows · {left} left", rates)

    def interrupted(self, job: Job) -> None:
        self.close()
        super().interrupted(job)

    def finished(self, job: Job, summary: Summary) -> None:
        from rich.console import Console
        from rich.table import Table

        self.close()
        console = Console(stderr=True)
        if console.width < NARROW:
            super().finished(job, summary)
            return
        table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
        for name, value in summary_rows(job, summary):
            table.add_row(name, value)
        console.print(table, highlight=False)


def watcher(quiet: bool) -> Quiet:
    """The display that fits where stderr goes."""
    if quiet or sys.stderr is None:
        return Quiet()
    return Panel() if sys.stderr.isatty() else Lines()


def summary_rows(job: Job, summary: Summary) -> list[tuple[str, str]]:
    """The books of a finished job for people."""
    per_second = (summary.prompt_tokens + summary.answer_tokens) / summary.seconds if summary.seconds else 0
    saved = summary.cached_tokens
    sessions = f" in {summary.sessions} sessions" if summary.sessions > 1 else ""
    rows = [
        ("rows", f"{summary.rows:,}"),
        ("answered", f"{summary.answered:,}"),
        ("failed", f"{summary.failed:,}"),
        ("quarantined", f"{summary.quarantined:,}" + bad_place(job, summary)),
        (
            "folded",
            f"{summary.folded:,} rows took the answer of an equal one ({summary.folded_tokens:,} tokens)",
        ),
        ("tokens", f"{summary.prompt_tokens:,} prompt, {summary.answer_tokens:,} answer"),
        (
            "sharing",
            f"{saved:,} prompt tokens taken from the cache, {summary.computed_tokens:,} tokens computed",
        ),
        ("time", f"{duration(summary.seconds)}{sessions}, {per_second:,.0f} tokens/s"),
        *(words.outcome_rows(summary.outcome, summary.sessions) if summary.outcome else []),
        ("results", str(job.output)),
    ]
    if job.files.report.exists():
        rows.append(("report", str(job.files.report)))
    if summary.cut:
        rows.insert(2, ("cut", f"{summary.cut:,} answers ended at max_tokens"))
    return [row for row in rows if row[0] not in ("failed", "quarantined", "folded") or row[1][0] != "0"]


def bad_place(job: Job, summary: Summary) -> str:
    return f", see {job.files.quarantine}" if summary.quarantined else ""

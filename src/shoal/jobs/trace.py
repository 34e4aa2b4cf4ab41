"""What a run leaves behind for its report: bins of time, distributions, the slowest rows, savings a group.

Everything here is bounded, whatever the length of the run, and one value: ``Trace``. It is kept in a small
file beside the output while the job lasts, so that the report of a job tells of all its sessions.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import msgspec

from shoal.jobs.files import open_file, refused, remove, write_all

VERSION = 1
MOST_BINS = 2000
FIRST_SPAN = 0.005
"""Seconds that a bin lasts at least, until there are too many."""
MOST_GROUPS = 4096
MOST_ROWS = 20
"""Slowest and failed rows kept."""
MOST_REASONS = 50
SHORTEST = 80
"""Characters of an id that are kept."""


class Bins(msgspec.Struct):
    """Columns over stretches of time, each of which begins where the one before ended, at step borders.

    Times count from the first step and leave out what lies between two sessions.

    Attributes:
        seconds: length of each.
        steps, prompt, generated, emitted: steps; rows computed of prompts and of answers; tokens emitted.
        taken: prompt tokens taken from the cache, those found again after a preemption included.
        preemptions, lost: sequences that had to yield; tokens given up so, less those found again later.
        held, cached, free: page-seconds in each state. running, waiting: sequence-seconds.
        fullest: most pages held at once.
    """

    seconds: list[float] = []
    steps: list[int] = []
    prompt: list[int] = []
    generated: list[int] = []
    emitted: list[int] = []
    taken: list[int] = []
    preemptions: list[int] = []
    lost: list[int] = []
    held: list[float] = []
    cached: list[float] = []
    free: list[float] = []
    running: list[float] = []
    waiting: list[float] = []
    fullest: list[int] = []

    def __len__(self) -> int:
        return len(self.seconds)

    def starts(self) -> list[float]:
        """When each began; one more entry than bins, the last being the end."""
        return list(accumulate(self.seconds, initial=0.0))

    def merged(self, most: int) -> Bins:
        """The same time in at most ``most`` bins: neighbours are added up, so every total stays."""
        size = -(-len(self) // most)
        return self if size <= 1 else self.joined([*range(0, len(self), size), len(self)])

    def joined(self, borders: list[int]) -> Bins:
        """One bin for each stretch of bins from one of these ascending numbers up to the next."""

        def column(name: str) -> list[float]:
            add: Callable[[list[float]], float] = max if name == "fullest" else sum
            values = getattr(self, name)
            return [add(values[start:end]) for start, end in pairwise(borders)]

        columns: dict[str, Any] = {name: column(name) for name in self.__struct_fields__}
        return Bins(**columns)


class Histogram(msgspec.Struct):
    """How often which value occurred, in bins of constant relative width.

    A value lies in the bin of its first ``SHARPNESS`` binary fractions: whole numbers below 128 have a bin
    each, all others are known to 1.6%.

    Attributes:
        counts: bin number -> values in it.
        count, total, low, high: of all values, exact; low and high mean nothing while count is 0.
    """

    counts: dict[int, int] = {}
    count: int = 0
    total: float = 0.0
    low: float = math.inf
    high: float = 0.0

    def add(self, value: float) -> None:
        """Take in one value; one below zero counts as zero."""
        place = ZERO
        if value > 0:
            mantissa, exponent = math.frexp(value)
            place = (exponent << SHARPNESS) + int(mantissa * WIDTH)
        else:
            value = 0.0
        self.counts[place] = self.counts.get(place, 0) + 1
        self.count += 1
        self.total += value
        if value < self.low:
            self.low = value
        if value > self.high:
            self.high = value

    @property
    def mean(self) -> float:
        return self.total / self.count if self.count else 0.0

    def bins(self) -> list[tuple[float, float, int]]:
        """(from, to, values) of each bin that holds any, ascending; cut to what really occurred."""
        found = []
        for place in sorted(self.counts):
            low, high = _limits(place)
            found.append((max(low, min(self.low, high)), min(high, max(self.high, low)), self.counts[place]))
        return found

    def quantile(self, share: float) -> float:
        """A value that ``share`` of all values do not exceed, to the sharpness of the bins."""
        seen, wanted = 0, share * self.count
        for place in sorted(self.counts):
            seen += self.counts[place]
            if seen >= wanted:
                return min(self.high, max(self.low, _limits(place)[0]))
        return self.high if self.count else 0.0


SHARPNESS = 6
WIDTH = 2 << SHARPNESS
ZERO = -(1 << 30)
"""The bin of the value 0."""


def apart(value: float) -> int:
    """Whole numbers about ``value`` that lie in one bin."""
    return max(1, int(math.ldexp(1.0, math.frexp(value)[1])) // WIDTH)


def _limits(place: int) -> tuple[float, float]:
    if place == ZERO:
        return 0.0, 0.0
    # A mantissa lies in [1/2, 1), so its number lies in [WIDTH / 2, WIDTH) and the exponent's is one short.
    exponent, number = (place >> SHARPNESS) - 1, (place & (WIDTH // 2 - 1)) + WIDTH // 2
    return math.ldexp(number / WIDTH, exponent), math.ldexp((number + 1) / WIDTH, exponent)


class SlowRow(msgspec.Struct):
    """One row and where its time went, in seconds: until it was admitted, until its first token, until its
    end. Of a row with several answers these are of the one that ended last; tokens are of all."""

    id: str
    line: int
    latency: float
    queue: float
    prefill: float
    decode: float
    prompt: int
    answer: int
    cached: int
    answers: int = 1
    preemptions: int = 0
    lost: int = 0


class FailedRow(msgspec.Struct):
    """A row that could not be answered."""

    id: str
    line: int
    reason: str
    remedy: str


class Group(msgspec.Struct, array_like=True):
    """A prefix that a plan knew, and what sharing it saved.

    Attributes:
        start, tokens: where its own stretch begins, and where it ends.
        members: most requests that a plan counted with it; ``requests``: those that ended.
        saved: tokens of its stretch that these took from the cache.
        line: input line of one of its rows, whose prompt shows the text.
    """

    start: int
    tokens: int
    members: int
    line: int
    requests: int = 0
    saved: int = 0


class Savings(msgspec.Struct):
    """Prompt tokens taken from the cache: by planned prefix, and beyond any.

    groups: by the digest of the prefix, because every session of a job plans anew and numbers as it likes.
    others, others_saved: groups no longer kept one by one, the least saving ones, and what they saved.
    """

    groups: dict[int, Group] = {}
    others: int = 0
    others_saved: int = 0
    unplanned: int = 0

    def thin(self) -> None:
        """Keep the half that saved most one by one."""
        ranked = sorted(self.groups, key=lambda digest: self.groups[digest].saved, reverse=True)
        for digest in ranked[MOST_GROUPS // 2 :]:
            self.others += 1
            self.others_saved += self.groups.pop(digest).saved


class Session(msgspec.Struct):
    """One process that ran rows.

    Attributes:
        start: seconds on the axis of the bins. began: Unix time of its first step.
        pages, page_size: of its KV pool.
        seconds: from its first step to its last, as far as it was recorded.
        prompt, generated: rows that it computed, of prompts and of answers; emitted: tokens of answers.
        lost: of these rows, computed again after somebody had to yield.
    """

    start: float
    began: float
    pages: int
    page_size: int
    seconds: float = 0.0
    prompt: int = 0
    generated: int = 0
    emitted: int = 0
    lost: int = 0


class Trace(msgspec.Struct):
    """Everything that was recorded of a job.

    Attributes:
        mark: of the job; a trace with another one is not this job's.
        phases: seconds spent on what comes before the first step, by name, over all sessions.
        settings: those of the latest session, by heading: (name, value, what it means).
        span: least length of a bin, in seconds.
        latency, first_token, queue: seconds from handing a row to the engine. prompt, answer: tokens.
        waited, prefilled, decoded: seconds of all answered rows together in each part of their way.
        rows, failed, preempted: rows that ended; of these failed ones, and ones that had to yield.
    """

    version: int
    mark: str
    phases: dict[str, float] = {}
    settings: dict[str, list[tuple[str, str, str]]] = {}
    sessions: list[Session] = []
    bins: Bins = msgspec.field(default_factory=Bins)
    span: float = FIRST_SPAN
    latency: Histogram = msgspec.field(default_factory=Histogram)
    first_token: Histogram = msgspec.field(default_factory=Histogram)
    queue: Histogram = msgspec.field(default_factory=Histogram)
    prompt: Histogram = msgspec.field(default_factory=Histogram)
    answer: Histogram = msgspec.field(default_factory=Histogram)
    waited: float = 0.0
    prefilled: float = 0.0
    decoded: float = 0.0
    rows: int = 0
    failed: int = 0
    preempted: int = 0
    slowest: list[SlowRow] = []
    failures: list[FailedRow] = []
    reasons: dict[str, int] = {}
    savings: Savings = msgspec.field(default_factory=Savings)

    @property
    def seconds(self) -> float:
        """Time in which the engine ran, over all sessions."""
        return math.fsum(self.bins.seconds)

    def thin(self) -> None:
        """Half as many bins, and longer ones from now on."""
        self.bins = self.bins.merged(MOST_BINS // 2)
        self.span = max(2 * self.span, self.seconds / len(self.bins))


def load(path: Path, mark: str) -> Trace:
    """What earlier sessions of this job left; a new one where nothing can be read, or another job left it.

    A trace tells no row's fate, so a damaged one costs a part of the report and nothing else.
    """
    try:
        trace = msgspec.msgpack.decode(path.read_bytes(), type=Trace)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return Trace(VERSION, mark)
    return trace if (trace.version, trace.mark) == (VERSION, mark) else Trace(VERSION, mark)


def save(trace: Trace, path: Path) -> None:
    """Replace the file. Killed at any moment, it is either the old or the new one.

    Raises:
        OperatorError: it cannot be written.
    """
    replace_file(path, msgspec.msgpack.encode(trace))


def discard(path: Path) -> None:
    """Delete the file, and what a death while it was written left beside it."""
    remove(path)
    remove(_beside(path))


def _beside(path: Path) -> Path:
    return path.with_name(path.name + ".new")


def replace_file(path: Path, data: bytes) -> None:
    """Write beside, then rename.

    Raises:
        OperatorError: it cannot be written; the old file stays.
    """
    beside = _beside(path)
    descriptor = open_file(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
    try:
        write_all(descriptor, data, beside)
        os.replace(beside, path)
    except OSError as error:
        remove(beside)
        raise refused(error, path) from None
    except BaseException:
        remove(beside)
        raise
    finally:
        os.close(descriptor)

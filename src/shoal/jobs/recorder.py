"""Takes note of a run while it goes on: what ``OUT.report.html`` tells afterwards."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING

from shoal.core.errors import ShoalError
from shoal.core.request import Finished, Ids, SharedPrefix
from shoal.jobs import trace
from shoal.jobs.settings import settings_of
from shoal.jobs.trace import FailedRow, Group, Session, SlowRow, Trace

if TYPE_CHECKING:
    from shoal.engine.engine import Engine

REASON = 300
"""Characters kept of why a row failed."""


class _Meter:
    """Adds up one session's steps. What a step costs here is a few additions: counters are read only when a
    bin is full."""

    def __init__(self, engine: Engine, note: Trace, now: float, wall: float) -> None:
        self._scheduler = engine.scheduler
        self._gauges = engine.scheduler.gauges
        self._pages = engine.memory.ledger.total
        self._trace = note
        self._session = Session(note.seconds, wall, self._pages, engine.executor.page_size)
        note.sessions.append(self._session)
        self._began = self._opened = self._last = now
        self._due = now + note.span
        self._seen = self._counted()
        self._clear()

    def _clear(self) -> None:
        self._held = self._cached = self._running = self._waiting = 0.0
        self._fullest = 0

    def step(self, now: float) -> None:
        seconds = now - self._last
        self._last = now
        gauges = self._gauges
        held = gauges.held
        self._held += held * seconds
        self._cached += gauges.cached * seconds
        self._running += gauges.running * seconds
        self._waiting += gauges.waiting * seconds
        if held > self._fullest:
            self._fullest = held
        if now >= self._due:
            self.close()

    def _counted(self) -> tuple[int, ...]:
        now = self._scheduler.counters
        prompt = now.computed - now.generated
        return now.steps, prompt, now.generated, now.emitted, now.cached, now.preemptions, now.lost

    def close(self) -> None:
        """The open bin ends with the last step."""
        now, counted = self._last, self._counted()
        if counted == self._seen:
            return
        bins, seconds = self._trace.bins, now - self._opened
        columns = (
            *(bins.steps, bins.prompt, bins.generated, bins.emitted),
            *(bins.taken, bins.preemptions, bins.lost),
        )
        for column, new, old in zip(columns, counted, self._seen):
            column.append(new - old)
        bins.seconds.append(seconds)
        bins.held.append(self._held)
        bins.cached.append(self._cached)
        bins.free.append(max(0.0, self._pages * seconds - self._held - self._cached))
        bins.running.append(self._running)
        bins.waiting.append(self._waiting)
        bins.fullest.append(self._fullest)
        self._seen, self._opened = counted, now
        session, counters = self._session, self._scheduler.counters
        session.seconds, session.emitted, session.lost = now - self._began, counters.emitted, counters.lost
        session.prompt, session.generated = counters.computed - counters.generated, counters.generated
        self._clear()
        if len(bins) >= trace.MOST_BINS:
            self._trace.thin()
        self._due = now + self._trace.span


class Recorder:
    """Keeps a ``Trace`` up to date. It decides nothing; a job runs the same without it.

    How a runner uses it: construct it once the journal knows its job, ``phase`` for whatever takes time
    before the first step, ``begin`` when the engine is there, ``step`` after each engine step, ``row`` for
    each row whose answers are complete (not for those that were folded into it), ``save`` about once a
    second and when it stops. Once the report is written, ``remove`` the file.

    Args:
        path: ``JobFiles.trace``; what earlier sessions of the job left there is gone on from.
        mark: what only this job has, such as ``job_mark(journal.identity)``.
    """

    def __init__(self, path: Path, mark: str) -> None:
        self.path = path
        self.trace = trace.load(path, mark)
        self._slowest = [(row.latency, -i, row) for i, row in enumerate(self.trace.slowest)]
        heapq.heapify(self._slowest)
        self._meter: _Meter | None = None
        self._groups: dict[int, Group] = {}

    # Time

    def phase(self, name: str, seconds: float) -> None:
        """``seconds`` were spent on ``name``, such as ``"loading weights"``."""
        phases = self.trace.phases
        phases[name] = phases.get(name, 0.0) + seconds

    def begin(self, engine: Engine, now: float, wall: float, choices: Sequence[str] = ()) -> None:
        """The first step comes next.

        Args:
            now: on the clock of ``step``; ``wall``: Unix time.
            choices: what was chosen when the engine was prepared, and why.
        """
        self._meter = _Meter(engine, self.trace, now, wall)
        self.trace.settings = settings_of(engine, choices)

    def step(self, now: float) -> None:
        """A step of the engine ended at ``now``."""
        assert self._meter is not None, "a step before begin"
        self._meter.step(now)

    # Rows

    def row(
        self, line: int, identifier: str, answers: Sequence[Finished], error: ShoalError | None = None
    ) -> None:
        """A row ended. ``answers``: those of its sequences that the engine took in, in any order."""
        note = self.trace
        note.rows += 1
        preemptions = 0
        for answer in answers:
            self._save_for(answer, line)
            preemptions += answer.preemptions
        if preemptions:
            note.preempted += 1
        if error is not None:
            self._fail(line, identifier, error)
        elif answers:
            self._time(line, identifier, answers, preemptions)

    def _time(self, line: int, identifier: str, answers: Sequence[Finished], preemptions: int) -> None:
        """How long an answered row took, and where."""
        note, last = self.trace, answers[0]
        first, tokens, prompt = last.first_token, len(last.tokens), len(last.request.prompt)
        for answer in answers[1:]:
            first = min(first, answer.first_token)
            tokens += len(answer.tokens)
            if answer.ended > last.ended:
                last = answer
        arrived, admitted, began, ended = last.arrived, last.admitted, last.first_token, last.ended
        latency = ended - arrived
        note.latency.add(latency)
        note.queue.add(admitted - arrived)
        note.first_token.add(first - arrived)
        note.prompt.add(prompt)
        note.answer.add(tokens)
        note.waited += admitted - arrived
        note.prefilled += began - admitted
        note.decoded += ended - began
        if len(self._slowest) < trace.MOST_ROWS or latency > self._slowest[0][0]:
            self._keep(
                SlowRow(
                    id=identifier[: trace.SHORTEST],
                    line=line,
                    latency=latency,
                    queue=admitted - arrived,
                    prefill=began - admitted,
                    decode=ended - began,
                    prompt=prompt,
                    answer=tokens,
                    cached=last.cached,
                    answers=len(answers),
                    preemptions=preemptions,
                    lost=sum(answer.lost for answer in answers),
                )
            )

    def _keep(self, row: SlowRow) -> None:
        entry = (row.latency, -self.trace.rows, row)
        if len(self._slowest) < trace.MOST_ROWS:
            heapq.heappush(self._slowest, entry)
        else:
            heapq.heapreplace(self._slowest, entry)

    def _fail(self, line: int, identifier: str, error: ShoalError) -> None:
        note = self.trace
        note.failed += 1
        what = error.what[:REASON]
        if len(note.failures) < trace.MOST_ROWS:
            note.failures.append(FailedRow(identifier[: trace.SHORTEST], line, what, error.remedy[:REASON]))
        if what not in note.reasons and len(note.reasons) >= trace.MOST_REASONS:
            what = "other reasons"
        note.reasons[what] = note.reasons.get(what, 0) + 1

    def _save_for(self, answer: Finished, line: int) -> None:
        """What came from the cache goes to the planned prefixes that hold it, each its own stretch."""
        start, cached = 0, answer.cached
        for prefix in answer.request.path:
            group = self._groups.get(prefix.node) or self._group(prefix, start, answer.request.prompt, line)
            group.requests += 1
            if cached > start:
                group.saved += min(cached, prefix.tokens) - start
            start = prefix.tokens
        if cached > start:
            self.trace.savings.unplanned += cached - start

    def _group(self, prefix: SharedPrefix, start: int, prompt: Ids, line: int) -> Group:
        """The group of a prefix that this session has not met yet, or has forgotten."""
        savings = self.trace.savings
        if len(savings.groups) >= trace.MOST_GROUPS:
            savings.thin()
            # Those left out must not be added to any more.
            self._groups.clear()
        digest = blake2b(prompt[: prefix.tokens].tobytes(), digest_size=7).digest()
        fresh = Group(start, prefix.tokens, prefix.members, line)
        group = savings.groups.setdefault(int.from_bytes(digest), fresh)
        group.members = max(group.members, prefix.members)
        self._groups[prefix.node] = group
        return group

    # The file

    def save(self, *, last: bool = False) -> None:
        """Write the file. The bin that is open goes in with the next one, unless this was the ``last``.

        Raises:
            OperatorError: it cannot be written.
        """
        if last and self._meter is not None:
            self._meter.close()
        self.trace.slowest = [row for _, _, row in sorted(self._slowest, reverse=True)]
        trace.save(self.trace, self.path)

    def remove(self) -> None:
        """Delete the file: the report has it all."""
        trace.discard(self.path)

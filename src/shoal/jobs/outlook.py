"""What ``shoal plan`` says of a job: its plan, what other policies would compute, and what its rows share."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from shoal.core.errors import OperatorError
from shoal.engine.build import Prepared
from shoal.engine.costs import NULL_COST, Costed
from shoal.jobs.alternatives import Alternative, Alternatives
from shoal.jobs.course import Course
from shoal.jobs.ending import ANSWERED, SOME_FAILED
from shoal.jobs.job import Job, Planned, Stopping, Watcher
from shoal.jobs.journal import Journal
from shoal.jobs.opening import open_rows
from shoal.jobs.plan import Planner
from shoal.jobs.session import Session
from shoal.jobs.spool import NOBODY, Spool

if TYPE_CHECKING:
    from shoal.engine.engine import Engine

MOST_GROUPS = 5
MOST_BAD = 3
EXCERPT = 60
"""Tokens of a prefix that are shown."""


class SharedText(msgspec.Struct, kw_only=True):
    """A shared prefix. tokens: from the start of the prompt; own: without what it shares with wider ones;
    saved: prompt tokens not computed because of it; text: how its own part begins, on one line."""

    requests: int
    tokens: int
    own: int
    saved: int
    text: str


class BadRow(msgspec.Struct):
    """A row in quarantine."""

    line: int
    reason: str = ""
    remedy: str = ""


class Outlook(msgspec.Struct, kw_only=True):
    """Everything that ``shoal plan`` shows.

    Attributes:
        input, model: as they were named; engine: how it would be built, in one line.
        rows, bad, folded, done: of the file; ``done`` have their answer already.
        plan: of the rows that are left to run.
        token_bytes: KV memory of a token, 0 for the null model.
        alternatives: what other ways would compute of the same rows.
        largest: the shared prefixes that save most.
        bad_rows: the first ones.
        measured: whether steps were measured here, so that seconds can be foretold.
    """

    input: str
    model: str
    engine: str
    rows: int
    bad: int
    folded: int
    done: int
    plan: Planned
    token_bytes: int
    alternatives: list[Alternative]
    largest: list[SharedText]
    bad_rows: list[BadRow]
    measured: bool

    @property
    def exit_code(self) -> int:
        return SOME_FAILED if self.bad else ANSWERED


def plan_job(
    job: Job,
    planner: Planner,
    start: Callable[[Prepared], Engine],
    watcher: Watcher,
    stopping: Stopping = lambda: False,
) -> Outlook | None:
    """Prepare the rows of ``job`` as ``run_job`` does, leave them for it, and plan what is left to run.

    Args:
        start: loads the weights; called only if steps must be measured, for a job that is worth it.
        stopping: asked often.

    Returns:
        None if the job is finished.

    Raises:
        OperatorError: the job cannot be started or go on; names file and remedy.
        Interrupted: asked to stop; what is prepared stays.
    """
    source = open_rows(job)
    try:
        journal = Journal(job.files)
        try:
            session = _Planning(job, journal, source, planner.prepared, watcher, stopping)
            return session.outlook(planner, start)
        finally:
            journal.close()
    finally:
        source.close()


class _Planning(Session):
    """A session that looks and runs nothing."""

    def outlook(self, planner: Planner, start: Callable[[Prepared], Engine]) -> Outlook | None:
        self._take_up()
        if self._journal.last("done") is not None:
            return None
        spool = self._prepared()
        try:
            return self._look(planner, start, spool)
        finally:
            spool.close()

    def _look(self, planner: Planner, start: Callable[[Prepared], Engine], spool: Spool) -> Outlook:
        done = self._scan(spool)
        others = Alternatives(planner, self._stopping)
        course, planned = planner.plan(spool, done, self._watcher, self._stopping, others.look)
        costed = planner.cost(start, planned, self._watcher, self._stopping)
        # Memory does not depend on what steps cost.
        priced = Costed(costed.prepared, costed.cost or NULL_COST)
        planner.predict(priced, spool, course, planned, self._stopping)
        if costed.cost is None:
            planned.seconds = None
        event = self._journal.last("prepared") or {"rows": 0, "bad": 0, "folded": 0}
        architecture = planner.prepared.architecture
        item = 2 if planner.prepared.dtype == "bfloat16" else 4
        return Outlook(
            input=str(self._job.input),
            model=self._model.name,
            engine=planner.prepared.description,
            rows=event["rows"],
            bad=event["bad"],
            folded=event["folded"],
            done=int(np.count_nonzero(done & (spool.leader != NOBODY))),
            plan=planned,
            token_bytes=architecture.kv_bytes_per_token(item) if architecture else 0,
            alternatives=others.table(costed, spool, done, planned, self._watcher),
            largest=self._largest(course, spool),
            bad_rows=self._bad_rows(),
            measured=costed.cost is not None,
        )

    def _largest(self, course: Course, spool: Spool) -> list[SharedText]:
        found = [(group.saved, rows, plan, group) for rows, plan in course.windows for group in plan.largest]
        found.sort(key=lambda entry: entry[0], reverse=True)
        shown = []
        for saved, rows, plan, group in found[:MOST_GROUPS]:
            above = int(plan.above[group.node - plan.first_node]) if plan.nested else -1
            start = int(plan.depth[above]) if above >= 0 else 0
            ids = np.frombuffer(spool.read(int(rows[group.example])).ids, dtype=np.int32)
            text = self._model.tokenizer.decode(ids[start : min(group.tokens, start + EXCERPT)], False)
            shown.append(
                SharedText(
                    requests=group.members,
                    tokens=group.tokens,
                    own=group.tokens - start,
                    saved=saved,
                    text=_readable(text),
                )
            )
        return shown

    def _bad_rows(self) -> list[BadRow]:
        try:
            with self._files.quarantine.open("rb") as file:
                return [msgspec.json.decode(line, type=BadRow) for line in islice(file, MOST_BAD)]
        except FileNotFoundError:
            return []
        except (OSError, msgspec.DecodeError) as error:
            raise OperatorError(str(error), where=str(self._files.quarantine)) from None


def _readable(text: str) -> str:
    """On one line, and nothing that a terminal would obey. A stretch may begin or end within a character."""
    words = " ".join(text.strip("\ufffd").split())
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in words)

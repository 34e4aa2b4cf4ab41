"""A job from start to end, however many processes it takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import numpy.typing as npt

from shoal.core.errors import InternalError, OperatorError
from shoal.engine.build import Prepared
from shoal.jobs.answers import AnswerWriter, job_mark
from shoal.jobs.course import Course
from shoal.jobs.crew import Crew
from shoal.jobs.ending import Interrupted
from shoal.jobs.files import remove
from shoal.jobs.job import Job, Status, Stopping, Summary, Watcher
from shoal.jobs.journal import Journal
from shoal.jobs.opening import open_rows
from shoal.jobs.plan import Planner
from shoal.jobs.recorder import Recorder
from shoal.jobs.report import write_report
from shoal.jobs.results import Results, in_input_order, scan
from shoal.jobs.session import Session
from shoal.jobs.spool import NOBODY, Spool
from shoal.jobs.summary import Books

if TYPE_CHECKING:
    from shoal.engine.engine import Engine


PROGRESS_SECONDS = 1.0
SHOW_SECONDS = 0.1


def run_job(
    job: Job,
    prepared: Prepared,
    start: Callable[[Prepared], Engine],
    watcher: Watcher,
    stopping: Stopping = lambda: False,
    clock: Callable[[], float] = time.perf_counter,
    planner: Planner | None = None,
) -> Summary:
    """Do everything of ``job`` that is left to do.

    Args:
        prepared: the engine that is to run, so far without weights.
        start: loads them; called once, when the rows are planned, and only if one is left to run.
        stopping: asked between steps.
        clock: seconds, never running backwards.
        planner: the engine's own, with what the caller knows of the answers; None takes a plain one.

    Raises:
        OperatorError: the job cannot be started or go on; names file and remedy. What is done stays done.
        Interrupted: asked to stop; the same call goes on from there.
    """
    source = open_rows(job)
    try:
        journal = Journal(job.files)
        try:
            run = _Run(job, journal, source, prepared, watcher, stopping)
            return run.to_end(planner or Planner(prepared), start, clock)
        finally:
            journal.close()
    finally:
        source.close()


class _Run(Session):
    """A session that answers rows until none is left."""

    def to_end(
        self, planner: Planner, start: Callable[[Prepared], Engine], clock: Callable[[], float]
    ) -> Summary:
        self._clock = clock
        self._choices: tuple[str, ...] = ()
        self._take_up()
        finished = self._journal.last("done")
        if finished is not None:
            return self._finished_before(finished)
        started = self._clock()
        spool = self._prepared()
        try:
            self._journal.write("session", started=time.time(), durable=False)
            self._recorder = Recorder(self._files.trace, job_mark(self._journal.identity))
            self._recorder.phase("preparing rows", self._clock() - started)
            done = self._scan(spool)
            if np.any((spool.leader != NOBODY) & ~done):
                course, engine = self._plan(planner, start, spool, done)
                self._answer(engine, course, spool, done, started)
            return self._finish(spool)
        finally:
            spool.close()

    def _plan(
        self,
        planner: Planner,
        start: Callable[[Prepared], Engine],
        spool: Spool,
        done: npt.NDArray[np.bool_],
    ) -> tuple[Course, Engine]:
        """The rows in the order in which they run, and the engine that runs them. It is loaded before the
        plan is complete only if steps must be measured on it."""
        with self._timed("planning"):
            course, planned = planner.plan(spool, done, self._watcher, self._stopping)
        try:
            with self._timed("measuring steps, where that was not done before"):
                costed = planner.cost(start, planned, self._watcher, self._stopping, about_to_run=True)
            if costed.cost is not None:
                with self._timed("planning"):
                    planner.predict(costed, spool, course, planned, self._stopping)
            self._journal.write("plan", durable=False, **msgspec.to_builtins(planned))
            self._watcher.planned(planned)
            with self._timed("loading the model"):
                engine = costed.engine or start(costed.prepared)
        except OperatorError:
            self._forget()
            raise
        self._choices = costed.prepared.choices
        self._watcher.begin(engine)
        return course, engine

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        """What is done inside is a phase of the run, by this name."""
        began = self._clock()
        yield
        self._recorder.phase(name, self._clock() - began)

    def _answer(
        self,
        engine: Engine,
        course: Course,
        spool: Spool,
        done: npt.NDArray[np.bool_],
        started: float,
    ) -> None:
        rows = int(np.count_nonzero(spool.leader != NOBODY))
        status = Status(rows=rows, done=int(np.count_nonzero(done)))
        created = self._journal.identity["created"]
        results = Results(self._files)
        writer = AnswerWriter(self._model, job_mark(self._journal.identity), created)
        crew = Crew(
            *(engine, self._model.end_ids, spool, course, done, results, writer),
            *(self._job.window, status, self._recorder),
        )
        try:
            self._loop(crew, engine, results, status, started)
        finally:
            results.close()

    def _loop(self, crew: Crew, engine: Engine, results: Results, status: Status, started: float) -> None:
        shown = recorded = begun = self._clock()
        self._recorder.begin(engine, begun, time.time(), self._choices)
        while True:
            now = self._clock()
            crew.fill(now)
            if crew.finished:
                break
            if crew.in_flight:
                self._step(crew, engine, now)
            now = self._clock()
            self._recorder.step(now)
            if results.due(now):
                results.sync(now)
            if now - recorded >= PROGRESS_SECONDS:
                recorded = now
                self._record(status, engine, now - started, now - begun)
                self._recorder.save()
            if now - shown >= SHOW_SECONDS:
                shown = now
                self._watcher.running(status, now)
            if self._stopping():
                results.sync(now)
                self._record(status, engine, now - started, now - begun)
                self._recorder.save(last=True)
                self._journal.write("interrupted", done=status.done)
                raise Interrupted
        now = self._clock()
        results.sync(now)
        self._record(status, engine, now - started, now - begun)
        self._recorder.save(last=True)
        self._watcher.running(status, now)

    def _step(self, crew: Crew, engine: Engine, now: float) -> None:
        if engine.idle:
            raise InternalError(f"the engine lost {crew.in_flight} sequences", where="engine")
        for finished in engine.step(now).finished:
            crew.take(finished)

    def _record(self, status: Status, engine: Engine, seconds: float, running: float) -> None:
        counters = engine.scheduler.counters
        self._journal.write(
            "progress",
            durable=False,
            done=status.done,
            computed=counters.computed,
            prompt=counters.computed - counters.generated,
            preemptions=counters.preemptions,
            lost=counters.lost,
            seconds=round(seconds, 3),
            running=round(running, 3),
        )

    def _finish(self, spool: Spool) -> Summary:
        if not self._files.output.exists():
            Results(self._files).close()
        if self._job.ordered:
            in_input_order(self._files)
        prepared = self._journal.last("prepared") or {"rows": 0, "bad": 0}
        books = Books(rows=prepared["rows"], quarantined=prepared["bad"])
        scan(self._files, books.take)
        summary = books.summary(self._journal.events)
        if summary.answered + summary.failed + summary.quarantined != summary.rows:
            raise InternalError(
                f"{summary.rows} rows, but {summary.answered} answered, {summary.failed} failed and "
                f"{summary.quarantined} quarantined",
                where=str(self._files.output),
                remedy="report this with the journal",
            )
        self._report(spool, summary)
        self._journal.write("done", summary=books.plain(summary))
        self._recorder.remove()
        remove(self._files.spool)
        remove(self._files.sorted)
        return summary

    def _report(self, spool: Spool, summary: Summary) -> None:
        """A report that cannot be written is no reason to fail: every answer is there."""
        try:
            write_report(self._job, self._journal, self._model, spool, summary, self._recorder.trace)
        except OperatorError as error:
            self._watcher.say(f"no report: {error}")
        except Exception as error:
            self._watcher.say(f"no report, by a fault of shoal: {type(error).__name__}: {error}")

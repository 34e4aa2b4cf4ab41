"""What one process does for a job before anything runs, while it holds the journal's lock."""

from __future__ import annotations

import time
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from shoal.core.errors import OperatorError
from shoal.engine.build import Prepared
from shoal.jobs.files import remove, size_of
from shoal.jobs.job import Job, Stopping, Summary, Watcher
from shoal.jobs.journal import Journal, differences
from shoal.jobs.preflight import Preflight
from shoal.jobs.results import ResultLine, in_input_order, scan
from shoal.jobs.sources import Source, sha256_of
from shoal.jobs.spool import NOBODY, Spool
from shoal.jobs.summary import Books
from shoal.jobs.trace import discard


class Session:
    """Takes a job up: makes sure that its files belong together, and prepares its rows.

    Args:
        journal: open and locked.
    """

    def __init__(
        self,
        job: Job,
        journal: Journal,
        source: Source,
        prepared: Prepared,
        watcher: Watcher,
        stopping: Stopping,
    ) -> None:
        self._job = job
        self._files = job.files
        self._journal = journal
        self._source = source
        self._model = prepared.model
        self._watcher = watcher
        self._stopping = stopping

    def _take_up(self) -> None:
        """Make sure that journal and output belong to this job; begin anew where nothing is answered."""
        job = self._job
        # The longest sequence may follow from the memory that was free; a flag for it is a parameter.
        model = {name: value for name, value in self._model.identity.items() if name != "max_model_len"}
        identity: dict[str, Any] = {
            "model": model,
            "parameters": job.parameters,
            "input": {"path": str(job.input), "size": self._source.size},
        }
        identity = msgspec.json.decode(msgspec.json.encode(identity))
        if self._journal.events:
            changed = self._changes(identity)
            if not changed:
                return
            if size_of(self._files.output):
                raise OperatorError(
                    f"the output belongs to another job: {'; '.join(changed)}",
                    where=str(self._files.output),
                    remedy="run that job as it was, or choose another output with -o",
                )
            self._journal.clear()
        elif size_of(self._files.output):
            raise OperatorError(
                "the journal is empty but the output is not",
                where=str(self._files.output),
                remedy="choose another output with -o, or move the file away",
            )
        remove(self._files.spool)
        self._journal.create(created=int(time.time()), **identity)

    def _changes(self, identity: dict[str, Any]) -> list[str]:
        old = self._journal.identity
        changed = [f"model: {line}" for line in differences(old["model"], identity["model"])]
        changed += [f"--{line}" for line in differences(old["parameters"], identity["parameters"])]
        prepared = self._journal.last("prepared")
        size, was = identity["input"]["size"], old["input"]["size"]
        if size != was:
            changed.append(f"the input had {was} bytes, now has {size}")
        elif prepared is not None and sha256_of(self._job.input) != prepared["sha256"]:
            changed.append("the input's contents changed")
        return changed

    def _finished_before(self, event: dict[str, Any]) -> Summary:
        remove(self._files.spool)
        discard(self._files.trace)
        if not self._files.output.exists():
            raise OperatorError(
                "the job is finished, but its output is gone",
                where=str(self._files.output),
                remedy=f"restore it, or remove {self._files.journal.name} to run the job again",
            )
        self._watcher.say("This job is finished already; nothing was run.")
        if self._job.ordered:
            in_input_order(self._files)
        return Books.restore(event["summary"])

    def _prepared(self) -> Spool:
        """The spool, made now unless an earlier session finished it."""
        event = self._journal.last("prepared")
        if event is not None and size_of(self._files.spool) == event["spool_bytes"]:
            return Spool(self._files.spool)
        try:
            preflight = Preflight(self._job, self._model, self._watcher, self._stopping)
            prepared = preflight.run(self._source)
        except OperatorError:
            self._forget()
            if not self._job.strict:
                remove(self._files.quarantine)
            raise
        if event is not None and event["sha256"] != prepared.sha256:
            raise OperatorError(
                "the input changed while the job was being prepared",
                where=str(self._job.input),
                remedy="run the same command again",
            )
        self._journal.write(
            "prepared",
            rows=prepared.rows,
            bad=prepared.bad,
            folded=prepared.folded,
            tokens=prepared.tokens,
            sha256=prepared.sha256,
            spool_bytes=prepared.spool_bytes,
        )
        return Spool(self._files.spool)

    def _forget(self) -> None:
        """A job that was refused before it answered anything leaves nothing but its quarantine file."""
        if not size_of(self._files.output):
            remove(self._files.spool)
            self._journal.remove()

    def _scan(self, spool: Spool) -> npt.NDArray[np.bool_]:
        """Which rows have their line already."""
        done = np.zeros(spool.rows, dtype=bool)
        if not self._files.output.exists():
            answered = self._journal.last("progress")
            if answered is not None and answered["done"]:
                raise OperatorError(
                    f"the output is gone; the journal knows of {answered['done']} rows in it",
                    where=str(self._files.output),
                    remedy=f"restore it, or remove {self._files.journal.name} to begin again",
                )
            return done

        def take(line: ResultLine, offset: int, size: int) -> None:
            row = spool.row_of(line.shoal.line)
            if row == NOBODY or done[row]:
                raise OperatorError(
                    f"the line for input line {line.shoal.line} does not belong there, or stands twice",
                    where=str(self._files.output),
                    remedy="restore the file, or move it away with its journal and begin again",
                )
            done[row] = True

        scan(self._files, take)
        return done

"""Rows in flight: from the spool into the engine, and from the engine into the output file."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from shoal.core.errors import InternalError, ShoalError
from shoal.core.request import Finished, FinishReason, SamplingParams, fan_out
from shoal.jobs.answers import AnswerWriter
from shoal.jobs.course import Course, Turn, request_of
from shoal.jobs.job import Status
from shoal.jobs.recorder import Recorder
from shoal.jobs.results import Results
from shoal.jobs.spool import Spool, SpoolRow, unpack

if TYPE_CHECKING:
    from shoal.engine.engine import Engine


KNOWN_SAMPLINGS = 1024


class Flight:
    """A row some of whose sequences the engine still works on."""

    __slots__ = ("answers", "error", "index", "left", "params", "row")

    def __init__(self, index: int, row: SpoolRow, params: SamplingParams) -> None:
        self.index = index
        self.row = row
        self.params = params
        self.left = 0
        self.answers: list[Finished | None] = [None] * params.n
        self.error: ShoalError | None = None


class Crew:
    """Keeps the engine supplied and writes what it finishes.

    Args:
        course: the rows to hand to the engine, in this order.
        done: shape (rows,), bool: rows that have their line; kept up to date.
        window: most sequences in the engine; at least one row is always let in.
        recorder: told of every row that the engine answered.
    """

    def __init__(
        self,
        engine: Engine,
        end_ids: tuple[int, ...],
        spool: Spool,
        course: Course,
        done: npt.NDArray[np.bool_],
        results: Results,
        writer: AnswerWriter,
        window: int,
        status: Status,
        recorder: Recorder,
    ) -> None:
        self._engine = engine
        self._end_ids = end_ids
        self._spool = spool
        self._done = done
        self._results = results
        self._writer = writer
        self._window = window
        self._status = status
        self._recorder = recorder
        self._flights: dict[int, tuple[Flight, int]] = {}
        self._left = iter(course)
        self._none_left = False
        self._params: dict[bytes, SamplingParams] = {}

    @property
    def in_flight(self) -> int:
        """Sequences in the engine."""
        return len(self._flights)

    @property
    def finished(self) -> bool:
        """Every row has its line."""
        return self._none_left and not self._flights

    def fill(self, now: float) -> None:
        """Hand rows to the engine until the window is full or none is left. Rows that the engine refuses at
        once fill no window, so the number of tries is bounded too: the caller has other things to do."""
        for _ in range(self._window):
            if len(self._flights) >= self._window:
                return
            turn = next(self._left, None)
            if turn is None:
                self._none_left = True
                return
            if not self._done[turn.row]:
                self._start(turn, now)

    def _start(self, turn: Turn, now: float) -> None:
        row = self._spool.read(turn.row)
        flight = Flight(turn.row, row, self._sampling(row))
        request = request_of(row, flight.params, turn, self._end_ids)
        for place, part in enumerate(fan_out(request)):
            try:
                handle = self._engine.add(part, now)
            except Exception as error:
                flight.error = _typed(error)
                break
            self._flights[handle] = (flight, place)
            flight.left += 1
        if flight.left == 0:
            self._write(flight)

    def _sampling(self, row: SpoolRow) -> SamplingParams:
        params = self._params.get(row.sampling)
        if params is None:
            if len(self._params) >= KNOWN_SAMPLINGS:
                self._params.clear()
            params = self._params[row.sampling] = unpack(row.sampling)
        return params

    def take(self, finished: Finished) -> None:
        """An answer of the engine; the row's line is written once all its sequences have theirs."""
        flight, place = self._flights.pop(finished.handle)
        flight.answers[place] = finished
        flight.left -= 1
        if finished.reason is FinishReason.ERROR:
            flight.error = finished.error or InternalError("the engine failed without a reason")
        elif finished.reason is FinishReason.ABORT:
            flight.error = InternalError("the engine gave the row up", remedy="run the same command again")
        if flight.left == 0:
            self._write(flight)

    def _write(self, flight: Flight) -> None:
        """The followers' lines come before the leader's: a leader's line says that theirs are there."""
        answers = [answer for answer in flight.answers if answer is not None]
        leader = flight.row.line
        self._recorder.row(leader, flight.row.id, answers, flight.error)
        for index in self._spool.followers(flight.index):
            if not self._done[index]:
                self._write_line(index, self._spool.read(index), flight, answers, leader)
        if not self._done[flight.index]:
            self._write_line(flight.index, flight.row, flight, answers, leader)

    def _write_line(
        self, index: int, row: SpoolRow, flight: Flight, answers: list[Finished], leader: int
    ) -> None:
        error = flight.error
        line = b""
        if error is None:
            try:
                line = self._writer.answer(row, flight.params, answers, leader)
            except Exception as failure:
                # A row whose answer cannot be written down must not end the others.
                error = _typed(failure)
        if error is not None:
            line = self._writer.error(row, flight.params, error, answers, leader)
            self._status.failed += 1
        self._results.append(line)
        self._done[index] = True
        self._status.done += 1


def _typed(error: Exception) -> ShoalError:
    if isinstance(error, ShoalError):
        return error
    return InternalError(f"{type(error).__name__}: {error}", remedy="report this with the row")

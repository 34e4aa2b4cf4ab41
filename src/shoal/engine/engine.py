"""The loop: schedule, execute, update. Everything else in shoal stands before or behind these three."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from shoal.core.errors import CallerError, InternalError, ShoalError
from shoal.core.executor import Executor
from shoal.core.plan import I32, I64, StepPlan, StepResult
from shoal.core.request import Finished, FinishReason, Request
from shoal.core.table import SequenceTable
from shoal.engine.answers import Answers
from shoal.engine.model import TextModel
from shoal.memory.layout import Layout
from shoal.schedule.scheduler import Scheduler, Update


@dataclass(frozen=True, slots=True)
class StepOutput:
    """What a step brought: ``tokens[i]`` is the new id of sequence ``handles[i]``."""

    handles: I64 = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    tokens: I32 = field(default_factory=lambda: np.zeros(0, dtype=np.int32))
    finished: list[Finished] = field(default_factory=list)


class Engine:
    """Requests in, exactly one ``Finished`` out for each.

    Built by ``shoal.engine.build``; the parts are handed in so that tests can choose each.

    Args:
        model: the cold side; its tokenizer is asked only for requests with stop strings.
    """

    def __init__(
        self,
        table: SequenceTable,
        memory: Layout,
        scheduler: Scheduler,
        executor: Executor,
        model: TextModel | None = None,
    ) -> None:
        self.table = table
        self.memory = memory
        self.scheduler = scheduler
        self.executor = executor
        self.vocabulary = executor.vocabulary
        self.answers = Answers(table, model)
        self._aborted: list[Finished] = []

    @property
    def idle(self) -> bool:
        """Nothing waits, nothing runs, nothing is left to hand out."""
        return len(self.table) == 0 and not self._aborted

    def add(self, request: Request, now: float) -> int:
        """Queue a request; returns the handle under which its answer comes.

        Raises:
            CallerError: it can never be answered; nothing of it stays behind.
        """
        if len(request.prompt) and not 0 <= request.prompt.min() <= request.prompt.max() < self.vocabulary:
            raise CallerError(
                f"a token id of the prompt is outside the model's vocabulary of {self.vocabulary}",
                remedy="give ids of this model; if its tokenizer made them, the two do not fit",
            )
        slot = self.scheduler.add(request, now)
        try:
            self.answers.open(slot, request)
            self.executor.open(slot, request)
        except BaseException:
            self.answers.close(slot)
            self.executor.close(slot)
            self.scheduler.finish(slot, FinishReason.ERROR, now)
            raise
        return int(self.table.handle[slot])

    def add_all(self, requests: Iterable[Request], now: float) -> list[int]:
        """``add`` for each, in order; all or none are refused by the caller's own checks beforehand."""
        return [self.add(request, now) for request in requests]

    def abort(self, handle: int, now: float) -> bool:
        """Stop a sequence; its answer, with the tokens so far, comes with the next step. False if it has
        its answer already."""
        slot = self.table.slot_of(handle)
        if slot is None:
            return False
        self._aborted.append(self._finish(slot, FinishReason.ABORT, None, now))
        return True

    def step(self, now: float) -> StepOutput:
        """One turn of the loop. ``now`` is when the step is planned, in seconds."""
        for plan in self.scheduler.schedule(now):
            try:
                self.executor.submit(plan)
            except BaseException:
                self._break_off(plan, now)
                raise
        output = StepOutput(finished=self._aborted)
        self._aborted = []
        for result in self.executor.poll():
            output = self._deliver(result, self.scheduler.update(result, now), output.finished)
        return output

    def check(self) -> None:
        """Raise AssertionError unless every book balances."""
        self.scheduler.check()

    def _break_off(self, plan: StepPlan, now: float) -> None:
        """A step was left midway (Ctrl-C). How far it got nobody knows, so its sequences end here, and
        the engine goes on without them."""
        list(self.executor.poll())
        error = InternalError("the step was broken off", remedy="ask again")
        nothing = np.zeros(len(plan.emitting_rows()), dtype=np.int32)
        failures: dict[int, Exception] = dict.fromkeys(range(plan.run_count), error)
        result = StepResult(plan.step, nothing, now, failures=failures)
        self._deliver(result, self.scheduler.update(result, now), self._aborted)

    def _deliver(self, result: StepResult, update: Update, finished: list[Finished]) -> StepOutput:
        handles = self.table.handle[update.slots]
        ended: dict[int, tuple[FinishReason, int | str | None]] = {
            slot: (reason, stop) for slot, reason, stop in update.ended
        }
        if result.scored is not None:
            self.answers.score(update.plan, result.scored, result.tokens, {slot for slot, _ in update.failed})
        stop_ids = {slot: stop for slot, _, stop in update.ended}
        for slot, hit in self.answers.read(update.slots, update.tokens, stop_ids):
            ended[slot] = (FinishReason.STOP, hit)
        for slot, (reason, stop) in ended.items():
            finished.append(self._finish(slot, reason, stop, result.ready))
        for slot, error in update.failed:
            finished.append(self._finish(slot, FinishReason.ERROR, None, result.ready, error))
        return StepOutput(handles, update.tokens, finished)

    def _finish(
        self,
        slot: int,
        reason: FinishReason,
        stop: int | str | None,
        now: float,
        error: Exception | None = None,
    ) -> Finished:
        if error is not None and not isinstance(error, ShoalError):
            error = InternalError(f"{type(error).__name__}: {error}", remedy="report this with the job")
        answer = self.answers.finished(slot, reason, stop, now, error)
        self.answers.close(slot)
        self.executor.close(slot)
        self.scheduler.finish(slot, reason, now)
        return answer

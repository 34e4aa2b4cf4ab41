"""Prompts on their way through an engine, for ``LLM``: what becomes of each, whichever call asked."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field

from shoal.core.errors import InternalError, ShoalError
from shoal.core.request import Finished, Ids, Request, TokenLogprobs, fan_out
from shoal.engine.detokenizer import answer_text
from shoal.engine.engine import Engine
from shoal.engine.model import TextModel


@dataclass(frozen=True, slots=True)
class Output:
    """One answer.

    Attributes:
        index: which of the ``n`` answers.
        text: without the stop string or end token that ended it.
        token_ids: all of them, the end token included.
        finish_reason: stop, length, abort or error.
        stop_reason: the stop string or token id that ended it.
        logprobs: one entry a token, if asked for.
    """

    index: int
    text: str
    token_ids: list[int]
    finish_reason: str
    stop_reason: int | str | None = None
    logprobs: list[TokenLogprobs] | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """What came of one prompt.

    Attributes:
        index: place of the prompt in what was handed in.
        prompt: its text (of a conversation: as the chat template renders it); None if it came as ids.
        outputs: the ``n`` answers; after an error what there was until then.
        prompt_logprobs: one entry a prompt token, None for the first, if asked for.
        error: why there is no (whole) answer; None if all went well.
        cached_tokens: prompt tokens that were taken from the prefix cache, over all answers.
    """

    index: int
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[Output] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    error: ShoalError | None = None
    cached_tokens: int = 0

    @property
    def text(self) -> str:
        """The text of the first answer, empty if there is none."""
        return self.outputs[0].text if self.outputs else ""


@dataclass(frozen=True, slots=True)
class Asked:
    """A prompt as it was asked, ready for the engine, or why it cannot be answered."""

    index: int
    prompt: str | None
    ids: Ids
    request: Request | None = None
    error: ShoalError | None = None


@dataclass(slots=True)
class Call:
    """One ``stream`` or ``generate``: its results as they come, its sequences in the engine, and the node
    numbers of its plan."""

    nodes: range = range(0)
    ready: deque[Result] = field(default_factory=deque)
    handles: set[int] = field(default_factory=set)


@dataclass(slots=True)
class _Flight:
    """A prompt some of whose sequences the engine still works on."""

    call: Call
    asked: Asked
    answers: list[Finished | None] = field(default_factory=list)
    error: ShoalError | None = None
    left: int = 0


class Flights:
    """Everything that an engine works on."""

    def __init__(self, engine: Engine, model: TextModel) -> None:
        self.engine = engine
        self.model = model
        self._flights: dict[int, tuple[_Flight, int]] = {}
        self._unwanted: list[int] = []
        self._over: list[range] = []
        self._busy = False

    def start(self, call: Call, asked: Asked) -> None:
        """Hand one prompt to the engine; what is wrong with it becomes its result."""
        flight = _Flight(call, asked, error=asked.error)
        try:
            for place, part in enumerate(fan_out(asked.request) if asked.request else []):
                flight.answers.append(None)
                handle = self.engine.add(part, time.perf_counter())
                call.handles.add(handle)
                self._flights[handle] = (flight, place)
                flight.left += 1
        except ShoalError as error:
            flight.error = error
        if flight.left == 0:
            call.ready.append(self._result(flight))

    def step(self) -> None:
        """One turn of the engine; results go to the call that asked, whichever call turns it."""
        if self.engine.idle:
            raise InternalError("the engine lost a request", remedy="report it")
        self._end_unwanted()
        self._busy = True
        try:
            output = self.engine.step(time.perf_counter())
        finally:
            self._busy = False
        for finished in output.finished:
            flight, place = self._flights.pop(finished.handle, (None, 0))
            if flight is None:
                continue
            flight.call.handles.discard(finished.handle)
            flight.answers[place] = finished
            flight.error = flight.error or finished.error
            flight.left -= 1
            if flight.left == 0:
                flight.call.ready.append(self._result(flight))

    def abandon(self, call: Call) -> None:
        """Nobody waits for this call any more."""
        for handle in call.handles:
            self._flights.pop(handle, None)
        self._unwanted += call.handles
        call.handles.clear()
        self._over.append(call.nodes)
        # The garbage collector closes a forgotten stream at any moment, in the middle of a step too.
        if not self._busy:
            self._end_unwanted()

    def _end_unwanted(self) -> None:
        while self._unwanted:
            self.engine.abort(self._unwanted.pop(), time.perf_counter())
        while self._over:
            self.engine.memory.forget(self._over.pop(), time.perf_counter())

    def _result(self, flight: _Flight) -> Result:
        done = [(place, answer) for place, answer in enumerate(flight.answers) if answer is not None]
        first = done[0][1] if done else None
        scores = None if first is None or first.prompt_logprobs is None else list(first.prompt_logprobs)
        return Result(
            index=flight.asked.index,
            prompt=flight.asked.prompt,
            prompt_token_ids=flight.asked.ids.tolist(),
            outputs=[self._output(place, answer) for place, answer in done],
            prompt_logprobs=scores,
            error=flight.error,
            cached_tokens=sum(answer.cached for _, answer in done),
        )

    def _output(self, place: int, answer: Finished) -> Output:
        return Output(
            index=place,
            text=answer_text(self.model.tokenizer, answer),
            token_ids=answer.tokens.tolist(),
            finish_reason=str(answer.reason),
            stop_reason=answer.stop_reason,
            logprobs=None if answer.logprobs is None else list(answer.logprobs),
        )

"""``LLM``: the engine for people who write Python. Lists in, lists out; or an iterator in and out."""

from __future__ import annotations

import logging
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from shoal.core.config import EngineConfig, parse_bytes
from shoal.core.errors import CallerError, InternalError, ShoalError
from shoal.core.policy import Policy
from shoal.core.request import Finished, Ids, Request, SamplingParams, TokenLogprobs, fan_out
from shoal.engine.build import prepare, start
from shoal.engine.detokenizer import answer_text
from shoal.jobs.sampling import noise_seed

Prompt = str | Sequence[int] | Ids
Message = dict[str, Any]
_log = logging.getLogger("shoal")


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
class _Conversation:
    messages: Any
    arguments: dict[str, Any]


@dataclass(slots=True)
class _Flight:
    """A prompt some of whose sequences the engine still works on."""

    call: _Call
    index: int
    prompt: str | None
    ids: Ids
    answers: list[Finished | None]
    error: ShoalError | None = None
    left: int = 0


@dataclass(slots=True)
class _Call:
    """One ``stream`` or ``generate``: its results as they come, and its sequences in the engine."""

    ready: deque[Result] = field(default_factory=deque)
    handles: set[int] = field(default_factory=set)


class LLM:
    """A model, ready to answer. Not to be used from several threads at once.

    Args:
        model: Hugging Face id or folder, a GGUF file, ``demo``, or ``null``.
        dtype, device, load_format, max_model_len, max_num_seqs, max_num_batched_tokens, page_size,
            threads, prefix_reuse, order, admission, victim, retention: see
            ``shoal.core.config.EngineConfig``.
        kv_memory: bytes of the KV pool, or a text such as "2GiB".
        seed: prompts whose sampling names no seed get one from this and their index, so that the same
            call gives the same answers.
        chat_template: instead of the model's own.

    Raises:
        OperatorError: the model cannot be read or does not fit, or a setting is not valid.
    """

    def __init__(
        self,
        model: str,
        *,
        dtype: Literal["auto", "float32", "bfloat16"] = "auto",
        device: str = "cpu",
        load_format: Literal["auto", "safetensors", "gguf", "dummy"] = "auto",
        kv_memory: int | str | None = None,
        max_model_len: int | None = None,
        max_num_seqs: int = 256,
        max_num_batched_tokens: int = 512,
        page_size: int = 16,
        threads: int | None = None,
        seed: int = 0,
        prefix_reuse: bool = True,
        order: str | Policy = "fcfs",
        admission: str | Policy | None = None,
        victim: str | Policy = "last",
        retention: str | Policy = "lru",
        chat_template: str | None = None,
    ) -> None:
        self.config = EngineConfig(
            model=str(model),
            dtype=dtype,
            device=device,
            load_format=load_format,
            kv_memory=parse_bytes(kv_memory) if isinstance(kv_memory, str) else kv_memory,
            max_model_len=max_model_len,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            page_size=page_size,
            threads=threads,
            seed=seed % 2**32,
            prefix_reuse=prefix_reuse,
            order=order,
            admission=admission,
            victim=victim,
            retention=retention,
        )
        prepared = prepare(self.config, chat_template)
        self.description = prepared.description
        _log.info(self.description)
        self.model = prepared.model
        self.engine = start(prepared)
        self._seed = seed
        self._flights: dict[int, tuple[_Flight, int]] = {}
        self._unwanted: list[int] = []
        self._busy = False

    @property
    def tokenizer(self) -> Any:
        """The model's ``shoal.models.tokenizer.Tokenizer``."""
        return self.model.tokenizer

    def generate(
        self,
        prompts: Prompt | Iterable[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_progress: bool | None = None,
    ) -> list[Result]:
        """Answer prompts, in their order.

        A prompt that cannot be answered has its reason in ``Result.error``; it neither raises nor holds
        up the others.

        Args:
            prompts: one or many; each a text, or token ids that are taken as they are.
            params: for all, or one for each prompt.
            use_progress: show a bar on standard error; None shows it where that is a terminal.

        Raises:
            CallerError: ``params`` is a list of another length than ``prompts``.
        """
        listed = [prompts] if _is_prompt(prompts) else list(prompts)
        if isinstance(params, Sequence) and len(params) != len(listed):
            raise CallerError(
                f"{len(listed)} prompts, but {len(params)} sampling parameters",
                remedy="give one for all, or one for each prompt",
            )
        return _collect(self._run(listed, params), len(listed), use_progress)

    def chat(
        self,
        messages: Sequence[Message] | Iterable[Sequence[Message]],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        chat_template_kwargs: dict[str, Any] | None = None,
        use_progress: bool | None = None,
    ) -> list[Result]:
        """Answer conversations, in their order: each a list of ``{"role": ..., "content": ...}``.

        One conversation or many; the rest as in ``generate``.

        Args:
            chat_template_kwargs: further names that the model's template knows.
        """
        if isinstance(messages, str):
            raise CallerError("chat was given a text", remedy="give messages, or call generate")
        listed: list[Any] = list(messages)
        if listed and isinstance(listed[0], dict):
            listed = [listed]
        if isinstance(params, Sequence) and len(params) != len(listed):
            raise CallerError(
                f"{len(listed)} conversations, but {len(params)} sampling parameters",
                remedy="give one for all, or one for each conversation",
            )
        asked = [_Conversation(messages, chat_template_kwargs or {}) for messages in listed]
        return _collect(self._run(asked, params), len(asked), use_progress)

    def stream(
        self,
        prompts: Iterable[Prompt],
        params: SamplingParams | Iterable[SamplingParams] | None = None,
    ) -> Iterator[Result]:
        """Answer prompts as they come, and hand out results as they finish, in any order.

        ``prompts`` is pulled only as far as the engine has work for: at most twice ``max_num_seqs``
        sequences, so neither side need fit in memory. Closing the iterator ends what is in flight.
        """
        return self._run(prompts, params)

    def _run(
        self, asked: Iterable[Any], params: SamplingParams | Iterable[SamplingParams] | None
    ) -> Iterator[Result]:
        pairs = enumerate(_paired(asked, params))
        call = _Call()
        window = 2 * self.config.max_num_seqs
        more = True
        try:
            while more or call.handles or call.ready:
                while more and len(call.handles) < window and not call.ready:
                    index, pair = next(pairs, (-1, None))
                    if pair is None:
                        more = False
                    else:
                        self._start(call, index, *pair)
                while call.ready:
                    yield call.ready.popleft()
                if call.handles:
                    self._step()
        finally:
            self._abandon(call)

    def _start(self, call: _Call, index: int, prompt: Any, params: SamplingParams) -> None:
        """Hand one prompt to the engine; what is wrong with it becomes its result."""
        flight = _Flight(call, index, None, np.zeros(0, dtype=np.int32), [])
        try:
            request = self._request(flight, prompt, params)
            for place, part in enumerate(fan_out(request)):
                flight.answers.append(None)
                handle = self.engine.add(part, time.perf_counter())
                call.handles.add(handle)
                self._flights[handle] = (flight, place)
                flight.left += 1
        except ShoalError as error:
            flight.error = error
        if flight.left == 0:
            call.ready.append(self._result(flight))

    def _request(self, flight: _Flight, prompt: Any, params: Any) -> Request:
        """Fills in the flight's prompt and ids. Raises CallerError."""
        if not isinstance(params, SamplingParams):
            raise CallerError(
                f"this prompt's sampling parameters are {params!r}"[:200], remedy="give SamplingParams"
            )
        params = params.checked()
        if params.constraint is not None:
            self.model.check_constraint(params.constraint)
        if isinstance(prompt, _Conversation):
            flight.prompt = self.model.render(prompt.messages, prompt.arguments)
            flight.ids = self.tokenizer.encode(flight.prompt, add_special=False)
        elif isinstance(prompt, str):
            flight.prompt = prompt
            flight.ids = self.tokenizer.encode(prompt, add_special=True)
        else:
            flight.ids = _ids(prompt, self.model.vocabulary)
        seed = params.seed
        if seed is None:
            seed = noise_seed(self._seed, str(flight.index))
        return Request(
            id=str(flight.index),
            prompt=flight.ids,
            params=params,
            seed=seed % 2**64,
            end_ids=self.model.end_ids,
        )

    def _step(self) -> None:
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

    def _abandon(self, call: _Call) -> None:
        """Nobody waits for this call any more."""
        for handle in call.handles:
            self._flights.pop(handle, None)
        self._unwanted += call.handles
        call.handles.clear()
        # The garbage collector closes a forgotten stream at any moment, in the middle of a step too.
        if not self._busy:
            self._end_unwanted()

    def _end_unwanted(self) -> None:
        while self._unwanted:
            self.engine.abort(self._unwanted.pop(), time.perf_counter())

    def _result(self, flight: _Flight) -> Result:
        done = [(place, answer) for place, answer in enumerate(flight.answers) if answer is not None]
        first = done[0][1] if done else None
        scores = None if first is None or first.prompt_logprobs is None else list(first.prompt_logprobs)
        return Result(
            index=flight.index,
            prompt=flight.prompt,
            prompt_token_ids=flight.ids.tolist(),
            outputs=[self._output(place, answer) for place, answer in done],
            prompt_logprobs=scores,
            error=flight.error,
            cached_tokens=sum(answer.cached for _, answer in done),
        )

    def _output(self, place: int, answer: Finished) -> Output:
        return Output(
            index=place,
            text=answer_text(self.tokenizer, answer),
            token_ids=answer.tokens.tolist(),
            finish_reason=str(answer.reason),
            stop_reason=answer.stop_reason,
            logprobs=None if answer.logprobs is None else list(answer.logprobs),
        )


def _is_prompt(prompts: Any) -> bool:
    """Whether this is one prompt: a text, or token ids."""
    if isinstance(prompts, str):
        return True
    if isinstance(prompts, np.ndarray):
        return prompts.ndim == 1 and prompts.dtype.kind in "iu"
    return isinstance(prompts, Sequence) and len(prompts) > 0 and isinstance(prompts[0], (int, np.integer))


def _ids(prompt: Any, vocabulary: int) -> Ids:
    """Token ids handed in by the caller. Raises CallerError unless they are ids of this model."""
    try:
        ids = np.asarray(prompt)
    except (ValueError, OverflowError):
        ids = np.zeros((), dtype=object)
    if ids.ndim != 1 or (len(ids) and ids.dtype.kind not in "iu"):
        raise CallerError(
            f"a prompt is {type(prompt).__name__}, neither text nor token ids",
            remedy="give a text or a list of ids",
        )
    if len(ids) and not 0 <= ids.min() <= ids.max() < vocabulary:
        raise CallerError(
            f"a token id is outside the vocabulary of {vocabulary}",
            remedy="give ids of this model's vocabulary",
        )
    return ids.astype(np.int32)


def _paired(
    asked: Iterable[Any], params: SamplingParams | Iterable[SamplingParams] | None
) -> Iterator[tuple[Any, Any]]:
    """Each prompt with its parameters; None where a shorter iterable has none left for it."""
    if params is None or isinstance(params, SamplingParams):
        for prompt in asked:
            yield prompt, params or SamplingParams()
    else:
        each = iter(params)
        for prompt in asked:
            yield prompt, next(each, None)


def _collect(results: Iterator[Result], total: int, use_progress: bool | None) -> list[Result]:
    """All results in the order of their prompts."""
    if use_progress is None:
        use_progress = sys.stderr.isatty()
    if use_progress:
        from rich.console import Console
        from rich.progress import track

        results = iter(track(results, "answering", total=total, console=Console(stderr=True)))
    return sorted(results, key=lambda result: result.index)

"""``LLM``: the engine for people who write Python. Lists in, lists out; or an iterator in and out."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from shoal.core.config import EngineConfig, parse_bytes
from shoal.core.errors import CallerError, ShoalError
from shoal.core.policy import Policy
from shoal.core.request import Ids, Request, SamplingParams
from shoal.engine.build import prepare, start
from shoal.flights import Asked, Call, Flights, Output, Result
from shoal.jobs.sampling import noise_seed
from shoal.reuse.requests import plan_requests

__all__ = ["LLM", "Output", "Result"]

Prompt = str | Sequence[int] | Ids
Params = SamplingParams | Iterable[SamplingParams] | None
Message = dict[str, Any]
_log = logging.getLogger("shoal")


@dataclass(frozen=True, slots=True)
class _Conversation:
    messages: Any
    arguments: dict[str, Any]


class LLM:
    """A model, ready to answer. Not to be used from several threads at once.

    Args:
        model: Hugging Face id or folder, a GGUF file, ``demo``, or ``null``.
        dtype, device, load_format, max_model_len, max_num_seqs, max_num_batched_tokens, page_size,
            kernels, threads, prefix_reuse, layout, policy, order, admission, victim, retention, reuse: see
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
        max_num_batched_tokens: int | None = None,
        page_size: int = 16,
        kernels: Literal["auto", "compiled", "plain"] = "auto",
        threads: int | None = None,
        seed: int = 0,
        prefix_reuse: bool = True,
        layout: Literal["auto", "paged", "contiguous", "slots"] = "auto",
        policy: str | Policy | None = None,
        order: str | Policy | None = None,
        admission: str | Policy | None = None,
        victim: str | Policy | None = None,
        retention: str | Policy | None = None,
        reuse: str | Policy | None = None,
        chat_template: str | None = None,
    ) -> None:
        config = EngineConfig(
            model=str(model),
            dtype=dtype,
            device=device,
            load_format=load_format,
            kv_memory=parse_bytes(kv_memory) if isinstance(kv_memory, str) else kv_memory,
            max_model_len=max_model_len,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            page_size=page_size,
            kernels=kernels,
            threads=threads,
            seed=seed % 2**32,
            prefix_reuse=prefix_reuse,
            layout=layout,
            policy=policy,
            order=order,
            admission=admission,
            victim=victim,
            retention=retention,
            reuse=reuse,
        )
        prepared = prepare(config, chat_template)
        self.config = prepared.config
        self.description = prepared.description
        _log.info(self.description)
        self.model = prepared.model
        self.engine = start(prepared)
        self._seed = seed
        self._reuse = prepared.reuse
        self._nodes = 0
        self._flights = Flights(self.engine, self.model)

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
        """Answer prompts; results are in their order.

        The whole list is planned before the first of them runs: the reuse policy says who runs when and
        which beginnings are kept for those to come. A prompt that cannot be answered has its reason in
        ``Result.error``; it neither raises nor holds up the others.

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
        return _collect(self._whole(listed, params), len(listed), use_progress)

    def chat(
        self,
        messages: Sequence[Message] | Iterable[Sequence[Message]],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        chat_template_kwargs: dict[str, Any] | None = None,
        use_progress: bool | None = None,
    ) -> list[Result]:
        """Answer conversations, each a list of ``{"role": ..., "content": ...}``; results are in their order.

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
        return _collect(self._whole(asked, params), len(asked), use_progress)

    def stream(
        self,
        prompts: Iterable[Prompt],
        params: Params = None,
    ) -> Iterator[Result]:
        """Answer prompts as they come, and hand out results as they finish, in any order.

        ``prompts`` is pulled only as far as the engine has work for: at most twice ``max_num_seqs``
        sequences, so neither side need fit in memory. Closing the iterator ends what is in flight.
        """
        return self._run(self._asked(prompts, params))

    def _run(self, asked: Iterable[Asked], nodes: range = range(0)) -> Iterator[Result]:
        """Results as they come; ``asked`` is pulled only as far as there is work."""
        coming = iter(asked)
        call = Call(nodes)
        window = 2 * self.config.max_num_seqs
        more = True
        try:
            while more or call.handles or call.ready:
                while more and len(call.handles) < window and not call.ready:
                    following = next(coming, None)
                    if following is None:
                        more = False
                    else:
                        self._flights.start(call, following)
                while call.ready:
                    yield call.ready.popleft()
                if call.handles:
                    self._flights.step()
        finally:
            self._flights.abandon(call)

    def _asked(self, asked: Iterable[Any], params: Params) -> Iterator[Asked]:
        """Each prompt with what the engine needs of it, pulled one by one."""
        for index, (prompt, wanted) in enumerate(_paired(asked, params)):
            yield self._ask(index, prompt, wanted)

    def _ask(self, index: int, prompt: Any, params: Any) -> Asked:
        """What is wrong with a prompt stands in its ``error``."""
        text, ids = None, np.zeros(0, dtype=np.int32)
        try:
            if not isinstance(params, SamplingParams):
                raise CallerError(
                    f"this prompt's sampling parameters are {params!r}"[:200], remedy="give SamplingParams"
                )
            params = params.checked()
            if params.constraint is not None:
                self.model.check_constraint(params.constraint)
            if isinstance(prompt, _Conversation):
                text = self.model.render(prompt.messages, prompt.arguments)
                ids = self.tokenizer.encode(text, add_special=False)
            elif isinstance(prompt, str):
                text = prompt
                ids = self.tokenizer.encode(prompt, add_special=True)
            else:
                ids = _ids(prompt, self.model.vocabulary)
        except ShoalError as error:
            return Asked(index, text, ids, error=error)
        seed = noise_seed(self._seed, str(index)) if params.seed is None else params.seed
        request = Request(
            id=str(index), prompt=ids, params=params, seed=seed % 2**64, end_ids=self.model.end_ids
        )
        return Asked(index, text, ids, request)

    def _whole(self, asked: Iterable[Any], params: Params) -> Iterator[Result]:
        """Answer prompts in the order in which the reuse policy wants them to run."""
        found = list(self._asked(asked, params))
        if not self.config.prefix_reuse:
            return self._run(found)
        longest = self.model.max_model_len
        fit = [one for one in found if one.request is not None and 0 < len(one.ids) < longest]
        others = [one for one in found if one.request is None or not 0 < len(one.ids) < longest]
        listed = [one.request for one in fit if one.request is not None]
        planned = plan_requests(self._reuse, listed, self.config.page_size, longest, self._nodes)
        self._nodes = planned.nodes.stop
        rows = zip(planned.plan.order.tolist(), planned.requests)
        return self._run(
            others + [replace(fit[row], request=request) for row, request in rows], planned.nodes
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


def _paired(asked: Iterable[Any], params: Params) -> Iterator[tuple[Any, Any]]:
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

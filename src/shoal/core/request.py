"""What somebody asked, and what they get back. Plain values: no tensor, no engine state."""

from __future__ import annotations

import enum
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from shoal.core.errors import CallerError, ShoalError

Ids = npt.NDArray[np.int32]


class Constraint(msgspec.Struct, frozen=True, kw_only=True):
    """The set of texts an answer may be: one of ``choice``, a ``regex`` or a ``json_schema``.

    ``value`` is a tuple of strings for ``choice`` and one string (the pattern, or the schema as JSON
    text) otherwise, so that equal constraints compare and hash equal and are compiled once.
    """

    kind: Literal["choice", "regex", "json_schema"]
    value: tuple[str, ...] | str


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the tokens of one answer are chosen.

    Attributes:
        n: answers to the same prompt; each is a sequence of its own over one cached prefix.
        temperature: 0 is greedy (ties go to the lowest id); otherwise logits are divided by it.
        top_k: keep the k best tokens; 0 or -1 keeps all.
        top_p: keep the smallest set of best tokens whose probability reaches this.
        min_p: keep tokens whose probability is at least this share of the best one's.
        presence_penalty, frequency_penalty: subtracted from the logits of tokens in the answer so far.
        repetition_penalty: divides positive and multiplies negative logits of tokens seen in the prompt
            or the answer.
        seed: of the noise; noise depends on (seed, index of the output token) alone.
        max_tokens: most tokens in the answer; None runs to the model's longest sequence.
        min_tokens: no end token or stop string is honoured before this many tokens.
        stop: texts that end the answer; the text is cut before them.
        stop_token_ids: ids that end the answer.
        ignore_eos: do not stop at the model's end tokens.
        logprobs: report the log-probability of each token and of this many best alternatives.
        prompt_logprobs: the same for the tokens of the prompt.
        logit_bias: added to the logits of these ids before anything else.
        constraint: restricts the answer (choice, regex, JSON schema).
        skip_special_tokens: leave special tokens out of the text.
    """

    n: Annotated[int, msgspec.Meta(ge=1, le=1024)] = 1
    temperature: Annotated[float, msgspec.Meta(ge=0.0, le=100.0)] = 1.0
    top_k: Annotated[int, msgspec.Meta(ge=-1)] = 0
    top_p: Annotated[float, msgspec.Meta(gt=0.0, le=1.0)] = 1.0
    min_p: Annotated[float, msgspec.Meta(ge=0.0, le=1.0)] = 0.0
    presence_penalty: Annotated[float, msgspec.Meta(ge=-2.0, le=2.0)] = 0.0
    frequency_penalty: Annotated[float, msgspec.Meta(ge=-2.0, le=2.0)] = 0.0
    repetition_penalty: Annotated[float, msgspec.Meta(gt=0.0, le=10.0)] = 1.0
    seed: Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    max_tokens: Annotated[int, msgspec.Meta(ge=1)] | None = 16
    min_tokens: Annotated[int, msgspec.Meta(ge=0, le=2**30)] = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)], ...] = ()
    ignore_eos: bool = False
    logprobs: Annotated[int, msgspec.Meta(ge=0, le=20)] | None = None
    prompt_logprobs: Annotated[int, msgspec.Meta(ge=0, le=20)] | None = None
    logit_bias: dict[int, float] = {}
    constraint: Constraint | None = None
    skip_special_tokens: bool = True

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0

    def checked(self) -> SamplingParams:
        """The same value, its ranges checked (a constructor call checks nothing by itself).

        Raises:
            CallerError: a field is out of range; names the field.
        """
        try:
            value = msgspec.convert(msgspec.to_builtins(self, enc_hook=_number), SamplingParams)
        except (msgspec.ValidationError, TypeError) as error:
            raise CallerError(f"sampling parameter refused: {error}", remedy="correct the value") from None
        if value.max_tokens is not None and value.min_tokens > value.max_tokens:
            raise CallerError(
                f"min_tokens ({value.min_tokens}) is above max_tokens ({value.max_tokens})",
                remedy="lower min_tokens",
            )
        if any(not text for text in value.stop):
            raise CallerError("a stop string is empty", remedy="remove it")
        for name in ("temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty"):
            if getattr(value, name) != getattr(value, name):
                raise CallerError(f"{name} is not a number", remedy="give a number")
        for token, bias in value.logit_bias.items():
            if not -100.0 <= bias <= 100.0:
                raise CallerError(f"logit_bias of token {token} is {bias}", remedy="give -100 to 100")
        return value


def _number(value: Any) -> Any:
    """A number out of an array is as good as any."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"a value is {type(value).__name__}")


class SharedPrefix(msgspec.Struct, frozen=True):
    """A beginning that a plan knows several requests to have in common.

    Attributes:
        node: its number in the plan.
        tokens: its length, a multiple of the page size.
        members: requests of the plan that begin with it.
    """

    node: int
    tokens: int
    members: int


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """One sequence to compute. Never changes.

    Attributes:
        id: the caller's name for it; the engine only hands it back.
        prompt: token ids, shape (tokens,), int32, at least one.
        params: sampling; ``params.n`` is 1 here, callers fan out (see ``fan_out``).
        seed: resolved seed of the sampling noise, 0 <= seed < 2**64.
        end_ids: the model's end-of-sequence ids, honoured unless ``params.ignore_eos``.
        domain: who may share: K/V is taken from, and offered to, requests of the same domain only.
        shared: most tokens of it whose K/V is shared; None is no limit.
        path: planned prefixes that it begins with, shortest first; what they hold is kept for those to come.
    """

    id: str
    prompt: Ids
    params: SamplingParams
    seed: int = 0
    end_ids: tuple[int, ...] = ()
    domain: int = 0
    shared: int | None = None
    path: tuple[SharedPrefix, ...] = ()


class FinishReason(enum.StrEnum):
    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    ERROR = "error"


class TokenLogprobs(msgspec.Struct, frozen=True):
    """Log-probability of one token and of the best alternatives, best first (natural logarithm)."""

    token: int
    logprob: float
    rank: int
    top: tuple[tuple[int, float], ...] = ()


class Finished(msgspec.Struct, frozen=True, kw_only=True):
    """The one answer to a request. On an error the tokens so far are kept.

    Attributes:
        text: set where the engine had to read the text (stop strings); None means decode ``tokens``.
        cached: prompt tokens that were taken from the prefix cache, never computed for this request.
        computed: rows computed for this request, recomputation after preemption included.
        lost: rows computed again because of preemption.
        arrived, admitted, first_token, ended: seconds on the engine's clock.
    """

    handle: int
    request: Request
    tokens: Ids
    reason: FinishReason
    text: str | None = None
    stop_reason: int | str | None = None
    error: ShoalError | None = None
    logprobs: tuple[TokenLogprobs, ...] | None = None
    prompt_logprobs: tuple[TokenLogprobs | None, ...] | None = None
    cached: int = 0
    computed: int = 0
    preemptions: int = 0
    lost: int = 0
    arrived: float = 0.0
    admitted: float = 0.0
    first_token: float = 0.0
    ended: float = 0.0


def fan_out(request: Request) -> list[Request]:
    """``n`` requests of one answer each; answer ``i`` uses seed + i, and its id ends in ``#i`` when n > 1."""
    n = request.params.n
    if n == 1:
        return [request]
    single: dict[str, Any] = {"n": 1}
    params = msgspec.structs.replace(request.params, **single)
    return [
        msgspec.structs.replace(
            request, id=f"{request.id}#{i}", params=params, seed=(request.seed + i) % 2**64
        )
        for i in range(n)
    ]

"""Effective sampling of a row: what it names, over what the job names, over the house defaults."""

from __future__ import annotations

from hashlib import blake2b
from typing import Any

import msgspec

from shoal.core.errors import CallerError
from shoal.core.request import Constraint, SamplingParams
from shoal.jobs.bodies import ResponseFormat, Sampled, StructuredOutputs
from shoal.jobs.spool import pack

DEFAULT_MAX_TOKENS = 256
_PLAIN_NAMES = """n temperature top_k top_p min_p presence_penalty frequency_penalty repetition_penalty
max_tokens min_tokens ignore_eos prompt_logprobs logit_bias skip_special_tokens"""
PLAIN = tuple(_PLAIN_NAMES.split())
CACHED = 4096
SHOWN_TEXT = 500
"""Characters of a schema or pattern beyond which result lines show its digest instead."""


class Sampling(msgspec.Struct, frozen=True):
    """Parameters with the seed left out, beside their packed form."""

    params: SamplingParams
    packed: bytes


class Sampler:
    """Turns the sampling fields of rows into parameters; equal fields are checked and built once."""

    def __init__(self, defaults: SamplingParams) -> None:
        self.default = Sampling(defaults, pack(defaults))
        self._defaults = msgspec.to_builtins(defaults)
        self._known: dict[bytes, Sampling] = {}

    def effective(self, row: Sampled, logprobs: int | None) -> Sampling:
        """``logprobs`` is already in the meaning of SamplingParams.

        Raises:
            CallerError: a value is out of range; names the field.
        """
        named = _named(row)
        if logprobs is not None:
            named["logprobs"] = logprobs
        if not named:
            return self.default
        key = msgspec.msgpack.encode(named)
        if (known := self._known.get(key)) is not None:
            return known
        params = _build({**self._defaults, **named})
        if len(self._known) >= CACHED:
            self._known.clear()
        sampling = self._known[key] = Sampling(params, pack(params))
        return sampling

    def echoing(self, sampling: Sampling) -> Sampling:
        """A prompt that is repeated is scored as far as the answer is."""
        params = sampling.params
        if params.logprobs is None or params.prompt_logprobs is not None:
            return sampling
        scored: dict[str, Any] = {"prompt_logprobs": params.logprobs}
        params = msgspec.structs.replace(params, **scored)
        return Sampling(params, pack(params))


def _build(values: dict[str, Any]) -> SamplingParams:
    if values["max_tokens"] == 0:
        raise CallerError("max_tokens is 0", remedy="ask for at least one token")
    try:
        params = msgspec.convert(values, SamplingParams)
    except msgspec.ValidationError as error:
        raise CallerError(f"sampling value refused: {error}", remedy="correct the value") from None
    return params.checked()


def shortened(sampling: Sampling, room: int) -> Sampling:
    """``max_tokens`` cut to the ``room`` that the model's longest sequence leaves after the prompt.

    Raises:
        CallerError: min_tokens needs more than that.
    """
    params = sampling.params
    if params.max_tokens is not None and params.max_tokens <= room:
        return sampling
    if params.min_tokens > room:
        raise CallerError(
            f"min_tokens is {params.min_tokens}, but the prompt leaves room for {room}",
            remedy="shorten the prompt or lower min_tokens",
        )
    longest: dict[str, Any] = {"max_tokens": room}
    params = msgspec.structs.replace(params, **longest)
    return Sampling(params, pack(params))


def _named(row: Sampled) -> dict[str, Any]:
    named: dict[str, Any] = {}
    for name in PLAIN:
        value = getattr(row, name)
        if value is not None:
            named[name] = value
    longest = getattr(row, "max_completion_tokens", None)
    if longest is not None:
        named["max_tokens"] = longest
    if row.stop is not None:
        named["stop"] = (row.stop,) if isinstance(row.stop, str) else tuple(row.stop)
    if row.stop_token_ids is not None:
        named["stop_token_ids"] = tuple(row.stop_token_ids)
    constraint = _constraint(row)
    if constraint is not None:
        named["constraint"] = constraint
    return named


def _constraint(row: Sampled) -> Constraint | None:
    """The one constraint that the row names, in any of the spellings in use."""
    outputs = row.structured_outputs or StructuredOutputs()
    choice = row.guided_choice if outputs.choice is None else outputs.choice
    regex = row.guided_regex if outputs.regex is None else outputs.regex
    schema = row.guided_json if outputs.json is None else outputs.json
    found = []
    if choice is not None:
        found.append(choice_constraint(choice))
    if regex is not None:
        found.append(Constraint(kind="regex", value=regex))
    if schema is not None:
        found.append(schema_constraint(schema))
    if row.response_format is not None and row.response_format.type != "text":
        found.append(_response_format(row.response_format))
    if len(found) > 1:
        raise CallerError("several constraints at once", remedy="name one of choice, regex and JSON schema")
    return found[0] if found else None


def choice_constraint(choices: list[str]) -> Constraint:
    if not choices or not all(choices):
        raise CallerError("`choice` is empty or holds an empty text", remedy="name at least one text")
    return Constraint(kind="choice", value=tuple(choices))


def schema_constraint(schema: dict[str, Any] | str | bool) -> Constraint:
    """Raises CallerError if a schema given as text is not JSON."""
    try:
        value = msgspec.json.decode(schema) if isinstance(schema, str) else schema
    except msgspec.DecodeError as error:
        raise CallerError(f"the JSON schema is not JSON: {error}", remedy="correct the schema") from None
    return Constraint(kind="json_schema", value=msgspec.json.encode(value, order="deterministic").decode())


def _response_format(asked: ResponseFormat) -> Constraint:
    if asked.type == "json_object":
        return schema_constraint({"type": "object"})
    if asked.json_schema is None:
        raise CallerError(
            "response_format.json_schema is missing", remedy="give {'json_schema': {'schema': ...}}"
        )
    return schema_constraint(asked.json_schema.schema)


def noise_seed(job_seed: int, identifier: str) -> int:
    """The seed of a row that names none, 0 <= seed < 2**64: depends on the job's seed and its id alone."""
    key = (job_seed % 2**64).to_bytes(8, "little")
    return int.from_bytes(blake2b(identifier.encode(), digest_size=8, key=key).digest(), "little")


def shown(params: SamplingParams, seed: int) -> dict[str, Any]:
    """Effective sampling for a result line: what differs from the plainest, and what always matters."""
    plain = msgspec.to_builtins(params)
    keep = {"temperature", "max_tokens"} | (set() if params.greedy else {"top_k", "top_p", "min_p"})
    values = {name: plain[name] for name in plain if name in keep or plain[name] != _PLAINEST[name]}
    if not params.greedy:
        values["seed"] = seed
    constraint = params.constraint
    if constraint is not None and isinstance(constraint.value, str) and len(constraint.value) > SHOWN_TEXT:
        digest = blake2b(constraint.value.encode(), digest_size=8).hexdigest()
        values["constraint"] = {"kind": constraint.kind, "blake2b": digest}
    return values


_PLAINEST = msgspec.to_builtins(SamplingParams())

"""What a line may say, as types. Whatever is not declared here is refused by its name.

Field names and meanings are those of the OpenAI API (Chat Completions, Completions, Batch), plus the
extras that open servers share: top_k, min_p, repetition_penalty, min_tokens, ignore_eos, stop_token_ids,
prompt_logprobs, skip_special_tokens, structured_outputs and guided_*.
"""

from __future__ import annotations

from typing import Any, Literal, TypeVar

import msgspec

from shoal.core.errors import CallerError

T = TypeVar("T")

CHAT_URL = "/v1/chat/completions"
COMPLETION_URL = "/v1/completions"


class JsonSchema(msgspec.Struct, forbid_unknown_fields=True):
    schema: dict[str, Any] | bool = True
    name: str | None = None
    description: str | None = None
    strict: bool | None = None


class ResponseFormat(msgspec.Struct, forbid_unknown_fields=True):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class StructuredOutputs(msgspec.Struct, forbid_unknown_fields=True):
    choice: list[str] | None = None
    regex: str | None = None
    json: dict[str, Any] | str | None = None


class Sampled(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Fields that every form shares. None means: not named, the job's default holds."""

    n: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    max_tokens: int | None = None
    min_tokens: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    prompt_logprobs: int | None = None
    logit_bias: dict[int, float] | None = None
    skip_special_tokens: bool | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_choice: list[str] | None = None
    guided_regex: str | None = None
    guided_json: dict[str, Any] | str | None = None
    model: str | None = None
    user: str | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None


class Part(msgspec.Struct, forbid_unknown_fields=True):
    type: Literal["text"]
    text: str


class Message(msgspec.Struct, forbid_unknown_fields=True):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part]
    name: str | None = None

    @property
    def empty(self) -> bool:
        parts = [self.content] if isinstance(self.content, str) else [part.text for part in self.content]
        return not any(parts)

    def turn(self) -> dict[str, Any]:
        """As chat templates take it; parts stay parts, for the template or its renderer to join."""
        turn: dict[str, Any] = msgspec.to_builtins(self)
        if turn["role"] == "developer":
            turn["role"] = "system"
        return {name: value for name, value in turn.items() if value is not None}


class ChatBody(Sampled, kw_only=True, forbid_unknown_fields=True):
    messages: list[Message]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class CompletionBody(Sampled, kw_only=True, forbid_unknown_fields=True):
    prompt: str | list[int]
    logprobs: int | None = None
    echo: bool | None = None


class ShortRow(Sampled, kw_only=True, forbid_unknown_fields=True):
    id: str | int | None = None
    prompt: str | list[int] | None = None
    messages: list[Message] | None = None
    max_completion_tokens: int | None = None
    logprobs: bool | int | None = None
    top_logprobs: int | None = None
    echo: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class Envelope(msgspec.Struct, forbid_unknown_fields=True):
    custom_id: str
    url: Literal["/v1/chat/completions", "/v1/completions"]
    body: msgspec.Raw
    method: Literal["POST"] = "POST"


_UNSUPPORTED_NAMES = """
    stream stream_options tools tool_choice parallel_tool_calls functions function_call audio modalities
    prediction reasoning_effort reasoning service_tier web_search_options verbosity best_of suffix
    use_beam_search length_penalty early_stopping add_generation_prompt continue_final_message documents
    chat_template guided_grammar guided_choice_grammar guided_decoding_backend guided_whitespace_pattern
    truncate_prompt_tokens bad_words allowed_token_ids prompt_embeds lora_request priority
    include_stop_str_in_output spaces_between_special_tokens detokenize tool_calls image_url input_audio
    refusal safety_identifier prompt_cache_key prompt_cache_retention return_token_ids grammar
    structural_tag json_object"""
UNSUPPORTED = frozenset(_UNSUPPORTED_NAMES.split())
"""Known to other engines, not to this one yet."""

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "stream": (False,),
    "best_of": (1,),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "reasoning_effort": ("none",),
    "service_tier": ("auto", "default"),
    "modalities": (["text"],),
    "add_generation_prompt": (True,),
    "spaces_between_special_tokens": (True,),
    "detokenize": (True,),
    "suffix": ("",),
    "length_penalty": (1.0,),
    "priority": (0,),
}
"""Values of unsupported fields that ask for nothing we do not do anyway (null and false always)."""


def _asks_for_nothing(name: str, value: Any) -> bool:
    if value is None or value is False or value in ([], {}):
        return True
    return name in ("safety_identifier", "prompt_cache_key") or value in NEUTRAL.get(name, ())


def typed(kind: type[T], value: dict[str, Any], where: str) -> T:
    """``value`` as a ``kind``, with the reason in a person's words where it is not one.

    Raises:
        CallerError: a field is unknown, unsupported, missing or of the wrong type; names it.
    """
    known = set(getattr(kind, "__struct_fields__", ()))
    for name in [name for name in value if name not in known]:
        if name in UNSUPPORTED and _asks_for_nothing(name, value[name]):
            value = {key: value[key] for key in value if key != name}
        elif name in UNSUPPORTED:
            raise CallerError(f"{where} field `{name}` is not supported", remedy=f"remove `{name}`")
    try:
        return msgspec.convert(value, kind, str_keys=True)
    except (msgspec.ValidationError, RecursionError) as error:
        raise refusal(error, where) from None


def refusal(error: Exception, where: str) -> CallerError:
    text = str(error)
    if "unknown field `" in text:
        name = text.split("`")[1]
        if name in UNSUPPORTED:
            return CallerError(f"{where} field `{name}` is not supported", remedy=f"remove `{name}`")
        return CallerError(f"{where}: {text[0].lower()}{text[1:]}", remedy=f"remove `{name}`, or correct it")
    if "`$.prompt[" in text:
        return CallerError(
            f"{where}: {text}",
            remedy="give `prompt` as one string or one list of token ids; one prompt a line",
        )
    return CallerError(f"{where}: {text}", remedy="correct the value or its type")

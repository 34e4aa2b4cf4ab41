"""From a raw row to what it asks: one of the two forms of a line, or the columns of a table."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from shoal.core.errors import CallerError
from shoal.jobs.bodies import (
    CHAT_URL,
    ChatBody,
    CompletionBody,
    Envelope,
    Message,
    Sampled,
    ShortRow,
    typed,
)
from shoal.jobs.sampling import Sampler, Sampling
from shoal.jobs.sources import Raw
from shoal.jobs.templates import Layout, TokenIds

NOTHING_NAMED = Sampled()
FORM_FIELDS = (*ShortRow.__struct_fields__, *Envelope.__struct_fields__)
SURROGATE_PAIR = re.compile(rb"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}")
LONE_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F][0-9a-fA-F]{2}")


class Asked(msgspec.Struct):
    """What a row asks, checked for itself; ``messages`` or ``prompt`` is set.

    ``logprobs`` of the sampling is in the meaning of SamplingParams; ``seed`` is the one named, if any.
    """

    line: int
    id: str
    sampling: Sampling
    messages: list[dict[str, Any]] | None = None
    prompt: str | TokenIds | None = None
    chat: bool = False
    seed: int | None = None
    echo: bool = False
    columns: bytes = b""
    model: str | None = None
    template_kwargs: dict[str, Any] | None = None


class RowReader:
    """Reads rows of either form, and rows of columns through the job's layout.

    Lines are decoded straight into types; only a line that fails is looked at again, slowly, for the
    reason in words.
    """

    def __init__(self, sampler: Sampler, layout: Layout) -> None:
        self._sampler = sampler
        self._layout = layout
        self._envelope = msgspec.json.Decoder(Envelope)
        self._short = msgspec.json.Decoder(ShortRow)
        self._chat = msgspec.json.Decoder(ChatBody)
        self._completion = msgspec.json.Decoder(CompletionBody)

    def read(self, raw: Raw) -> Asked:
        """Raises CallerError with the reason and the remedy for a row that cannot be run as asked."""
        if raw.error is not None:
            raise raw.error
        data = raw.data
        if isinstance(data, dict):
            return self._read_columns(raw.line, data)
        if self._layout.by_columns:
            return self._read_columns(raw.line, decode_object(data))
        try:
            return self._read_typed(raw.line, data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return self._read_object(raw.line, decode_object(data))

    def _read_typed(self, line: int, data: bytes) -> Asked:
        if b'"body"' not in data:
            return self._short_row(line, self._short.decode(data))
        envelope = self._envelope.decode(data)
        body = (self._chat if envelope.url == CHAT_URL else self._completion).decode(envelope.body)
        return self._batch_row(line, envelope.custom_id, body)

    def _read_object(self, line: int, value: dict[str, Any]) -> Asked:
        if value.keys().isdisjoint(("custom_id", "url", "body", "method")):
            return self._short_row(line, typed(ShortRow, value, "row"))
        body = value.get("body")
        if not isinstance(body, dict):
            raise CallerError(
                "`body` is missing or not an object", remedy="give the request of the row as `body`"
            )
        envelope = typed(Envelope, {**value, "body": msgspec.Raw(b"{}")}, "line")
        if envelope.url == CHAT_URL:
            return self._batch_row(line, envelope.custom_id, typed(ChatBody, body, "body"))
        return self._batch_row(line, envelope.custom_id, typed(CompletionBody, body, "body"))

    def _read_columns(self, line: int, value: dict[str, Any]) -> Asked:
        """A row whose columns a template names, or some of whose columns are kept."""
        layout = self._layout
        kept = layout.kept(value)
        if layout.question is None:
            asked = self._read_object(line, layout.without_kept(value, FORM_FIELDS))
        else:
            asked = self._asked(line, _identifier(line, layout.id_of(value)), NOTHING_NAMED, None)
            asked = self._with_prompt(asked, layout.question(value), None)
        asked.columns = kept
        return asked

    def _short_row(self, line: int, row: ShortRow) -> Asked:
        if (row.prompt is None) == (row.messages is None):
            raise CallerError("the row needs `prompt` or `messages`, one of them", remedy="give one of them")
        identifier = _identifier(line, row.id)
        if row.messages is not None:
            logprobs = row.logprobs
            if isinstance(logprobs, bool) or logprobs is None:
                logprobs = _chat_logprobs(logprobs, row.top_logprobs)
            asked = self._asked(line, identifier, row, logprobs)
            return self._with_messages(asked, row.messages, row.chat_template_kwargs)
        if row.top_logprobs is not None or isinstance(row.logprobs, bool):
            logprobs = _chat_logprobs(bool(row.logprobs), row.top_logprobs)
        else:
            logprobs = row.logprobs
        return self._with_prompt(self._asked(line, identifier, row, logprobs), row.prompt, row.echo)

    def _batch_row(self, line: int, identifier: str, body: ChatBody | CompletionBody) -> Asked:
        if not identifier:
            raise CallerError("`custom_id` is empty", remedy="give each row an id of its own")
        if isinstance(body, CompletionBody):
            asked = self._asked(line, identifier, body, body.logprobs)
            return self._with_prompt(asked, body.prompt, body.echo)
        asked = self._asked(line, identifier, body, _chat_logprobs(body.logprobs, body.top_logprobs))
        return self._with_messages(asked, body.messages, body.chat_template_kwargs)

    def _asked(self, line: int, identifier: str, row: Sampled, logprobs: int | None) -> Asked:
        sampling = self._sampler.effective(row, logprobs)
        if row.seed is not None and not -(2**63) <= row.seed < 2**64:
            raise CallerError(f"seed {row.seed} is out of range", remedy="give a number of at most 64 bits")
        return Asked(line, identifier, sampling, seed=row.seed, model=row.model)

    def _with_messages(
        self, asked: Asked, messages: list[Message], template_kwargs: dict[str, Any] | None
    ) -> Asked:
        if all(message.empty for message in messages):
            raise CallerError("the prompt is empty", remedy="give at least one message with text")
        asked.chat = True
        asked.messages = self._layout.conversation(messages)
        asked.template_kwargs = template_kwargs
        return asked

    def _with_prompt(self, asked: Asked, prompt: str | TokenIds | None, echo: bool | None) -> Asked:
        if prompt is None or len(prompt) == 0:
            raise CallerError("the prompt is empty", remedy="give at least one character or token id")
        if self._layout.examples and not isinstance(prompt, str):
            raise CallerError("worked examples cannot go before token ids", remedy="give the prompt as text")
        if isinstance(prompt, str) and self._layout.chat and not echo:
            asked.chat = True
            asked.messages = self._layout.conversation([Message("user", prompt)])
            return asked
        asked.prompt = self._layout.completion(prompt) if isinstance(prompt, str) else prompt
        if echo:
            asked.echo = True
            asked.sampling = self._sampler.echoing(asked.sampling)
        return asked


def _identifier(line: int, named: str | int | None) -> str:
    return f"row-{line}" if named is None else str(named)


def _chat_logprobs(wanted: bool | None, top: int | None) -> int | None:
    if top is not None and not wanted:
        raise CallerError("`top_logprobs` without `logprobs: true`", remedy="set `logprobs` to true")
    return (top or 0) if wanted else None


def decode_object(data: bytes) -> dict[str, Any]:
    """A line as a JSON object.

    Raises:
        CallerError: it is none; says in which way.
    """
    if b"\0" in data:
        raise CallerError("the line holds NUL bytes", remedy="remove them, or write them as \\u0000")
    try:
        value = msgspec.json.decode(data)
    except UnicodeDecodeError as error:
        raise CallerError(
            f"the line is not valid UTF-8 (byte {error.start})", remedy="save the file as UTF-8"
        ) from None
    except RecursionError:
        raise CallerError("the JSON is nested too deeply", remedy="flatten it") from None
    except msgspec.DecodeError as error:
        if LONE_SURROGATE.search(SURROGATE_PAIR.sub(b"", data)):
            raise CallerError(
                "a \\u escape is half of a surrogate pair",
                remedy="write the character as UTF-8 or as a whole pair",
            ) from None
        raise CallerError(f"the line is not JSON: {error}", remedy="write one JSON object a line") from None
    if not isinstance(value, dict):
        raise CallerError("the line is not a JSON object", remedy="write one JSON object a line")
    return value

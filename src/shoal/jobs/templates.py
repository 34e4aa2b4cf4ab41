"""From columns to a prompt: the job's template, its system text and its worked examples."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeGuard

import jinja2
import jinja2.sandbox
import msgspec
import numpy as np

from shoal.core.errors import CallerError, OperatorError
from shoal.jobs.bodies import Message

TokenIds = list[int] | np.ndarray[Any, Any]
Question = Callable[[dict[str, Any]], str | TokenIds]
"""The prompt of a row of columns: a text, or token ids."""
Turn = dict[str, Any]

ID_COLUMNS = ("custom_id", "id")
FIELD = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")


def columns_of(pattern: str) -> list[str]:
    """The columns that ``from_pattern(pattern)`` reads."""
    return list(dict.fromkeys(name for name in FIELD.findall(pattern) if name))


def from_pattern(pattern: str) -> Question:
    """``'Label: {text}'``: ``{name}`` is a column, ``{{`` and ``}}`` are braces. Where the pattern is one
    column alone and a row has a list of integers there, these are its token ids.

    Raises:
        OperatorError: a lone brace or an empty name.
    """
    for found in FIELD.finditer(pattern):
        if found.group() in "{}" or found.group(1) == "":
            raise OperatorError(
                f"lone brace or empty name at character {found.start() + 1} of --prompt",
                remedy="write {column}, or {{ and }} for braces",
            )

    lone = FIELD.fullmatch(pattern)
    only = lone.group(1) if lone else None

    def question(columns: dict[str, Any]) -> str | TokenIds:
        def value(found: re.Match[str]) -> str:
            name = found.group(1)
            return found.group()[0] if name is None else as_text(columns, name)

        if only is not None and _are_ids(found := columns.get(only)):
            return found
        return FIELD.sub(value, pattern)

    return question


def _are_ids(value: Any) -> TypeGuard[TokenIds]:
    if isinstance(value, list):
        return bool(value) and all(type(item) is int for item in value)
    return isinstance(value, np.ndarray)


def plain(value: Any) -> Any:
    """A column's value as JSON and templates know values: an array as a list."""
    return value.tolist() if isinstance(value, np.ndarray) else value


def as_text(columns: dict[str, Any], name: str) -> str:
    """One column as text: numbers as written, lists and objects as JSON.

    Raises:
        CallerError: the row has none, or null.
    """
    if columns.get(name) is None:
        state = "null" if name in columns else "missing"
        raise CallerError(f"column `{name}` is {state}", remedy="fill it in, or leave the row out")
    value = plain(columns[name])
    if isinstance(value, str):
        return value
    return msgspec.json.encode(value).decode() if isinstance(value, (dict, list, bool)) else str(value)


def from_jinja(text: str, where: str) -> Question:
    """A Jinja template over the columns, in the sandbox; ``row`` is the dictionary of all of them.

    Raises:
        OperatorError: the template does not compile.
    """
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        undefined=jinja2.StrictUndefined, keep_trailing_newline=False
    )
    try:
        template = environment.from_string(text)
    except jinja2.TemplateSyntaxError as error:
        raise OperatorError(
            f"template line {error.lineno}: {error.message}", where=where, remedy="correct the template"
        ) from None

    def question(columns: dict[str, Any]) -> str:
        try:
            values = {name: plain(columns[name]) for name in columns}
            return template.render(**{"row": values, **{str(name): values[name] for name in values}})
        except Exception as error:
            # Whatever a template does with the values of one row must not end the others.
            raise CallerError(
                f"the template fails on this row: {error}", remedy="correct the row or the template"
            ) from None

    return question


@dataclass(frozen=True)
class Example:
    question: str
    answer: str


@dataclass(frozen=True)
class Layout:
    """How the prompts of a job are laid out around what its rows say.

    Attributes:
        question: makes the prompt of a row of columns; None where rows carry their own.
        chat: prompts become user messages.
        system: put first in every conversation that brings no system message.
        examples: worked examples, put before the row's own text in every prompt, so that they are shared.
        keep: columns carried through to the result lines.
        needs: columns that a table must have.
    """

    question: Question | None = None
    chat: bool = False
    system: str | None = None
    examples: Sequence[Example] = ()
    keep: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    _preface: str = field(init=False, default="")

    def __post_init__(self) -> None:
        worked = (
            f"{example.question}{'' if example.question[-1:].isspace() else ' '}{example.answer}\n\n"
            for example in self.examples
        )
        object.__setattr__(self, "_preface", "".join(worked))

    @property
    def by_columns(self) -> bool:
        return self.question is not None or bool(self.keep)

    def kept(self, columns: dict[str, Any]) -> bytes:
        """The kept columns as a JSON object, null where the row has none; empty if none are kept."""
        if not self.keep:
            return b""
        try:
            return msgspec.json.encode({name: plain(columns.get(name)) for name in self.keep})
        except TypeError as error:
            raise CallerError(f"a kept column cannot be written: {error}", remedy="convert it") from None

    def without_kept(self, columns: dict[str, Any], fields: Sequence[str]) -> dict[str, Any]:
        """What is left of a row for its own form, whose ``fields`` stay even where they are kept."""
        return {name: columns[name] for name in columns if name not in self.keep or name in fields}

    def id_of(self, columns: dict[str, Any]) -> str | int | None:
        """Raises CallerError if the id is neither text nor a whole number."""
        value = next((columns[name] for name in ID_COLUMNS if columns.get(name) not in (None, "")), None)
        if value is not None and (isinstance(value, bool) or not isinstance(value, (str, int))):
            raise CallerError("the row's id is neither text nor a whole number", remedy="correct it")
        return value

    def completion(self, prompt: str) -> str:
        """The whole text of a row that is no conversation."""
        return self._preface + prompt

    def conversation(self, messages: list[Message]) -> list[Turn]:
        """The whole conversation of a row: system text, worked examples, then its own messages."""
        turns = [message.turn() for message in messages]
        head: list[Turn] = []
        if turns and turns[0]["role"] == "system":
            head.append(turns.pop(0))
        elif self.system is not None:
            head.append({"role": "system", "content": self.system})
        for example in self.examples:
            head.append({"role": "user", "content": example.question})
            head.append({"role": "assistant", "content": example.answer})
        return head + turns

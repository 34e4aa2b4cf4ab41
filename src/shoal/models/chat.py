"""Messages to one prompt through a model's chat template.

A template is a program from a stranger: it runs in Jinja's immutable sandbox, sees plain values only,
and stops when it has run or written too much. What a template may use beyond Jinja is what
transformers gives it (utils/chat_template_utils.py): ``raise_exception``, ``strftime_now``, a plain
``tojson``, loop controls and the ``generation`` tag.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.filters
import jinja2.parser
import jinja2.sandbox
from jinja2 import nodes
from jinja2.visitor import NodeTransformer

from shoal.core.errors import CallerError, OperatorError

MAX_CHARACTERS = 4 << 20
MAX_SECONDS = 5.0
_MAX_REPEAT = 1 << 20
_MAX_TEMPLATE = 4 << 20
_KNOWS_PARTS = re.compile(r"""\[\s*['"]type['"]\s*\]|\.type\b|\[\s*['"]text['"]\s*\]""")


class _Stopped(jinja2.TemplateError):
    """Raised inside a template that ran or wrote too much."""


class _Clock(threading.local):
    """When the render going on in this thread has to be over."""

    end = float("inf")


_clock = _Clock()


def render(
    template: str | None,
    messages: Sequence[Mapping[str, Any]],
    /,
    *,
    add_generation_prompt: bool = True,
    bos_token: str | None = None,
    eos_token: str | None = None,
    **variables: Any,
) -> str:
    """The prompt for ``messages``, each with a ``role`` and a ``content`` (text, or a list of text parts).

    The result holds the template's own special tokens: encode it with ``add_special=False``.

    Args:
        template: the Jinja source; None means that the model has none.
        variables: further names the template sees, for example ``tools`` or ``enable_thinking``.

    Raises:
        CallerError: no template, messages of the wrong form, or a template that refuses them.
        OperatorError: the template itself is broken.
    """
    if template is None:
        raise CallerError(
            "the model has no chat template",
            remedy="use prompts instead of messages, or give --chat-template FILE",
        )
    known = {"tools": None, "documents": None, "bos_token": bos_token, "eos_token": eos_token} | variables
    known = {name: value for name, value in known.items() if value is not None or name in variables}
    known.setdefault("tools", None)
    known.setdefault("documents", None)
    compiled = _compiled(template)
    prepared = _prepared(messages, keep_parts=_KNOWS_PARTS.search(template) is not None)
    _clock.end = time.monotonic() + MAX_SECONDS
    try:
        return _collected(
            compiled, known | {"messages": prepared, "add_generation_prompt": add_generation_prompt}
        )
    except CallerError:
        raise
    except Exception as error:  # a template can raise anything that Python can
        line = " ".join(str(error).split())[:200] or type(error).__name__
        raise CallerError(
            f"the chat template refuses these messages: {line}", remedy="correct the messages"
        ) from None
    finally:
        _clock.end = float("inf")


def _collected(compiled: jinja2.Template, variables: dict[str, Any]) -> str:
    pieces: list[str] = []
    length = 0
    for piece in compiled.generate(**variables):
        _tick()
        length += len(piece)
        _bounded_length(length)
        pieces.append(piece)
    return "".join(pieces)


def _tick() -> str:
    if time.monotonic() > _clock.end:
        raise _Stopped(f"it takes more than {MAX_SECONDS:g} s")
    return ""


def _prepared(messages: Sequence[Mapping[str, Any]], *, keep_parts: bool) -> list[dict[str, Any]]:
    """Checked copies. A template that knows nothing of parts gets their texts joined by newlines."""
    if not isinstance(messages, Sequence) or isinstance(messages, str | bytes) or not messages:
        raise CallerError("messages must be a list of at least one message", remedy="correct the row")
    prepared = []
    for place, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise CallerError(f"message {place} has no role", remedy="give role and content")
        copy = dict(message)
        content = copy.get("content")
        if isinstance(content, list):
            texts = [_part_text(part, place) for part in content]
            copy["content"] = content if keep_parts else "\n".join(texts)
        elif content is not None and not isinstance(content, str):
            raise CallerError(f"the content of message {place} is neither text nor parts", remedy="give text")
        elif content is None and not (copy.get("tool_calls") or message["role"] == "assistant"):
            raise CallerError(f"message {place} has no content", remedy="give role and content")
        prepared.append(copy)
    return prepared


def _part_text(part: Any, place: int) -> str:
    if isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    raise CallerError(
        f"message {place} holds a part of type {str(kind)[:40]!r}; shoal reads text", remedy="give text parts"
    )


class _Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """Also bounds what one expression can make: ``'x' * 10**9`` is over before any clock looks at it."""

    intercepted_binops = frozenset({"*", "**", "%", "+"})

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        _tick()
        if operator == "*":
            for sized, count in ((left, right), (right, left)):
                if hasattr(sized, "__len__") and isinstance(count, int) and len(sized) * count > _MAX_REPEAT:
                    raise _Stopped("it repeats something too often")
        elif operator == "**" and (not _small(left) or not _small(right)):
            raise _Stopped("it computes with numbers too large")
        elif operator == "+" and hasattr(left, "__len__") and hasattr(right, "__len__"):
            _bounded_length(len(left) + len(right))
        elif operator == "%" and isinstance(left, str):
            _bounded_format(left)
        if all(isinstance(value, int) and value.bit_length() > 4096 for value in (left, right)):
            raise _Stopped("it computes with numbers too large")
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Method and macro calls; a width such as that of ``ljust`` must be small."""
        _tick()
        for value in (*args, *kwargs.values()):
            if isinstance(value, int) and abs(value) > _MAX_REPEAT:
                raise _Stopped("it calls something with a number too large")
        method = getattr(__obj, "__wrapped__", __obj)
        if getattr(method, "__name__", "") in ("format", "format_map"):
            _bounded_format(str(getattr(method, "__self__", "")))
        if getattr(method, "__name__", "") == "replace" and len(args) > 1:
            _bounded_replace(str(method.__self__), args[0], args[1])
        if getattr(method, "__name__", "") == "join" and args:
            args = (_bounded_parts(args[0], len(str(method.__self__))), *args[1:])
        return super().call(__context, __obj, *args, **kwargs)


def _small(value: Any) -> bool:
    return isinstance(value, float) or (isinstance(value, int) and abs(value) <= 1024)


def _bounded_length(length: int) -> None:
    if length > MAX_CHARACTERS:
        raise _Stopped(f"it writes more than {MAX_CHARACTERS} characters")


def _bounded_parts(parts: Any, between: int = 0) -> list[Any]:
    listed = list(parts)
    _bounded_length(sum(len(str(part)) + between for part in listed))
    return listed


def _bounded_replace(text: str, old: Any, new: Any) -> None:
    _bounded_length(len(text) + text.count(str(old)) * len(str(new)))


def _concatenated(*parts: Any) -> str:
    return "".join(map(str, _bounded_parts(parts)))


def _bounded_format(pattern: str) -> None:
    if re.search(r"\d{6}|\*", pattern):
        raise _Stopped("it formats with a width too large")


class _Generation(jinja2.ext.Extension):
    """``{% generation %}`` marks what the assistant wrote, for training; here it stands for its body."""

    tags = {"generation"}

    def parse(self, parser: jinja2.parser.Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Watched(NodeTransformer):
    """Puts the clock into every loop and macro, and bounds what ``~`` makes: neither passes the sandbox."""

    def visit_For(self, node: nodes.For) -> nodes.For:
        self.generic_visit(node)
        node.body.insert(0, nodes.Output([_call("_tick", [])]))
        return node

    def visit_Macro(self, node: nodes.Macro) -> nodes.Macro:
        self.generic_visit(node)
        node.body.insert(0, nodes.Output([_call("_tick", [])]))
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Call:
        self.generic_visit(node)
        return _call("_concatenated", node.nodes)


def _call(name: str, arguments: list[nodes.Expr]) -> nodes.Call:
    return nodes.Call(nodes.Name(name, "load"), arguments, [], None, None)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(str(message))


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    if isinstance(indent, int) and indent > 64:
        raise _Stopped("it indents too far")
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _strftime_now(pattern: str) -> str:
    _bounded_format(pattern)
    return datetime.now().strftime(pattern)


def _indent(text: str, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    if (width if isinstance(width, int) else len(width)) > 64:
        raise _Stopped("it indents too far")
    _bounded_length(len(text) + text.count("\n") * 64)
    return str(jinja2.filters.do_indent(text, width, first, blank))


def _replace(text: Any, old: str, new: str, count: int = -1) -> str:
    _bounded_replace(str(text), old, new)
    return str(text).replace(str(old), str(new), count)


@jinja2.pass_eval_context
def _join(context: nodes.EvalContext, value: Any, d: str = "", attribute: Any = None) -> str:
    between = str(d)
    return str(jinja2.filters.do_join(context, _bounded_parts(value, len(between)), between, attribute))


_CHECKED_FILTERS: dict[str, Callable[..., Any]] = {"indent": _indent, "replace": _replace, "join": _join}


def _environment() -> _Sandbox:
    environment = _Sandbox(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    # Filters that write as much as a number says; no published chat template uses them.
    for name in ("center", "format", "wordwrap"):
        del environment.filters[name]
    for name, checked in _CHECKED_FILTERS.items():
        environment.filters[name] = checked
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    environment.globals["_tick"] = _tick
    environment.globals["_concatenated"] = _concatenated
    return environment


@lru_cache(maxsize=32)
def _compiled(source: str) -> jinja2.Template:
    if len(source) > _MAX_TEMPLATE:
        raise OperatorError("the chat template is too long", remedy="give --chat-template FILE")
    environment = _environment()
    try:
        tree = environment.parse(source)
        _Watched().visit(tree)
        code = environment.compile(tree)
        return environment.template_class.from_code(environment, code, environment.make_globals(None))
    except (jinja2.TemplateError, RecursionError, SyntaxError, ValueError) as error:
        line = " ".join(str(error).split())[:200]
        raise OperatorError(
            f"the chat template is broken: {line}", remedy="give another with --chat-template FILE"
        ) from None

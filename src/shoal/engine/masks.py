"""Which tokens a constrained answer may go on with: choice, regex and JSON schema through llguidance.

A constraint is compiled once and then shared; each sequence walks it with a matcher of its own. The
grammar decides the text and nothing else: end tokens are allowed only where the text so far is complete,
and special tokens never.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from shoal.core.errors import CallerError, InternalError
from shoal.core.request import Constraint

LONGEST = 1 << 20
"""Characters of a constraint; what is longer is a mistake or an attack."""

KEPT = 1024
"""Constraints kept compiled; the one used longest ago goes first."""

_LIMITS: dict[str, Any] = {
    "initial_lexer_fuel": 200_000,
    "max_items_in_row": 20_000,
    "step_max_items": 200_000,
    "max_lexer_states": 50_000,
    "verbose_errors": False,
}
"""Work and memory one answer may cost: a wide object (thousands of keys) fits, a regex whose every
step would take a tenth of a second does not; a lexer state takes 2 kB. See llguidance.LLParserLimits."""

_JSON_OPTIONS: Any = {"whitespace_pattern": r"[\x20\x0A\x0D\x09]{1,32}", "lenient": False}
"""White space between JSON tokens is bounded, so that no answer is all white space."""


class Matcher:
    """How far one answer has got in its grammar."""

    def __init__(self, inner: Any, words: int) -> None:
        self._inner = inner
        self._words = words

    def bits(self) -> npt.NDArray[np.uint32]:
        """The tokens that may come next: bit ``t % 32`` of word ``t // 32``, shape (ceil(V / 32),).

        Raises:
            CallerError: the grammar became too complex on the way.
        """
        raw = self._inner.compute_bitmask()
        self._check()
        bits: npt.NDArray[np.uint32] = np.frombuffer(raw, dtype=np.uint32)[: self._words]
        return bits

    def advance(self, token: int) -> None:
        """The answer goes on with ``token``.

        Raises:
            CallerError: the grammar became too complex.
            InternalError: the token was not allowed.
        """
        if not self._inner.consume_token(token):
            message = self._inner.get_error()
            if "satisfy the grammar" in message:
                raise InternalError(f"token {token} was chosen against its mask", remedy="report it")
            raise _too_complex(message)

    @property
    def finished(self) -> bool:
        """Whether the text is complete and nothing but an end token may follow."""
        return bool(self._inner.is_stopped() and not self._inner.is_error())

    @property
    def accepting(self) -> bool:
        """Whether the text so far is a whole answer."""
        return bool(self._inner.is_accepting())

    def _check(self) -> None:
        if self._inner.is_error():
            raise _too_complex(self._inner.get_error())


class CompiledMask:
    """A constraint, compiled. ``start`` begins an answer."""

    def __init__(self, inner: Any, words: int) -> None:
        self._inner = inner
        self._words = words

    def start(self) -> Matcher:
        return Matcher(self._inner.deep_copy(), self._words)


class MaskCompiler:
    """Compiles constraints for one model, and keeps them. Safe to call from several threads.

    Args:
        backend: gives the tokenizer, a ``tokenizers.Tokenizer``; asked with the first constraint.
        vocabulary: columns of the model's logits; ids the tokenizer does not know are never allowed.
        end_ids: the tokens that end an answer.
    """

    def __init__(self, backend: Callable[[], Any], vocabulary: int, end_ids: Sequence[int]) -> None:
        self.vocabulary = vocabulary
        self._backend = backend
        self._end_ids = [int(token) for token in end_ids]
        self._tokenizer: Any = None
        self._compiled: dict[Constraint, CompiledMask | CallerError] = {}
        self._lock = threading.Lock()

    def compile(self, constraint: Constraint, time_cap_seconds: float = 5.0) -> CompiledMask:
        """The compiled constraint, from the store when it was asked for before.

        Raises:
            CallerError: the constraint is malformed, uses what llguidance does not support, allows no
                text at all, or takes longer than ``time_cap_seconds`` (the tokenizer's own preparation,
                done once, is not counted).
        """
        with self._lock:
            known = self._compiled.pop(constraint, None)
            if known is None:
                try:
                    known = self._build(constraint, time_cap_seconds)
                except CallerError as error:
                    known = error
            self._compiled[constraint] = known
            if len(self._compiled) > KEPT:
                del self._compiled[next(iter(self._compiled))]
        if isinstance(known, CallerError):
            raise CallerError(known.what, where=known.where, remedy=known.remedy)
        return known

    def _build(self, constraint: Constraint, time_cap_seconds: float) -> CompiledMask:
        import llguidance

        if self._tokenizer is None:
            self._tokenizer = self._prepare_tokenizer()
        tokenizer = self._tokenizer
        grammar = _grammar(constraint)

        def construct() -> Any:
            limits = llguidance.LLParserLimits(**_LIMITS)
            matcher = llguidance.LLMatcher(tokenizer, grammar, log_level=0, limits=limits)
            if not matcher.is_error():
                probe = matcher.deep_copy()
                probe.compute_bitmask()
                return probe if probe.is_error() else matcher
            return matcher

        inner = _within(construct, time_cap_seconds, constraint.kind)
        if inner.is_error():
            raise _refused(constraint.kind, inner.get_error())
        return CompiledMask(inner, -(-self.vocabulary // 32))

    def _prepare_tokenizer(self) -> Any:
        """The trie over all tokens that llguidance needs: a second and 70 MB for 262,144 of them.

        llguidance could read the pipeline itself, but would keep a second one in memory.
        """
        import llguidance

        wrapper = llguidance.TokenizerWrapper(_Spelled(self._backend(), self.vocabulary, self._end_ids))
        return llguidance.LLTokenizer(wrapper, eos_token=self._end_ids or None)


class _Spelled:
    """What llguidance asks of a tokenizer: the bytes of every token, and how a text is usually cut.

    Where a grammar leaves one text only, an answer goes on with the tokens that this text is cut into.
    """

    bos_token_id = None

    def __init__(self, backend: Any, vocabulary: int, end_ids: Sequence[int]) -> None:
        decoder = b"" if backend.decoder is None else backend.decoder.__getstate__()
        if b"ByteLevel" not in decoder and b"ByteFallback" not in decoder:
            raise CallerError(
                "the bytes of this model's tokens are not known, so no constraint can be held",
                remedy="leave it out, or use a model with a byte-level or byte-fallback tokenizer",
            )
        spell = _byte_level if b"ByteLevel" in decoder else _byte_fallback
        texts = map(backend.id_to_token, range(vocabulary))
        added = backend.get_added_tokens_decoder().items()
        self.tokens = [b"" if text is None else spell(text) for text in texts]
        self.special_token_ids = [token for token, content in added if content.special and token < vocabulary]
        self.eos_token_id = end_ids[0] if end_ids else None
        self._backend = backend

    def __call__(self, text: bytes) -> list[int]:
        ids: list[int] = self._backend.encode(text.decode(errors="replace"), add_special_tokens=False).ids
        return ids


def _byte_fallback(text: str) -> bytes:
    if len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
        return bytes.fromhex(text[3:5])
    return text.replace("\u2581", " ").encode()


# Byte-level vocabularies (GPT-2's) write a byte that prints as that character, and the others, in
# ascending order, as the characters from 256 on.
_PRINTING = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_BYTE_OF = {chr(byte): byte for byte in _PRINTING}
_BYTE_OF |= {chr(256 + place): byte for place, byte in enumerate(sorted({*range(256)} - {*_PRINTING}))}


def _byte_level(text: str) -> bytes:
    """An added token may be spelled in plain text; its decoder tells them apart in just this way."""
    if all(character in _BYTE_OF for character in text):
        return bytes(_BYTE_OF[character] for character in text)
    return text.encode()


def _grammar(constraint: Constraint) -> str:
    """The constraint in llguidance's language.

    Raises:
        CallerError: it is empty, too long, or not text.
    """
    from llguidance import LLMatcher

    value = constraint.value
    texts = value if isinstance(value, tuple) else (value,)
    if sum(map(len, texts)) > LONGEST:
        raise CallerError(f"{constraint.kind} is longer than {LONGEST} characters", remedy="make it shorter")
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        raise CallerError(
            f"{constraint.kind} holds half of a surrogate pair", remedy="give whole characters"
        ) from None
    if constraint.kind == "choice":
        if not isinstance(value, tuple) or not texts or not all(texts):
            raise CallerError("choice has no text to choose", remedy="give at least one non-empty string")
        # Every character as its code point, so that none of them means anything to the regex.
        quoted = ("".join(f"\\x{{{ord(character):X}}}" for character in text) for text in texts)
        return str(LLMatcher.grammar_from_regex("|".join(quoted)))
    if not isinstance(value, str):
        raise CallerError(f"{constraint.kind} is not one string", remedy="give one string")
    if constraint.kind == "regex":
        return str(LLMatcher.grammar_from_regex(value))
    try:
        schema = json.loads(value)
    except (ValueError, RecursionError) as error:
        raise CallerError(f"json_schema is not JSON: {error}", remedy="give a JSON Schema") from None
    if not isinstance(schema, dict | bool):
        raise CallerError("json_schema is neither an object nor a boolean", remedy="give a JSON Schema")
    if isinstance(schema, bool):
        schema = {} if schema else {"not": {}}
    return str(LLMatcher.grammar_from_json_schema(schema, overrides=_JSON_OPTIONS))


def _within(work: Callable[[], Any], seconds: float, kind: str) -> Any:
    """Run ``work`` in a thread of its own (llguidance lets go of the GIL) for at most ``seconds``.

    A thread cannot be stopped: one that runs over is left behind, and ends at llguidance's own limits.
    """
    answers: list[Any] = []

    def run() -> None:
        try:
            answers.append(work())
        except BaseException as error:  # handed on below: a thread has nobody to raise to
            answers.append(error)

    start = time.monotonic()
    thread = threading.Thread(target=run, name="compile-mask", daemon=True)
    thread.start()
    thread.join(seconds)
    if not answers:
        raise CallerError(
            f"compiling this {kind} took more than {time.monotonic() - start:.1f} s",
            remedy="make it simpler",
        )
    if isinstance(answers[0], BaseException):
        raise _refused(kind, str(answers[0]))
    return answers[0]


def _one_line(message: str) -> str:
    return " ".join(message.replace("<non-verbose/>", "").split())[:300]


def _refused(kind: str, message: str) -> CallerError:
    if message.startswith("NoExtension"):
        message = "no text fits it"
    return CallerError(f"{kind} refused: {_one_line(message)}", remedy="correct or simplify it")


def _too_complex(message: str) -> CallerError:
    return CallerError(
        f"the constraint is too complex to follow: {_one_line(message)}",
        remedy="simplify it (fewer nested or counted repetitions, fewer properties)",
    )

"""Tokens to text, whole or as they come, and texts that end an answer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shoal.core.request import Finished
    from shoal.models.tokenizer import Tokenizer

_UNKNOWN = "\ufffd"
_LONG_WINDOW = 64
_DECIDED = 4
"""A character has at most four bytes, and a token at least one: what lies more than four tokens back is
never completed by a new one."""


def decode(tokenizer: Tokenizer, ids: Iterable[int], skip_special: bool = True) -> str:
    """The text of a whole answer; bytes that are no UTF-8 become U+FFFD."""
    return tokenizer.decode(ids, skip_special)


def answer_text(tokenizer: Tokenizer, finished: Finished) -> str:
    """The text of an answer: cut before a stop string; a token that ended the answer is no text."""
    if finished.text is not None:
        return finished.text
    tokens = finished.tokens[:-1] if isinstance(finished.stop_reason, int) else finished.tokens
    return decode(tokenizer, tokens, finished.request.params.skip_special_tokens)


@lru_cache(maxsize=8)
def _special_ids(backend: Any) -> frozenset[int]:
    if backend is None:
        return frozenset()
    added = backend.get_added_tokens_decoder()
    return frozenset(token for token, content in added.items() if content.special)


@lru_cache(maxsize=8)
def _byte_ids(backend: Any) -> frozenset[int]:
    """The tokens ``<0x00>`` to ``<0xFF>`` of a tokenizer whose decoder reads them as bytes."""
    decoder = None if backend is None else backend.decoder
    if decoder is None or b"ByteFallback" not in decoder.__getstate__():
        return frozenset()
    spellings = (f"<0x{byte:{form}}>" for byte in range(256) for form in ("02X", "02x"))
    found = (backend.token_to_id(spelling) for spelling in spellings)
    return frozenset(token for token in found if token is not None)


class StreamDecoder:
    """Text of one answer as its tokens come: what ``push`` and ``flush`` return joins to ``decode``.

    A window of ids is kept from the last place where one character had ended and the next not begun, one
    token before it included because decoders treat the first token of a text in a way of its own
    (they strip its space). What a coming token may still change is held back:

    - byte-level vocabularies: a trailing U+FFFD, which may be the beginning of a character;
    - vocabularies with byte tokens (``<0xF0>``): the run of them at the end, which the decoder reads as a
      whole: all of it is text, or each byte of it is U+FFFD.
    """

    def __init__(self, tokenizer: Tokenizer, skip_special: bool = True) -> None:
        self._tokenizer = tokenizer
        # The null model's bytes have no pipeline behind them, and need none.
        self._backend = getattr(tokenizer, "backend", None)
        self._skipped = _special_ids(self._backend) if skip_special else frozenset()
        self._bytes = _byte_ids(self._backend)
        self._window: list[int] = []
        self._trailing_bytes = 0
        self._sent = 0

    def push(self, ids: Iterable[int]) -> str:
        """The text that these tokens settle, perhaps none."""
        before = len(self._window) - self._trailing_bytes
        for token in ids:
            token = int(token)
            unknown = self._backend is not None and self._backend.id_to_token(token) is None
            if unknown or token in self._skipped:
                continue
            self._window.append(token)
            self._trailing_bytes = self._trailing_bytes + 1 if token in self._bytes else 0
        settled = len(self._window) - self._trailing_bytes
        if settled == before:
            return ""
        text = self._decode(self._window[:settled])
        if not self._bytes and text.endswith(_UNKNOWN):
            new = text[self._sent : -1]
            self._sent = max(self._sent, len(text) - 1)
            if settled > _LONG_WINDOW:
                self._cut_inside(text)
        else:
            new = text[self._sent :]
            self._start_at(settled - 1, len(self._decode(self._window[settled - 1 : settled])))
        return new

    def flush(self) -> str:
        """What was held back; the answer has ended."""
        text = self._decode(self._window)[self._sent :]
        self._window, self._trailing_bytes, self._sent = [], 0, 0
        return text

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, False)

    def _start_at(self, first: int, sent: int) -> None:
        self._window = self._window[first:]
        self._sent = sent

    def _cut_inside(self, text: str) -> None:
        """Shorten a window whose end is no text: a border where both sides decode to the whole is one
        between characters."""
        for place in range(len(self._window) - 2 * _DECIDED, len(self._window) - _DECIDED + 1):
            left = self._decode(self._window[:place])
            if left + self._decode(self._window[place:]) == text:
                context = len(self._decode(self._window[place - 1 : place]))
                self._start_at(place - 1, context + self._sent - len(left))
                return


class StopStrings:
    """Finds the first of some texts in a text that comes in pieces, wherever the pieces are cut.

    The hit is the stop string that is complete first; of those complete at once, the longest.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._longest = max(map(len, self._stops), default=0)
        self._held = ""

    def push(self, text: str) -> tuple[str, str | None]:
        """The text that no stop string can claim any more, and the stop string found.

        At a hit the text is what stands before it, and what comes after it is dropped.
        """
        buffer = self._held + text
        hits = [(place + len(stop), place, stop) for stop in self._stops if (place := buffer.find(stop)) >= 0]
        if hits:
            _, place, stop = min(hits)
            self._held = ""
            return buffer[:place], stop
        held = self._claimable(buffer)
        self._held = buffer[len(buffer) - held :]
        return buffer[: len(buffer) - held], None

    def flush(self) -> str:
        """What was held back; no more text comes."""
        held, self._held = self._held, ""
        return held

    def _claimable(self, buffer: str) -> int:
        """Length of the longest end of ``buffer`` that begins a stop string."""
        for length in range(min(self._longest - 1, len(buffer)), 0, -1):
            tail = buffer[-length:]
            if any(stop.startswith(tail) for stop in self._stops):
                return length
        return 0

"""The model of ``--model null``: bytes for tokens, no weights, no files. For tests and dry runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from shoal.core.errors import CallerError
from shoal.core.request import Constraint, Ids

END, RESERVED = 0, 3
"""Ids 0 (end of text), 1 and 2 (turns of a conversation) are special; byte b is id 3 + b."""


class ByteTokenizer:
    """UTF-8 bytes, one id each."""

    vocabulary_size = 256 + RESERVED

    def encode(self, text: str, add_special: bool = True) -> Ids:
        """Raises CallerError for text that UTF-8 cannot carry (a lone surrogate)."""
        try:
            data = text.encode()
        except UnicodeEncodeError as error:
            raise CallerError(f"the text is not valid Unicode: {error.reason}", remedy="repair it") from None
        return np.frombuffer(data, dtype=np.uint8).astype(np.int32) + RESERVED

    def encode_batch(self, texts: Sequence[str], add_special: bool = True) -> list[Ids]:
        return [self.encode(text, add_special) for text in texts]

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        return bytes(i - RESERVED for i in ids if i >= RESERVED).decode(errors="replace")


class NullModel:
    """The cold side of the null executor; see ``shoal.engine.model.TextModel`` for the meanings."""

    name = "null"
    vocabulary = ByteTokenizer.vocabulary_size
    end_ids: tuple[int, ...] = (END,)

    def __init__(self, max_model_len: int) -> None:
        self.max_model_len = max_model_len
        self.tokenizer = ByteTokenizer()
        self.identity: dict[str, Any] = {"model": "null", "max_model_len": max_model_len}

    def render(self, messages: list[dict[str, Any]], arguments: dict[str, Any]) -> str:
        return "".join(f"{m.get('role')}: {m.get('content')}\n" for m in messages) + "assistant: "

    def check_constraint(self, constraint: Constraint) -> None:
        raise CallerError("the null model knows no constraints", remedy="use a real model")

"""The model of ``--model null``: bytes for tokens, no weights, no files. For tests and dry runs."""

from __future__ import annotations

from typing import Any

from shoal.core.errors import CallerError
from shoal.core.request import Constraint
from shoal.models.tokenizer import Tokenizer

END, RESERVED = 0, 3
"""Ids 0 (end of text), 1 and 2 (turns of a conversation) are special; byte b is id 3 + b."""
_SPECIAL = ("<end>", "<turn>", "<reply>")


def byte_tokenizer() -> Tokenizer:
    """UTF-8 bytes, one id each: a byte-level vocabulary without merges."""
    from tokenizers import AddedToken, decoders, models, pre_tokenizers
    from tokenizers import Tokenizer as Backend

    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    # Byte-level vocabularies write an unprintable byte as the next free character above 255 (GPT-2).
    letter = {byte: chr(byte) for byte in printable} | {b: chr(256 + i) for i, b in enumerate(others)}
    vocabulary = {text: i for i, text in enumerate(_SPECIAL)}
    vocabulary |= {letter[byte]: RESERVED + byte for byte in range(256)}
    # Without merges there is nothing to remember; the cache would hold ten thousand whole prompts.
    backend = Backend(models.BPE(vocab=vocabulary, merges=[], cache_capacity=0))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(text, special=True) for text in _SPECIAL])
    return Tokenizer(backend, bos_token=None, eos_token=_SPECIAL[END])


class NullModel:
    """The cold side of the null executor; see ``shoal.engine.model.TextModel`` for the meanings."""

    name = "null"
    vocabulary = 256 + RESERVED
    end_ids: tuple[int, ...] = (END,)

    def __init__(self, max_model_len: int) -> None:
        self.max_model_len = max_model_len
        self.tokenizer = byte_tokenizer()
        self.identity: dict[str, Any] = {"model": "null", "max_model_len": max_model_len}

    def render(self, messages: list[dict[str, Any]], arguments: dict[str, Any]) -> str:
        return "".join(f"{m.get('role')}: {m.get('content')}\n" for m in messages) + "assistant: "

    def check_constraint(self, constraint: Constraint) -> None:
        raise CallerError("the null model knows no constraints", remedy="use a real model")

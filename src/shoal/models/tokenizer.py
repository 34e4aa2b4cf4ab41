"""Text to token ids and back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from shoal.core.errors import CallerError, OperatorError, ShoalError
from shoal.core.request import Ids
from shoal.models.gguf_tokenizer import gguf_backend, special_id

_MAX_IDS = 1 << 24
_SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class Tokenizer:
    """One model's tokenizer over a pipeline of the ``tokenizers`` library.

    Attributes:
        backend: the ``tokenizers.Tokenizer``.
        vocabulary_size: ids run from 0 to vocabulary_size - 1, added tokens included.
        bos_token, eos_token: texts of the special tokens, None where the model has none.
        bos_id, eos_id: their ids.
        add_bos: whether ``encode`` puts BOS first.
    """

    def __init__(self, backend: Backend, *, bos_token: str | None, eos_token: str | None) -> None:
        backend.no_truncation()
        backend.no_padding()
        self.backend = backend
        self.vocabulary_size: int = backend.get_vocab_size(with_added_tokens=True)
        self.bos_token = bos_token
        self.eos_token = eos_token
        self.bos_id = None if bos_token is None else self.token_to_id(bos_token)
        self.eos_id = None if eos_token is None else self.token_to_id(eos_token)
        ends = backend.encode("").ids
        self.add_bos = self.bos_id is not None and ends[:1] == [self.bos_id]

    def encode(self, text: str, add_special: bool = True) -> Ids:
        """Ids of ``text``, shape (tokens,), int32; with ``add_special`` the model's BOS and EOS rule holds.

        Raises:
            CallerError: the text holds lone surrogates, which no encoding can carry, or the model's
                rules break on it.
        """
        try:
            return np.array(self.backend.encode(text, add_special_tokens=add_special).ids, dtype=np.int32)
        except BaseException as error:
            raise _refusal(text, error) from None

    def encode_batch(self, texts: Sequence[str], add_special: bool = True) -> list[Ids]:
        """``encode`` for each text, in parallel.

        Raises:
            CallerError: as ``encode`` for the first text that it refuses.
        """
        try:
            found = self.backend.encode_batch_fast(list(texts), add_special_tokens=add_special)
        except BaseException as error:
            _refusal("", error)
            return [self.encode(text, add_special) for text in texts]
        return [np.array(encoding.ids, dtype=np.int32) for encoding in found]

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """The text of ``ids``; ids outside the vocabulary give nothing."""
        listed = ids.tolist() if isinstance(ids, np.ndarray) else list(ids)
        return self.backend.decode(listed, skip_special_tokens=skip_special)

    def token_to_id(self, text: str) -> int | None:
        """The id of the token spelled exactly so in the vocabulary, or None."""
        return self.backend.token_to_id(text)

    def id_to_token(self, token: int) -> str | None:
        """The vocabulary's spelling of one id, or None."""
        return self.backend.id_to_token(token)


def _refusal(text: Any, error: BaseException) -> BaseException:
    """What to raise for a text that the library refuses: it says TypeError, or panics in Rust."""
    if type(error).__name__ == "PanicException":
        return CallerError(
            f"the model's tokenizer breaks on {str(text)[:40]!r}", remedy="change the text, or the model"
        )
    if isinstance(error, TypeError | UnicodeEncodeError):
        return CallerError(
            f"the text {str(text)[:40]!a} cannot be encoded as UTF-8", remedy="remove lone surrogates"
        )
    raise error


def gguf_tokenizer(metadata: dict[str, Any], where: str) -> Tokenizer:
    """The tokenizer that GGUF metadata describes.

    Raises:
        OperatorError: missing, inconsistent, or of a kind that shoal does not know.
    """
    with _guarded(where):
        backend = gguf_backend(metadata, where)
        tokens = metadata["tokenizer.ggml.tokens"]
        bos, eos = special_id(metadata, "bos", where), special_id(metadata, "eos", where)
        return Tokenizer(
            backend,
            bos_token=None if bos is None else tokens[bos],
            eos_token=None if eos is None else tokens[eos],
        )


def folder_tokenizer(file: Path, config: dict[str, Any]) -> Tokenizer:
    """The tokenizer of a ``tokenizer.json``, its special tokens named by ``tokenizer_config.json``.

    Whether BOS and EOS are added is for the post-processor in ``tokenizer.json`` to say, as transformers 5
    has it; ``add_bos_token`` speaks of older formats.

    Raises:
        OperatorError: the file is damaged.
    """
    with _guarded(str(file)):
        backend = Backend.from_str(file.read_text(encoding="utf-8"))
        named = {name: content(config.get(name)) for name in _SPECIAL_NAMES}
        _add_stated_tokens(backend, config, named)
        if max([*backend.get_vocab().values(), *backend.encode("").ids], default=0) >= _MAX_IDS:
            raise ValueError("it has an id above any model's vocabulary")
        return Tokenizer(backend, bos_token=named["bos_token"], eos_token=named["eos_token"])


@contextmanager
def _guarded(where: str) -> Iterator[None]:
    """Whatever the library says about a damaged file becomes one line; a Rust panic is no Exception."""
    try:
        yield
    except (ShoalError, MemoryError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        raise OperatorError(
            f"the tokenizer cannot be built: {str(error)[:160]}",
            where=where,
            remedy="download the file again",
        ) from None


def content(token: Any) -> str | None:
    """The text of a special token, which is stated as its text or as an object around it."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) and text else None


def _add_stated_tokens(backend: Backend, config: dict[str, Any], named: dict[str, str | None]) -> None:
    """Tokens that tokenizer_config.json names are matched whole, as transformers does it.

    A named token that the vocabulary lacks is left out: it would get an id the model has no row for.
    """
    stated = config.get("added_tokens_decoder")
    known = backend.get_added_tokens_decoder()
    for number, entry in stated.items() if isinstance(stated, dict) else ():
        text = content(entry)
        if text is None or not number.isdecimal() or int(number) in known:
            continue
        flags = {name: entry.get(name) is True for name in ("lstrip", "rstrip", "normalized", "single_word")}
        backend.add_tokens([AddedToken(text, special=entry.get("special") is True, **flags)])
    matched = {token.content for token in backend.get_added_tokens_decoder().values() if token.special}
    backend.add_special_tokens(
        [
            AddedToken(text, normalized=False, special=True)
            for text in named.values()
            if text is not None and text not in matched and backend.token_to_id(text) is not None
        ]
    )

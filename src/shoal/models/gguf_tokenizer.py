"""A ``tokenizers`` pipeline from GGUF metadata.

Two kinds of vocabulary: ``llama`` (SentencePiece pieces with byte fallback) and ``gpt2`` (byte-level
BPE with stated merges). The rules, which merges a SentencePiece vocabulary implies and which tokens
are matched whole, are those by which transformers (integrations/gguf/gguf_tokenizer_mapping.py)
reads the same files.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE

from shoal.core.errors import OperatorError

_CONTROL, _USER_DEFINED = 3, 4
_SPACE = "\u2581"
_HASH_BASE = 0x9E3779B97F4A7C15  # odd, so that it has an inverse
_HASH_SPREAD = np.uint64(0xD1B54A32D192ED03)
_MARK_BITS = 22

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# ``tokenizer.ggml.pre`` -> the pattern that cuts text before merging, and whether GPT-2's own cuts the
# pieces once more.
SPLITS: dict[str, tuple[str | None, bool]] = {
    "default": (None, True),
    "gpt-2": (None, True),
    "gpt2": (None, True),
    "smollm": (r"\p{N}", True),
    "llama3": (_LLAMA3, False),
    "llama-v3": (_LLAMA3, False),
    "llama-bpe": (_LLAMA3, False),
    "qwen2": (_QWEN2, False),
    "deepseek-r1-qwen": (_QWEN2, False),
    "tekken": (_TEKKEN, False),
}


def gguf_backend(metadata: dict[str, Any], where: str) -> Tokenizer:
    """The pipeline that the metadata of one GGUF file describes, BOS and EOS rules included.

    Raises:
        OperatorError: the vocabulary is missing, inconsistent, or of a kind shoal does not know.
    """
    kind = metadata.get("tokenizer.ggml.model")
    tokens = metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list) or not tokens or not all(isinstance(token, str) for token in tokens):
        raise OperatorError("holds no vocabulary", where=where, remedy="use a file with tokenizer metadata")
    types = _numbers(metadata, "tokenizer.ggml.token_type", len(tokens), where)
    if kind == "llama":
        backend = _sentencepiece(metadata, tokens, where)
    elif kind == "gpt2":
        backend = _byte_level(metadata, tokens, where)
    else:
        raise OperatorError(
            f"tokenizer.ggml.model is {str(kind)[:40]!r}, which shoal does not read",
            where=where,
            remedy="use a file whose tokenizer is llama or gpt2",
        )
    _add_whole_tokens(backend, tokens, types, byte_level=kind == "gpt2")
    _add_ends(backend, metadata, tokens, where)
    return backend


def special_id(metadata: dict[str, Any], name: str, where: str) -> int | None:
    """The id under ``tokenizer.ggml.<name>_token_id``, or None where the file states none.

    Raises:
        OperatorError: the id is no index into the vocabulary.
    """
    value = metadata.get(f"tokenizer.ggml.{name}_token_id")
    if value is None:
        return None
    tokens = metadata.get("tokenizer.ggml.tokens")
    size = len(tokens) if isinstance(tokens, list) else 0
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < size:
        raise OperatorError(
            f"{name}_token_id is {str(value)[:40]}, outside the vocabulary of {size}",
            where=where,
            remedy="convert the model again",
        )
    return value


def adds_bos(metadata: dict[str, Any]) -> bool:
    """Whether encoding puts BOS first; SentencePiece files that do not say so mean yes (llama.cpp)."""
    return bool(metadata.get("tokenizer.ggml.add_bos_token", metadata.get("tokenizer.ggml.model") == "llama"))


def _numbers(metadata: dict[str, Any], key: str, count: int, where: str) -> np.ndarray | None:
    values = metadata.get(key)
    if values is None:
        return None
    if not isinstance(values, np.ndarray) or len(values) != count:
        raise OperatorError(
            f"{key} does not have one number for each of the {count} tokens",
            where=where,
            remedy="convert the model again",
        )
    return values


def _sentencepiece(metadata: dict[str, Any], tokens: list[str], where: str) -> Tokenizer:
    gemma = str(metadata.get("general.architecture", "")).startswith("gemma")
    if gemma:
        # Gemma's files spell runs of spaces as spaces, and its merge order is the order of the file.
        tokens = [_SPACE * len(text) if " " in text and not text.strip() else text for text in tokens]
    vocabulary = {text: index for index, text in enumerate(tokens)}
    stated = metadata.get("tokenizer.ggml.merges")
    scores = _numbers(metadata, "tokenizer.ggml.scores", len(tokens), where)
    if stated is not None:
        merges = _stated_merges(stated, vocabulary, where)
    elif gemma:
        merges = _implied_merges(list(vocabulary))
    elif scores is None:
        raise OperatorError(
            "holds neither scores nor merges for its vocabulary",
            where=where,
            remedy="convert the model again",
        )
    else:
        merges = _implied_merges(_by_score(tokens, scores, vocabulary))
    unknown = special_id(metadata, "unknown", where)
    backend = Tokenizer(
        BPE(
            vocab=vocabulary,
            merges=merges,
            fuse_unk=True,
            byte_fallback=True,
            unk_token=tokens[unknown] if gemma and unknown is not None else None,
        )
    )
    prefix = bool(metadata.get("tokenizer.ggml.add_space_prefix", not gemma))
    ending = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if gemma:
        backend.normalizer = normalizers.Replace(" ", _SPACE)
        backend.pre_tokenizer = pre_tokenizers.Split(" ", behavior="merged_with_previous")
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(
            replacement=_SPACE, prepend_scheme="first" if prefix else "never", split=False
        )
        if prefix:
            ending.append(decoders.Strip(content=" ", left=1))
    backend.decoder = decoders.Sequence(ending)
    return backend


def _by_score(tokens: list[str], scores: np.ndarray, vocabulary: dict[str, int]) -> list[str]:
    # A text that stands twice takes its last score, as its last id, and keeps its first place.
    places = np.fromiter((vocabulary[text] for text in vocabulary), dtype=np.int64, count=len(vocabulary))
    texts = list(vocabulary)
    order = np.argsort(-scores[places].astype(np.float64), kind="stable")
    return [texts[index] for index in order]


def _implied_merges(texts: Sequence[str]) -> list[tuple[str, str]]:
    """Every way to make a piece of two others, best piece first, longest left part first.

    SentencePiece merges the adjacent pair whose *result* ranks best; a BPE table that lists all pairs
    of a piece at the rank of that piece does the same.

    Vocabularies have millions of cuts, so pieces are looked up by a hash of their code points c_k,
    sum of c_k B^k modulo 2^64, which any substring gets from one running sum. A wrong hit would name a
    merge whose result is no piece, and the library refuses such a table.
    """
    lengths = np.fromiter(map(len, texts), dtype=np.int64, count=len(texts))
    points = np.frombuffer("".join(texts).encode("utf-32-le"), dtype=np.uint32).astype(np.uint64)
    powers = np.full(len(points) + 1, _HASH_BASE, np.uint64)
    inverses = np.full(len(points) + 1, pow(_HASH_BASE, -1, 1 << 64), np.uint64)
    powers[0] = inverses[0] = 1
    np.cumprod(powers, out=powers)
    np.cumprod(inverses, out=inverses)
    sums = np.zeros(len(points) + 1, np.uint64)
    np.cumsum((points * _HASH_SPREAD + np.uint64(1)) * powers[:-1], out=sums[1:])

    def hashes(begin: np.ndarray, end: np.ndarray) -> np.ndarray:
        found: np.ndarray = (sums[end] - sums[begin]) * inverses[begin]
        return found

    ends = np.cumsum(lengths)
    starts = ends - lengths
    whole = hashes(starts, ends)
    order = np.argsort(whole)
    table = whole[order]
    marked = np.zeros(1 << _MARK_BITS, np.bool_)
    marked[whole >> np.uint64(64 - _MARK_BITS)] = True

    counts = np.maximum(lengths - 1, 0)
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    start, end = np.repeat(starts, counts), np.repeat(ends, counts)
    cut = end - 1 - within
    pairs = np.stack([hashes(start, cut), hashes(cut, end)])
    likely = marked[pairs >> np.uint64(64 - _MARK_BITS)].all(axis=0)
    pairs = pairs[:, likely]
    places = np.minimum(np.searchsorted(table, pairs), len(table) - 1)
    exact = (table[places] == pairs).all(axis=0)
    lefts, rights = order[places[:, exact]].tolist()
    return list(zip(map(texts.__getitem__, lefts), map(texts.__getitem__, rights)))


def _stated_merges(stated: Any, vocabulary: dict[str, int], where: str) -> list[tuple[str, str]]:
    if not isinstance(stated, list):
        raise OperatorError("merges are not a list of texts", where=where, remedy="convert the model again")
    merges: list[tuple[str, str]] = []
    for line in stated:
        left, _, right = str(line).partition(" ")
        if left not in vocabulary or right not in vocabulary or left + right not in vocabulary:
            raise OperatorError(
                f"merge {str(line)[:80]!r} names pieces outside the vocabulary",
                where=where,
                remedy="convert the model again",
            )
        merges.append((left, right))
    return merges


def _byte_level(metadata: dict[str, Any], tokens: list[str], where: str) -> Tokenizer:
    spelling = byte_spelling()
    alphabet = set(spelling)
    vocabulary = {
        text if alphabet.issuperset(text) else "".join(spelling[byte] for byte in text.encode()): index
        for index, text in enumerate(tokens)
    }
    merges = _stated_merges(metadata.get("tokenizer.ggml.merges", []), vocabulary, where)
    name = metadata.get("tokenizer.ggml.pre", "default")
    if name not in SPLITS:
        raise OperatorError(
            f"tokenizer.ggml.pre is {str(name)[:40]!r}, which shoal does not know",
            where=where,
            remedy=f"use a model whose pre-tokenizer is one of {', '.join(SPLITS)}",
        )
    backend = Tokenizer(
        BPE(vocab=vocabulary, merges=merges, continuing_subword_prefix="", end_of_word_suffix="")
    )
    pattern, again = SPLITS[name]
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=again)
    first = [] if pattern is None else [pre_tokenizers.Split(Regex(pattern), behavior="isolated")]
    backend.pre_tokenizer = pre_tokenizers.Sequence([*first, last])
    backend.decoder = decoders.ByteLevel()
    return backend


def byte_spelling() -> list[str]:
    """The character that stands for each of the 256 bytes in a byte-level vocabulary (GPT-2's table).

    Printable Latin-1 bytes stand for themselves; the others take the characters from U+0100 on.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {byte: chr(byte) for byte in printable}
    for place, byte in enumerate(byte for byte in range(256) if byte not in table):
        table[byte] = chr(0x100 + place)
    return [table[byte] for byte in range(256)]


def _add_whole_tokens(
    backend: Tokenizer, tokens: list[str], types: np.ndarray | None, *, byte_level: bool
) -> None:
    """Control tokens (special) and user-defined ones (plain text) are never cut into pieces.

    In a byte-level vocabulary a control token with characters outside the byte alphabet is one that
    the converter marked by mistake; adding it would grow the vocabulary.
    """
    if types is None:
        return
    alphabet = set(byte_spelling())
    control = [tokens[index] for index in np.flatnonzero(types == _CONTROL)]
    backend.add_special_tokens(
        [
            AddedToken(text, normalized=False, special=True)
            for text in control
            if text and (not byte_level or alphabet.issuperset(text))
        ]
    )
    backend.add_tokens(
        [
            AddedToken(tokens[index], normalized=False, special=False)
            for index in np.flatnonzero(types == _USER_DEFINED)
            if backend.token_to_id(tokens[index]) is not None
        ]
    )


def _add_ends(backend: Tokenizer, metadata: dict[str, Any], tokens: list[str], where: str) -> None:
    bos, eos = special_id(metadata, "bos", where), special_id(metadata, "eos", where)
    named = (bos, eos, special_id(metadata, "unknown", where), special_id(metadata, "padding", where))
    backend.add_special_tokens(
        [
            AddedToken(tokens[index], normalized=False, special=True)
            for index in named
            if index is not None and tokens[index]
        ]
    )
    parts = ["$A:0"]
    used = []
    if bos is not None and adds_bos(metadata):
        parts.insert(0, f"{tokens[bos]}:0")
        used.append((tokens[bos], bos))
    if eos is not None and metadata.get("tokenizer.ggml.add_eos_token", False):
        parts.append(f"{tokens[eos]}:0")
        used.append((tokens[eos], eos))
    backend.post_processor = processors.TemplateProcessing(single=parts, special_tokens=used)

"""Small tokenizers of every kind whose decoding differs, as ``shoal.models.tokenizer.Tokenizer``."""

from __future__ import annotations

from functools import cache

from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from shoal.models.tokenizer import Tokenizer

TEXTS = [
    "yes no positive negative neutral 0123456789",
    '{"label": "a", "why": [true, null]}',
    "né 日本語 😀 👩‍👩‍👧",
]
WORDS = ["▁", "▁▁", "▁hello", "▁a", "a", "b", "x", "é", "日", "�", ".", "!"]


@cache
def byte_level() -> Tokenizer:
    """Byte-level BPE, as GPT-2, Llama 3 and Qwen have it; ids 0 and 1 are special."""
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=340,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(TEXTS * 3, trainer)
    return Tokenizer(backend, bos_token="<s>", eos_token="</s>")


@cache
def byte_fallback(strip: bool = False) -> Tokenizer:
    """SentencePiece style, as Gemma has it and (with ``strip``) Llama 2: ``▁`` for a space, byte tokens."""
    words = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)] + WORDS
    letters = sorted(set("".join(TEXTS[:2])) - set(words) - {" "})
    vocabulary = {word: token for token, word in enumerate(words + letters)}
    backend = Backend(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Replace(" ", "▁")
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence(parts + ([decoders.Strip(" ", 1, 0)] if strip else []))
    backend.add_special_tokens(["<s>", "</s>"])
    return Tokenizer(backend, bos_token="<s>", eos_token="</s>")


@cache
def word_piece() -> Tokenizer:
    words = ["[UNK]", "a", "##b", "c", ".", "n't", "##,", "hello", "!"]
    vocabulary = {word: token for token, word in enumerate(words)}
    backend = Backend(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.decoder = decoders.WordPiece()
    return Tokenizer(backend, bos_token=None, eos_token=None)


@cache
def metaspace(decoder: bool = True) -> Tokenizer:
    """``▁`` for a space and no byte tokens; without its decoder the library joins words by spaces."""
    vocabulary = {word: token for token, word in enumerate(["<unk>", "▁", "a", "▁hello", "▁▁", "x"])}
    backend = Backend(models.WordLevel(vocabulary, unk_token="<unk>"))
    if decoder:
        backend.decoder = decoders.Metaspace()
    return Tokenizer(backend, bos_token=None, eos_token=None)

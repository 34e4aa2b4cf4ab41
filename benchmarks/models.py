"""``llama135m`` as a Hugging Face folder: random bfloat16 weights from a seed, and a tokenizer to match."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from shoal.bench.jobs import LLAMA_135M
from shoal.models.registry import read_architecture

LONGEST = 12
"""Characters of a made-up token."""


def llama135m(folder: Path, seed: int = 0) -> Path:
    """Written once; returns the folder."""
    if (folder / "config.json").is_file():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for parameter in read_architecture(LLAMA_135M).parameters():
        for part in parameter.parts:
            norm = parameter.role == "norm"
            drawn = (
                torch.ones(part.shape)
                if norm
                else torch.empty(part.shape).normal_(0, 0.02, generator=generator)
            )
            tensors[part.name] = drawn.to(torch.bfloat16)
    save_file(tensors, folder / "model.safetensors")
    _tokenizer(LLAMA_135M["vocab_size"], np.random.default_rng(seed)).save(str(folder / "tokenizer.json"))
    # Last, so that a folder that has it is whole.
    (folder / "config.json").write_text(json.dumps(LLAMA_135M))
    return folder


def _tokenizer(size: int, rng: np.random.Generator) -> Tokenizer:
    """Byte-level BPE whose merges are drawn at random."""
    texts = sorted(pre_tokenizers.ByteLevel.alphabet())
    known, merges = set(texts), []
    while len(texts) < size:
        left, right = (texts[i] for i in rng.integers(0, len(texts), 2))
        if len(left + right) <= LONGEST and left + right not in known:
            known.add(left + right)
            texts.append(left + right)
            merges.append((left, right))
    tokenizer = Tokenizer(models.BPE(vocab={text: i for i, text in enumerate(texts)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer

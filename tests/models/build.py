"""Small model files for tests: GGUF bytes written field by field, tiny vocabularies, tiny weights."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np

GGUF_CODES = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


def gguf_string(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


def gguf_value(value: Any) -> bytes:
    """Type number and value, the type taken from the Python value."""
    if isinstance(value, bool):
        return struct.pack("<I?", 7, value)
    if isinstance(value, int):
        return struct.pack("<Ii", 5, value) if value < 0 else struct.pack("<II", 4, value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    if isinstance(value, str):
        return struct.pack("<I", 8) + gguf_string(value)
    if isinstance(value, np.ndarray):
        kind = {"f": 6, "i": 5, "I": 4, "?": 7}[value.dtype.char]
        return struct.pack("<IIQ", 9, kind, len(value)) + value.tobytes()
    head = struct.pack("<IIQ", 9, 8, len(value))
    return head + b"".join(gguf_string(text) for text in value)


def gguf_bytes(
    metadata: dict[str, Any], tensors: dict[str, np.ndarray], *, version: int = 3, alignment: int = 32
) -> bytes:
    """One file with float32 tensors."""
    out = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(metadata))
    for key, value in metadata.items():
        out += gguf_string(key) + gguf_value(value)
    offset = 0
    for name, tensor in tensors.items():
        out += gguf_string(name) + struct.pack("<I", tensor.ndim)
        out += struct.pack(f"<{tensor.ndim}Q", *reversed(tensor.shape)) + struct.pack("<IQ", 0, offset)
        offset += -(-tensor.nbytes // alignment) * alignment
    out += bytes(-len(out) % alignment)
    for tensor in tensors.values():
        raw = tensor.astype(np.float32).tobytes()
        out += raw + bytes(-len(raw) % alignment)
    return out


def sentencepiece_vocabulary() -> tuple[list[str], np.ndarray, np.ndarray]:
    """Texts, scores and types of a small SentencePiece vocabulary with byte fallback."""
    tokens = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    types = [2, 3, 3] + [6] * 256
    scores = [0.0] * len(tokens)
    letters = [*"▁abcdefghijklmnopqrstuvwxyz.,!?ABC0123456789\n"]
    pairs = [
        "▁a",
        "▁t",
        "th",
        "he",
        "▁th",
        "▁the",
        "in",
        "er",
        "an",
        "and",
        "▁and",
        "ing",
        "▁▁",
        "▁▁▁▁",
        "ll",
    ]
    for rank, text in enumerate(pairs):
        tokens.append(text)
        types.append(1)
        scores.append(float(-rank))
    for rank, text in enumerate(letters):
        tokens.append(text)
        types.append(1)
        scores.append(float(-100 - rank))
    tokens += ["<tool>", "<|im_end|>"]
    types += [4, 3]
    scores += [-1000.0, -1000.0]
    return tokens, np.array(scores, np.float32), np.array(types, np.int32)


def llama_metadata(**changes: Any) -> dict[str, Any]:
    """Metadata of a two-layer Llama whose tokenizer is a small SentencePiece vocabulary."""
    tokens, scores, types = sentencepiece_vocabulary()
    metadata: dict[str, Any] = {
        "general.architecture": "llama",
        "general.name": "tiny",
        "llama.block_count": 1,
        "llama.context_length": 128,
        "llama.embedding_length": 16,
        "llama.feed_forward_length": 24,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.dimension_count": 4,
        "llama.rope.freq_base": 10000.0,
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }
    metadata.update(changes)
    return {key: value for key, value in metadata.items() if value is not None}


def llama_tensors(seed: int = 0, *, vocabulary: int | None = None) -> dict[str, np.ndarray]:
    """Tensors that fit ``llama_metadata``, under GGUF names."""
    random = np.random.default_rng(seed)
    shapes = {
        "token_embd.weight": (vocabulary or len(sentencepiece_vocabulary()[0]), 16),
        "output_norm.weight": (16,),
        "blk.0.attn_norm.weight": (16,),
        "blk.0.attn_q.weight": (16, 16),
        "blk.0.attn_k.weight": (8, 16),
        "blk.0.attn_v.weight": (8, 16),
        "blk.0.attn_output.weight": (16, 16),
        "blk.0.ffn_norm.weight": (16,),
        "blk.0.ffn_gate.weight": (24, 16),
        "blk.0.ffn_up.weight": (24, 16),
        "blk.0.ffn_down.weight": (16, 24),
    }
    return {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def write_gguf(path: Path, metadata: dict[str, Any], tensors: dict[str, np.ndarray], **options: Any) -> Path:
    path.write_bytes(gguf_bytes(metadata, tensors, **options))
    return path


def safetensors_bytes(header: dict[str, Any] | bytes, data: bytes) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + data

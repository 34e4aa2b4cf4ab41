"""GGUF block types to float32.

Every block holds a scale (and for some a minimum) and small integers; the layouts are those of
ggml-quants.h of the ggml project, and results equal the ``gguf`` package's bit for bit, because the
operations on float32 are the same ones in the same order.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

# Blocks handled at once: the temporaries then stay in a core's cache.
_CHUNK_ELEMENTS = 1 << 16


def dequantize(blocks: Bytes, stored: str, out: Floats) -> None:
    """Fill ``out`` (blocks, elements), float32, from ``blocks`` (blocks, bytes a block), uint8.

    Raises:
        KeyError: a type that is not a block type shoal reads.
    """
    decode = DECODERS[stored]
    step = max(1, _CHUNK_ELEMENTS // out.shape[1])
    for start in range(0, len(blocks), step):
        decode(blocks[start : start + step], out[start : start + step])


def _scale(columns: Bytes) -> Floats:
    """Two bytes a block, (blocks, 2), as float16: (blocks, 1) in float32."""
    return np.ascontiguousarray(columns).view(np.float16).astype(np.float32)


def _q8_0(blocks: Bytes, out: Floats) -> None:
    np.multiply(blocks[:, 2:].view(np.int8), _scale(blocks[:, :2]), out=out)


def _q4_0(blocks: Bytes, out: Floats) -> None:
    packed = blocks[:, 2:]
    numbers = np.empty((len(blocks), 32), np.int8)
    np.bitwise_and(packed, 15, out=numbers[:, :16], casting="unsafe")
    np.right_shift(packed, 4, out=numbers[:, 16:], casting="unsafe")
    numbers -= np.int8(8)
    np.multiply(numbers, _scale(blocks[:, :2]), out=out)


def _q5_0(blocks: Bytes, out: Floats) -> None:
    numbers = np.empty((len(blocks), 32), np.uint8)
    packed = blocks[:, 6:]
    np.bitwise_and(packed, 15, out=numbers[:, :16])
    np.right_shift(packed, 4, out=numbers[:, 16:])
    fifth = np.unpackbits(np.ascontiguousarray(blocks[:, 2:6]), axis=1, bitorder="little")
    numbers |= fifth << np.uint8(4)
    signed = numbers.view(np.int8)
    signed -= np.int8(16)
    np.multiply(signed, _scale(blocks[:, :2]), out=out)


def _scales_and_minima(packed: Bytes) -> tuple[Floats, Floats]:
    """Eight 6-bit scales and eight 6-bit minima from 12 bytes (blocks, 12): each (blocks, 8)."""
    low_scales, low_minima, rest = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    scales = np.concatenate([low_scales & 63, (rest & 15) | ((low_scales >> 2) & 48)], axis=1)
    minima = np.concatenate([low_minima & 63, (rest >> 4) | ((low_minima >> 2) & 48)], axis=1)
    return scales.astype(np.float32), minima.astype(np.float32)


def _scale_shift(blocks: Bytes, numbers: Bytes, out: Floats) -> None:
    """Q4_K and Q5_K: number * (scale * 6-bit scale) - (minimum * 6-bit minimum), 32 numbers each."""
    scales, minima = _scales_and_minima(blocks[:, 4:16])
    scales *= _scale(blocks[:, 0:2])
    minima *= _scale(blocks[:, 2:4])
    shaped = out.reshape(-1, 8, 32)
    np.multiply(numbers, scales[:, :, None], out=shaped)
    np.subtract(shaped, minima[:, :, None], out=shaped)


def _nibbles(packed: Bytes, count: int, width: int) -> Bytes:
    """Low then high halves of each run of ``width`` bytes: (blocks, count, width)."""
    numbers = np.empty((len(packed), count // 2, 2, width), np.uint8)
    runs = packed.reshape(-1, count // 2, width)
    np.bitwise_and(runs, 15, out=numbers[:, :, 0])
    np.right_shift(runs, 4, out=numbers[:, :, 1])
    return numbers.reshape(-1, count, width)


def _q4_k(blocks: Bytes, out: Floats) -> None:
    _scale_shift(blocks, _nibbles(blocks[:, 16:], 8, 32), out)


def _q5_k(blocks: Bytes, out: Floats) -> None:
    numbers = _nibbles(blocks[:, 48:], 8, 32)
    high = blocks[:, None, 16:48] >> np.arange(8, dtype=np.uint8)[:, None]
    high &= np.uint8(1)
    high <<= np.uint8(4)
    numbers |= high
    _scale_shift(blocks, numbers, out)


def _q6_k(blocks: Bytes, out: Floats) -> None:
    numbers = _nibbles(blocks[:, :128], 4, 64).reshape(-1, 2, 4, 32)
    shifts = np.array([0, 2, 4, 6], np.uint8)[:, None]
    high = blocks[:, 128:192].reshape(-1, 2, 1, 32) >> shifts
    high &= np.uint8(3)
    high <<= np.uint8(4)
    numbers |= high
    signed = numbers.view(np.int8)
    signed -= np.int8(32)
    scales = blocks[:, 192:208].view(np.int8).astype(np.float32) * _scale(blocks[:, 208:210])
    np.multiply(signed.reshape(-1, 16, 16), scales[:, :, None], out=out.reshape(-1, 16, 16))


DECODERS: dict[str, Callable[[Bytes, Floats], None]] = {
    "Q4_0": _q4_0,
    "Q5_0": _q5_0,
    "Q8_0": _q8_0,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
}

"""Every block type against the ``gguf`` package, bit for bit."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch
from gguf.quants import dequantize as reference
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.kernels import native
from shoal.models.gguf import BLOCK_TYPES
from shoal.models.tensors.dequantize import DECODERS, dequantize
from tests.sizes import size

# Where the float16 numbers of each block lie: scale, and for the K types the minimum.
SCALES = {"Q4_0": (0,), "Q5_0": (0,), "Q8_0": (0,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}
LAYOUT = {name: (elements, bytes_) for name, elements, bytes_ in BLOCK_TYPES.values()}
EXTREMES = np.array([0.0, -0.0, 65504.0, -65504.0, 6e-8, -6e-8, 6.1e-5, 1.0], np.float16)


def random_blocks(stored: str, count: int, seed: int) -> np.ndarray:
    """Any bits at all, but finite scales: (count, bytes a block)."""
    random = np.random.default_rng(seed)
    blocks = random.integers(0, 256, (count, LAYOUT[stored][1]), np.uint8)
    for at in SCALES[stored]:
        bits = random.integers(0, 1 << 16, count, np.uint16)
        bits[(bits & 0x7C00) == 0x7C00] &= 0x83FF
        scales = np.where(random.random(count) < 0.3, random.choice(EXTREMES, count), bits.view(np.float16))
        blocks[:, at : at + 2] = scales.astype(np.float16)[:, None].view(np.uint8)
    return blocks


@pytest.mark.parametrize("stored", sorted(DECODERS))
@settings(max_examples=size(30, 1000), deadline=None)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 3000))
def test_equals_the_gguf_package(stored: str, seed: int, count: int) -> None:
    blocks = random_blocks(stored, count, seed)
    ours = np.empty((count, LAYOUT[stored][0]), np.float32)
    dequantize(blocks, stored, ours)
    theirs = reference(blocks, gguf.GGMLQuantizationType[stored])
    assert np.array_equal(ours.view(np.uint32), theirs.reshape(ours.shape).view(np.uint32))


def test_all_block_types_are_covered() -> None:
    plain = {"F32", "F16", "BF16"}
    assert set(DECODERS) == set(SCALES) == set(LAYOUT) - plain


@pytest.mark.skipif(not native.available(), reason="the kernels were not built")
@pytest.mark.parametrize("stored", sorted(DECODERS))
@settings(max_examples=size(30, 1000), deadline=None)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(0, 300), threads=st.sampled_from([1, 2, 4]))
def test_the_compiled_twin_gives_the_same_bits(stored: str, seed: int, count: int, threads: int) -> None:
    blocks = random_blocks(stored, count, seed)
    plain = np.empty((count, LAYOUT[stored][0]), np.float32)
    dequantize(blocks, stored, plain)
    session = native.Session(threads)
    for dtype in (torch.float32, torch.bfloat16):
        out = torch.full(plain.shape, torch.nan, dtype=dtype)
        session.decode(stored, blocks, out)
        wanted = torch.from_numpy(plain).to(dtype)
        bits = torch.int32 if dtype == torch.float32 else torch.int16
        assert torch.equal(out.view(bits), wanted.view(bits))


def test_the_compiled_twin_knows_every_type() -> None:
    assert set(native.BLOCKS) == set(DECODERS)

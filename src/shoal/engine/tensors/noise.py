"""Noise that is a pure function of (seed of the request, index of the output token, token id).

Nothing is drawn from a stream, so the noise of a token does not depend on which rows stand beside it, in
which order, on which device, or how often a step was computed again. The integers are the same
everywhere; the two logarithms agree between devices to rounding.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

U64 = npt.NDArray[np.uint64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_LARGEST_UNIFORM = 1.0 - 2.0**-24


def _mix64(value: U64) -> U64:
    """The finaliser of splitmix64 (Steele, Lea, Flood 2014): a bijection of 64-bit integers."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def noise_keys(seeds: U64, index: npt.NDArray[np.integer]) -> npt.NDArray[np.int32]:
    """Two 32-bit keys for each (seed, output index): shape (n,) each in, (n, 2) int32 out."""
    with np.errstate(over="ignore"):
        stream = _mix64(seeds.astype(np.uint64) + _GOLDEN)
        key = _mix64(stream ^ _mix64((index.astype(np.uint64) + np.uint64(1)) * _GOLDEN))
    return key.reshape(-1, 1).view(np.int32)


def _xor_shift_right(value: torch.Tensor, bits: int) -> None:
    """``value ^= value >> bits`` with zeros shifted in, in place; torch shifts int32 with its sign."""
    shifted = value >> bits
    shifted &= (1 << (32 - bits)) - 1
    value ^= shifted


def exponential(keys: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Standard exponential noise for candidate tokens.

    The integer hash is lowbias32 (Chris Wellons, 2018) with the second key added between its
    multiplications. The resolution lies at the small end, where the winners of a Gumbel-max draw come
    from: 31 bits, so a token of probability 2**-24 still wins as often as it should.

    Args:
        keys: shape (n, 2), int32, from ``noise_keys``.
        ids: token ids, int32, shape (n, m), or (m,) for the same ids in every row.

    Returns:
        shape (n, m), float32, positive.
    """
    mixed = ids ^ keys[:, :1]
    _xor_shift_right(mixed, 16)
    mixed *= 0x7FEB352D
    mixed += keys[:, 1:]
    _xor_shift_right(mixed, 15)
    mixed *= 0x846CA68B - 2**32
    _xor_shift_right(mixed, 16)
    mixed &= 0x7FFFFFFF
    uniform = mixed.to(torch.float32)
    uniform.add_(0.5).mul_(2.0**-31).clamp_(max=_LARGEST_UNIFORM)
    return uniform.neg_().log1p_().neg_()


def gumbel(keys: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Gumbel noise: adding it to logits and taking the largest draws from their softmax. As above."""
    return exponential(keys, ids).log_().neg_()

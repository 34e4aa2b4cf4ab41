"""Rotary position embedding as data: the base, the scaling, and the inverse frequencies they give.

Formulas and their defaults are those of the published checkpoints as ``transformers`` computes them:
linear scaling (kaiokendev 2023), llama3 (Llama 3.1 model card), YaRN (Peng et al. 2023, sections 3.1-3.4).
All arithmetic on vectors is float32, all on single numbers is double, as there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Linear:
    """Positions are divided by ``factor``."""

    factor: float


@dataclass(frozen=True, slots=True)
class Llama3:
    """Wavelengths above ``original / low`` are stretched, those below ``original / high`` kept."""

    factor: float
    low: float
    high: float
    original: int


@dataclass(frozen=True, slots=True)
class Yarn:
    """Dimensions that turn less than ``beta_slow`` times in ``original`` positions are stretched."""

    factor: float
    original: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float = 1.0


@dataclass(frozen=True, slots=True)
class Factors:
    """Each frequency divided by a number of its own: how GGUF files write Llama 3's rule down."""

    factors: tuple[float, ...]


Scaling: TypeAlias = Linear | Llama3 | Yarn | Factors | None


@dataclass(frozen=True, slots=True)
class Rotary:
    """How queries and keys turn with position; the first half of a head is paired with the second."""

    base: float
    size: int
    scaling: Scaling = None

    @property
    def attention_factor(self) -> float:
        """Multiplies both cosine and sine."""
        return self.scaling.attention_factor if isinstance(self.scaling, Yarn) else 1.0

    def inverse_frequencies(self) -> F32:
        """Radians a position for each pair of dimensions, shape (size / 2,), float32."""
        exponent = np.arange(0, self.size, 2, dtype=np.float32) / np.float32(self.size)
        turns = np.power(np.float32(self.base), exponent)
        match self.scaling:
            case None:
                return np.float32(1.0) / turns
            case Linear(factor):
                return np.float32(1.0) / turns / np.float32(factor)
            case Factors(factors):
                return np.float32(1.0) / (turns * np.array(factors, dtype=np.float32))
            case Llama3():
                return _llama3(np.float32(1.0) / turns, self.scaling)
            case Yarn():
                return _yarn(turns, self.base, self.size, self.scaling)


def yarn_attention_factor(factor: float, mscale: float | None, mscale_all_dim: float | None) -> float:
    """The scale on cosine and sine that YaRN recommends: 0.1 ln(factor) + 1."""

    def scale(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    return scale(mscale) / scale(mscale_all_dim) if mscale and mscale_all_dim else scale(1.0)


def _llama3(inverse: F32, scaling: Llama3) -> F32:
    wavelength = np.float32(2 * math.pi) / inverse
    stretched = inverse / np.float32(scaling.factor)
    smooth = np.float32(scaling.original) / wavelength - np.float32(scaling.low)
    smooth = smooth / np.float32(scaling.high - scaling.low)
    between = (1 - smooth) * inverse / np.float32(scaling.factor) + smooth * inverse
    result = np.where(wavelength > scaling.original / scaling.low, stretched, between)
    return np.where(wavelength < scaling.original / scaling.high, inverse, result).astype(np.float32)


def _yarn(turns: F32, base: float, size: int, scaling: Yarn) -> F32:
    def dimension(rotations: float) -> float:
        """The dimension that turns ``rotations`` times within the original length."""
        ratio = math.log(scaling.original / (rotations * 2 * math.pi))
        return size * ratio / (2 * math.log(base))

    low, high = dimension(scaling.beta_fast), dimension(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, size - 1)
    if low == high:
        high += 0.001  # the ramp would have no width
    ramp = (np.arange(size // 2, dtype=np.float32) - np.float32(low)) / np.float32(high - low)
    kept = 1 - np.clip(ramp, 0, 1)
    interpolated = np.float32(1.0) / (np.float32(scaling.factor) * turns)
    return (interpolated * (1 - kept) + (np.float32(1.0) / turns) * kept).astype(np.float32)

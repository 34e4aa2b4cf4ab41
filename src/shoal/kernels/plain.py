"""Operators on rows in plain torch: norm, rotary turn, product, gated activation.

These are the twins: what every faster kernel must equal within its stated tolerance. R is rows.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """x / sqrt(mean(x^2) + epsilon) * weight over the last axis, in float32; the type of ``x`` comes back."""
    wide = x.float()
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True).add_(epsilon))
    return (wide * scale).mul_(weight).to(x.dtype)


def rotary_table(position: Tensor, inverse: Tensor, factor: float) -> tuple[Tensor, Tensor]:
    """Cosine and sine of position * inverse frequency, both times ``factor``.

    Args:
        position: (R,), integers. inverse: (size / 2,), float32.

    Returns:
        Two tensors (R, 1, size / 2), float32.
    """
    angle = (position.float()[:, None] * inverse[None, :])[:, None, :]
    return angle.cos().mul_(factor), angle.sin().mul_(factor)


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Turn each pair (x[i], x[i + size / 2]) by its angle; ``x`` is (R, heads, size)."""
    first, second = x.chunk(2, dim=-1)
    turned = torch.cat((first * cosine - second * sine, second * cosine + first * sine), dim=-1)
    return turned.to(x.dtype)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x @ weight.T + bias: (R, inputs) and (outputs, inputs) to (R, outputs)."""
    return functional.linear(x, weight, bias)


def gated(x: Tensor, activation: str) -> Tensor:
    """activation(gate) * up, where ``x`` is (R, 2 * n) with gate before up."""
    gate, up = x.chunk(2, dim=-1)
    if activation == "silu":
        return functional.silu(gate) * up
    return functional.gelu(gate, approximate="tanh") * up

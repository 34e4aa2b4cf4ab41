"""Each plain operator against its formula in double precision."""

from __future__ import annotations

import math

import pytest
import torch

from shoal.kernels.plain import gated, linear, rms_norm, rotary_table, rotate


def test_rms_norm_is_computed_in_float32_and_keeps_the_type() -> None:
    x, weight = torch.randn(5, 3, 16) * 10, torch.randn(16)
    wide = x.double()
    wanted = wide / (wide.square().mean(-1, keepdim=True) + 1e-3).sqrt() * weight.double()
    torch.testing.assert_close(rms_norm(x, weight, 1e-3).double(), wanted, atol=1e-5, rtol=1e-5)
    narrow = rms_norm(x.bfloat16(), weight, 1e-3)
    assert narrow.dtype == torch.bfloat16
    torch.testing.assert_close(narrow, rms_norm(x.bfloat16().float(), weight, 1e-3).bfloat16())


def test_rotation_is_multiplication_of_complex_numbers() -> None:
    position, inverse = torch.tensor([0, 3, 1000]), torch.tensor([1.0, 0.1, 0.01])
    x = torch.randn(3, 2, 6)
    found = rotate(x, *rotary_table(position, inverse, 1.25))
    pairs = torch.complex(x[..., :3].double(), x[..., 3:].double())
    angle = position.double()[:, None, None] * inverse.double()
    turned = pairs * torch.polar(torch.full_like(angle, 1.25), angle)
    torch.testing.assert_close(found.double(), torch.cat([turned.real, turned.imag], -1), atol=1e-4, rtol=0)


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
def test_gate_comes_before_up(activation: str) -> None:
    x = torch.randn(4, 10, dtype=torch.float64)
    gate, up = x[:, :5], x[:, 5:]
    if activation == "silu":
        wanted = gate / (1 + torch.exp(-gate)) * up
    else:
        inner = math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3)
        wanted = 0.5 * gate * (1 + torch.tanh(inner)) * up
    torch.testing.assert_close(gated(x, activation), wanted)


def test_linear_adds_its_bias() -> None:
    x, weight, bias = torch.randn(3, 4), torch.randn(5, 4), torch.randn(5)
    torch.testing.assert_close(linear(x, weight, bias), x @ weight.T + bias)
    torch.testing.assert_close(linear(x, weight), x @ weight.T)

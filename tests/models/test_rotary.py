"""Inverse frequencies against those of ``transformers``, to the last bit but one."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from shoal.models.registry import read_architecture
from shoal.models.rotary import Factors, Rotary, yarn_attention_factor

PUBLISHED: dict[str, dict[str, Any]] = {
    "plain": {"rope_theta": 500000.0},
    "linear": {"rope_scaling": {"type": "linear", "factor": 4.0}},
    "llama-3.1": {
        "rope_theta": 500000.0,
        "rope_scaling": {
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
            "rope_type": "llama3",
        },
    },
    "qwen2.5-yarn": {
        "rope_theta": 1000000.0,
        "max_position_embeddings": 131072,
        "rope_scaling": {"factor": 4.0, "original_max_position_embeddings": 32768, "type": "yarn"},
    },
    "yarn-every-field": {
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 40,
            "original_max_position_embeddings": 4096,
            "beta_fast": 24,
            "beta_slow": 2,
            "mscale": 1.0,
            "mscale_all_dim": 0.8,
            "truncate": False,
        }
    },
    "yarn-attention-factor": {
        "rope_scaling": {"rope_type": "yarn", "factor": 2.0, "attention_factor": 0.7, "beta_fast": None}
    },
}


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("head_size", [64, 80, 128])
def test_frequencies_are_those_of_the_reference(name: str, head_size: int) -> None:
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    fields = {"num_attention_heads": 8, "head_dim": head_size, "max_position_embeddings": 8192}
    fields |= PUBLISHED[name]
    theirs = LlamaRotaryEmbedding(LlamaConfig(**(fields | _copied(fields))))
    architecture = read_architecture({"architectures": ["LlamaForCausalLM"], **fields})
    ours = architecture.layers[0].attention.rotary
    found, wanted = ours.inverse_frequencies(), theirs.inv_freq.numpy()
    assert found.dtype == np.float32
    np.testing.assert_array_max_ulp(found, wanted, maxulp=2)
    assert ours.attention_factor == pytest.approx(theirs.attention_scaling, rel=1e-12)


def _copied(fields: dict[str, Any]) -> dict[str, Any]:
    """The reference writes into the objects it is given."""
    return {key: dict(value) for key, value in fields.items() if isinstance(value, dict)}


def test_factors_divide_each_frequency() -> None:
    plain = Rotary(10000.0, 8).inverse_frequencies()
    scaled = Rotary(10000.0, 8, Factors((1.0, 2.0, 4.0, 8.0))).inverse_frequencies()
    np.testing.assert_allclose(scaled, plain / [1, 2, 4, 8], rtol=1e-6)


def test_yarn_recommends_its_attention_factor() -> None:
    assert yarn_attention_factor(1.0, None, None) == 1.0
    assert yarn_attention_factor(40.0, None, None) == pytest.approx(0.1 * math.log(40) + 1)
    assert yarn_attention_factor(40.0, 1.0, 1.0) == 1.0


def test_a_turn_at_a_long_position_is_the_references() -> None:
    """Angles are float32 products, as there; the tables agree where angles are large."""
    inverse = torch.from_numpy(Rotary(10000.0, 64).inverse_frequencies())
    reference = 1.0 / (10000.0 ** (torch.arange(0, 64, 2, dtype=torch.int64).float() / 64))
    assert ((inverse * 4096).cos() - (reference * 4096).cos()).abs().max() < 1e-3

"""What an architecture says of itself: tensors, sizes, cost; and what published configurations become."""

from __future__ import annotations

from typing import Any

import pytest

from shoal.models.architecture import Architecture
from shoal.models.registry import read_architecture
from tests.models.tiny import VARIANTS, Variant, reference

GEMMA_270M: dict[str, Any] = {
    "architectures": ["Gemma3ForCausalLM"],
    "_sliding_window_pattern": 6,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 640,
    "intermediate_size": 2048,
    "max_position_embeddings": 32768,
    "num_attention_heads": 4,
    "num_hidden_layers": 18,
    "num_key_value_heads": 1,
    "query_pre_attn_scalar": 256,
    "rope_local_base_freq": 10000.0,
    "rope_scaling": None,
    "rope_theta": 1000000.0,
    "sliding_window": 512,
    "use_bidirectional_attention": False,
    "vocab_size": 262144,
}
GEMMA_4B: dict[str, Any] = {
    "architectures": ["Gemma3ForConditionalGeneration"],
    "boi_token_index": 255999,
    "eoi_token_index": 256000,
    "eos_token_id": [1, 106],
    "image_token_index": 262144,
    "mm_tokens_per_image": 256,
    "text_config": {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    },
    "vision_config": {"hidden_size": 1152},
}


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_needs_exactly_the_tensors_of_the_reference(variant: Variant) -> None:
    theirs = reference(variant)
    values = theirs.config.to_dict() | {"architectures": [f"{variant.architecture}ForCausalLM"]}
    architecture = read_architecture(values)
    needed = {p.name: p.shape for each in architecture.parameters() for p in each.parts}
    stored = {
        name: tuple(tensor.shape)
        for name, tensor in theirs.state_dict().items()
        if not architecture.ignores(name)
    }
    assert needed == stored
    assert architecture.parameter_count == sum(p.numel() for p in theirs.parameters())


def test_gemma_270m_layer_by_layer() -> None:
    architecture = read_architecture(GEMMA_270M)
    full = [i for i, layer in enumerate(architecture.layers) if layer.attention.window is None]
    assert full == [5, 11, 17]
    assert {layer.attention.window for layer in architecture.layers} == {None, 512}
    for index, layer in enumerate(architecture.layers):
        assert layer.attention.rotary.base == (1_000_000.0 if index in full else 10_000.0)
    assert architecture.parameter_count == 268_098_176
    assert architecture.embed.scale == 640**0.5
    assert architecture.head.tied
    assert architecture.longest == 32768


def test_newer_fields_say_the_same_as_older_ones() -> None:
    newer = dict(GEMMA_270M)
    for name in ("rope_theta", "rope_local_base_freq", "rope_scaling", "_sliding_window_pattern"):
        del newer[name]
    kinds = ["full_attention" if (i + 1) % 6 == 0 else "sliding_attention" for i in range(18)]
    newer |= {
        "layer_types": kinds,
        "dtype": "bfloat16",
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 1000000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        },
    }
    assert read_architecture(newer) == read_architecture(GEMMA_270M)


def test_scaling_in_the_older_form_is_the_far_seeing_layers_alone() -> None:
    architecture = read_architecture(GEMMA_4B)
    assert architecture.embed.vocabulary == 262_208
    for layer in architecture.layers:
        assert (layer.attention.rotary.scaling is None) == (layer.attention.window is not None)
    assert architecture.canonical("language_model.model.norm.weight") == "model.norm.weight"
    assert architecture.canonical("model.language_model.norm.weight") == "model.norm.weight"
    assert architecture.ignores("vision_tower.vision_model.post_layernorm.weight")


def cost_of(architecture: Architecture, position: int, emits: bool) -> int:
    """Multiply-adds counted matrix by matrix."""
    hidden, total = architecture.embed.hidden, 0
    for layer in architecture.layers:
        a, wide = layer.attention, layer.attention.heads * layer.attention.head_size
        seen = min(position + 1, a.window or position + 1)
        total += hidden * (wide + 2 * a.kv_heads * a.head_size) + wide * hidden + 2 * wide * seen
        total += 3 * hidden * layer.mlp.intermediate
    return 2 * (total + (hidden * architecture.embed.vocabulary if emits else 0))


@pytest.mark.parametrize("emits", [False, True])
@pytest.mark.parametrize("position", [0, 511, 512, 4000])
@pytest.mark.parametrize("config", [GEMMA_270M, GEMMA_4B], ids=["270m", "4b"])
def test_cost_of_a_row(config: dict, position: int, emits: bool) -> None:
    architecture = read_architecture(config)
    assert architecture.row_flops(position, emits=emits) == cost_of(architecture, position, emits)


def test_bytes() -> None:
    architecture = read_architecture(GEMMA_270M)
    norms = sum(p.elements for p in architecture.parameters() if p.role == "norm")
    assert architecture.weight_bytes(4) == 4 * 268_098_176
    assert architecture.weight_bytes(2) == 2 * 268_098_176 + 2 * norms
    assert architecture.kv_bytes_per_token(2) == 18 * 2 * 256 * 2


def test_mistrals_window_is_4096_unless_it_is_said_or_null() -> None:
    base = {"architectures": ["MistralForCausalLM"]}
    assert read_architecture(base).layers[0].attention.window == 4096
    assert read_architecture(base | {"sliding_window": None}).layers[0].attention.window is None
    assert read_architecture(base | {"sliding_window": 7}).layers[0].attention.window == 7


def test_qwens_window_starts_at_a_layer_and_needs_its_switch() -> None:
    base = {"architectures": ["Qwen2ForCausalLM"], "num_hidden_layers": 4, "sliding_window": 9}
    base |= {"max_window_layers": 3, "num_key_value_heads": 8}
    windows = [layer.attention.window for layer in read_architecture(base).layers]
    assert windows == [None] * 4
    windows = [x.attention.window for x in read_architecture(base | {"use_sliding_window": True}).layers]
    assert windows == [None, None, None, 9]

"""Tiny random models of every architecture and variant, made by ``transformers`` and saved as it saves."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

SIZES = {
    "vocab_size": 160,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    # Far above what is usual, so that attention and norms matter and the best logits lie apart.
    "initializer_range": 0.12,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN_FULL = YARN | {
    "beta_fast": 16.0,
    "beta_slow": 2.0,
    "mscale": 1.0,
    "mscale_all_dim": 0.5,
    "truncate": False,
}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}


@dataclass(frozen=True)
class Variant:
    name: str
    architecture: str
    fields: dict[str, Any] = field(default_factory=dict)


def _variants(architecture: str, **named: dict[str, Any]) -> list[Variant]:
    return [
        Variant(f"{architecture.lower()}-{name.replace('_', '-')}", architecture, fields)
        for name, fields in named.items()
    ]


VARIANTS = [
    *_variants(
        "Llama",
        plain={},
        tied={"tie_word_embeddings": True},
        biases={"attention_bias": True, "mlp_bias": True},
        head_size={"head_dim": 24, "num_attention_heads": 4},
        one_kv_head={"num_key_value_heads": 1},
        linear={"rope_parameters": LINEAR},
        llama3={"rope_parameters": LLAMA3},
        yarn={"rope_parameters": YARN},
        yarn_full={"rope_parameters": YARN_FULL},
        yarn_factor={"rope_parameters": YARN | {"attention_factor": 1.3}},
    ),
    *_variants(
        "Mistral",
        plain={"sliding_window": None},
        window={"sliding_window": 8},
        head_size={"sliding_window": None, "head_dim": 32},
    ),
    *_variants(
        "Qwen2",
        plain={},
        tied={"tie_word_embeddings": True},
        window={"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
        layer_types={
            "use_sliding_window": True,
            "sliding_window": 8,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
        yarn={"rope_parameters": YARN},
    ),
    *_variants(
        "Qwen3",
        plain={"head_dim": 32},
        tied={"head_dim": 16, "tie_word_embeddings": True},
        biases={"head_dim": 16, "attention_bias": True},
        window={"head_dim": 16, "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
        yarn={"head_dim": 16, "rope_parameters": YARN},
    ),
    *_variants(
        "Gemma3",
        plain={"head_dim": 32, "sliding_window": 8, "num_hidden_layers": 7, "query_pre_attn_scalar": 32},
        scalar={"head_dim": 16, "sliding_window": 8, "query_pre_attn_scalar": 40},
        untied={"head_dim": 16, "sliding_window": 8, "tie_word_embeddings": False},
        biases={"head_dim": 16, "sliding_window": 8, "attention_bias": True},
        linear={
            "head_dim": 16,
            "sliding_window": 8,
            "layer_types": ["sliding_attention", "full_attention", "full_attention"],
            "rope_parameters": {
                "full_attention": LINEAR | {"rope_theta": 1000000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            },
        },
    ),
]


def reference(variant: Variant, seed: int = 0) -> Any:
    """The model of a variant in ``transformers``, float32, every vector random too."""
    import transformers

    name = "Gemma3Text" if variant.architecture == "Gemma3" else variant.architecture
    config = getattr(transformers, f"{name}Config")(**(SIZES | variant.fields))
    torch.manual_seed(seed)
    model = getattr(transformers, f"{variant.architecture}ForCausalLM")(config)
    return randomise(model)


def randomise(model: Any) -> Any:
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter += 0.3 * torch.randn_like(parameter)
    return model.eval()


def save(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder, max_shard_size="5GB")
    return folder

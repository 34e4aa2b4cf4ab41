"""Writes a ``transformers`` model as a GGUF file in the layout of llama.cpp's converter.

The rules are those of convert_hf_to_gguf.py: q and k of the llama architecture permuted within each
head, Gemma's norm weights plus one, Llama 3's rope scaling as a tensor of factors.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

ARCHITECTURES = {"Llama": "llama", "Mistral": "llama", "Qwen2": "qwen2", "Qwen3": "qwen3", "Gemma3": "gemma3"}
NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "post_attention_layernorm": "ffn_norm",
}
GEMMA_NAMES = NAMES | {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
TOP = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def permute(weights: np.ndarray, heads: int) -> np.ndarray:
    """LlamaModel.permute of the converter."""
    halves = weights.reshape(heads, 2, weights.shape[0] // heads // 2, *weights.shape[1:])
    return halves.swapaxes(1, 2).reshape(weights.shape)


def stored_name(name: str, architecture: str) -> str:
    stem, ending = name.rsplit(".", 1)
    if stem in TOP:
        return f"{TOP[stem]}.{ending}"
    _, _, layer, rest = stem.split(".", 3)
    return f"blk.{layer}.{(GEMMA_NAMES if architecture == 'gemma3' else NAMES)[rest]}.{ending}"


def llama3_factors(head_size: int, rope: dict[str, Any]) -> np.ndarray:
    """The table that the converter writes as ``rope_freqs.weight``."""
    factors = []
    for exponent in torch.arange(0, head_size, 2, dtype=torch.float32) / head_size:
        wavelength = 2 * math.pi * rope["rope_theta"] ** float(exponent)
        low = rope["original_max_position_embeddings"] / rope["low_freq_factor"]
        high = rope["original_max_position_embeddings"] / rope["high_freq_factor"]
        if wavelength < high:
            factors.append(1.0)
        elif wavelength > low:
            factors.append(rope["factor"])
        else:
            smooth = rope["original_max_position_embeddings"] / wavelength - rope["low_freq_factor"]
            smooth /= rope["high_freq_factor"] - rope["low_freq_factor"]
            factors.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return np.array(factors, np.float32)


def add_metadata(writer: gguf.GGUFWriter, config: Any, architecture: str) -> None:
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_key_length(head_size)
    writer.add_value_length(head_size)
    rope = config.rope_parameters
    if architecture == "gemma3":
        writer.add_sliding_window(config.sliding_window)
        pattern = [kind == "sliding_attention" for kind in config.layer_types]
        if pattern != [(layer + 1) % 6 != 0 for layer in range(len(pattern))]:
            writer.add_sliding_window_pattern(pattern)
        rope = rope["full_attention"]
    elif getattr(config, "sliding_window", None) and architecture == "llama":
        writer.add_sliding_window(config.sliding_window)
    if architecture == "llama":
        writer.add_rope_dimension_count(head_size)
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] == "llama3":
        writer.add_tensor("rope_freqs.weight", llama3_factors(head_size, rope))
    elif rope["rope_type"] != "default":
        writer.add_rope_scaling_type(gguf.RopeScalingType(rope["rope_type"]))
        writer.add_rope_scaling_factor(rope["factor"])
        if rope["rope_type"] == "yarn":
            writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])


def write(
    model: Any, kind: str, path: Path, quantization: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32
) -> Path:
    """The model as one GGUF file; matrices of the layers in ``quantization``."""
    architecture, config = ARCHITECTURES[kind], model.config
    writer = gguf.GGUFWriter(str(path), architecture)
    add_metadata(writer, config, architecture)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        values = tensor.float().numpy()
        if architecture == "llama" and ".q_proj." in name:
            values = permute(values, config.num_attention_heads)
        elif architecture == "llama" and ".k_proj." in name:
            values = permute(values, config.num_key_value_heads)
        elif architecture == "gemma3" and name.endswith("norm.weight"):
            values = values + 1
        matrix = values.ndim == 2 and ".layers." in name
        stored = quantization if matrix else gguf.GGMLQuantizationType.F32
        writer.add_tensor(
            stored_name(name, architecture), gguf.quants.quantize(values, stored), raw_dtype=stored
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path

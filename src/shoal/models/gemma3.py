"""Gemma 3, text: windowed layers with a rotary base of their own between layers that see everything."""

from __future__ import annotations

from dataclasses import replace

from shoal.models.architecture import Architecture, Layer
from shoal.models.config import ConfigReader
from shoal.models.decoder import (
    FULL,
    MAX_POSITIONS,
    SLIDING,
    attention,
    decoder,
    layer_count,
    mlp,
    norm,
    read_rotary,
    rope_section,
)
from shoal.models.rotary import Rotary

GLOBAL_BASE, LOCAL_BASE = 1_000_000.0, 10_000.0


def gemma3(config: ConfigReader) -> Architecture:
    config.assume(
        vocab_size=262_208,
        hidden_size=2304,
        intermediate_size=9216,
        num_hidden_layers=26,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=256,
        hidden_activation="gelu_pytorch_tanh",
        max_position_embeddings=131_072,
        tie_word_embeddings=True,
    )
    kinds = _layer_kinds(config)
    window = config.integer("sliding_window", 4096, high=MAX_POSITIONS)
    scale = config.number("query_pre_attn_scalar", 256.0) ** -0.5
    bias = config.flag("attention_bias", False)

    def layer(index: int) -> Layer:
        kind = kinds[index]
        return Layer(
            attention=attention(
                config,
                lambda size: _rotary(config, kind, size),
                scale=scale,
                window=window if kind == SLIDING else None,
                qkv_bias=bias,
                output_bias=bias,
                head_norm=True,
            ),
            mlp=mlp(config, activation="hidden_activation"),
            norm=norm(config, shift=1.0),
            sandwich=True,
        )

    return decoder(config, "Gemma3ForCausalLM", layer, scale=config.integer("hidden_size") ** 0.5)


def gemma3_with_vision(config: ConfigReader) -> Architecture:
    """The text half of a Gemma 3 that also reads images; prompts are text only."""
    text = config.section("text_config")
    if text is None:
        config.refuse("text_config", "is missing")
    for name in ("vision_config", "mm_tokens_per_image", "boi_token_index", "eoi_token_index"):
        config.take(name, None)
    config.take("image_token_index", None)
    tied = config.flag("tie_word_embeddings", True)
    architecture = gemma3(text)
    text.finish()
    return replace(
        architecture,
        name="Gemma3ForConditionalGeneration",
        head=replace(architecture.head, tied=tied),
        renames=(("language_model.", ""), ("model.language_model.", "model.")),
        unused=(
            "vision_tower.",
            "multi_modal_projector.",
            "model.vision_tower.",
            "model.multi_modal_projector.",
        ),
    )


def _layer_kinds(config: ConfigReader) -> list[str]:
    """Every sixth layer sees everything unless the configuration says otherwise."""
    layers = layer_count(config)
    every = config.integer("_sliding_window_pattern", 6)
    every = config.integer("sliding_window_pattern", every)
    kinds = config.texts("layer_types", count=layers, options=(SLIDING, FULL))
    if kinds is not None:
        return kinds
    return [FULL if (index + 1) % every == 0 else SLIDING for index in range(layers)]


def _rotary(config: ConfigReader, kind: str, head_size: int) -> Rotary:
    bases = {
        FULL: config.number("rope_theta", GLOBAL_BASE, low=1.0),
        SLIDING: config.number("rope_local_base_freq", LOCAL_BASE, low=1.0),
    }
    section = rope_section(config)
    if section is None:
        return Rotary(bases[kind], head_size)
    if FULL in section.values or SLIDING in section.values:
        own = section.section(kind)
        section.take(FULL if kind == SLIDING else SLIDING, None)
        section.finish(harmless=frozenset())
        return read_rotary(config, own, head_size, bases[kind])
    # The older form knows one scaling, and it is the far-seeing layers' alone.
    return read_rotary(config, section if kind == FULL else None, head_size, bases[kind])

"""Mistral: Llama with a window in every layer, or in none."""

from __future__ import annotations

from shoal.models.architecture import Architecture, Layer
from shoal.models.config import ConfigReader
from shoal.models.decoder import MAX_POSITIONS, attention, decoder, mlp, norm, rope


def mistral(config: ConfigReader) -> Architecture:
    config.assume(
        vocab_size=32000,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        max_position_embeddings=131_072,
    )
    if "num_key_value_heads" not in config.values:
        config.assume(num_key_value_heads=8)
    # An absent window is 4096 and a null one is none: the configuration class says so.
    if "sliding_window" not in config.values:
        config.assume(sliding_window=4096)
    window = config.integer("sliding_window", None, high=MAX_POSITIONS)
    layer = Layer(
        attention=attention(config, lambda size: rope(config, size), window=window),
        mlp=mlp(config),
        norm=norm(config),
    )
    return decoder(config, "MistralForCausalLM", lambda index: layer)

"""Qwen3, dense: queries and keys are normed per head; the head size is said, not derived."""

from __future__ import annotations

from shoal.models.architecture import Architecture, Layer
from shoal.models.config import ConfigReader
from shoal.models.decoder import attention, decoder, layer_windows, mlp, norm, rope


def qwen3(config: ConfigReader) -> Architecture:
    config.assume(
        vocab_size=151_936,
        hidden_size=4096,
        intermediate_size=22016,
        num_hidden_layers=32,
        num_attention_heads=32,
        head_dim=128,
        max_position_embeddings=32768,
    )
    windows = layer_windows(config)
    bias = config.flag("attention_bias", False)

    def layer(index: int) -> Layer:
        return Layer(
            attention=attention(
                config,
                lambda size: rope(config, size),
                window=windows[index],
                qkv_bias=bias,
                output_bias=bias,
                head_norm=True,
            ),
            mlp=mlp(config),
            norm=norm(config),
        )

    return decoder(config, "Qwen3ForCausalLM", layer)

"""Llama: also Llama 2, 3, 3.1 to 3.3, SmolLM and everything else that calls itself LlamaForCausalLM."""

from __future__ import annotations

from shoal.models.architecture import Architecture, Layer
from shoal.models.config import ConfigReader
from shoal.models.decoder import attention, decoder, mlp, norm, rope


def llama(config: ConfigReader) -> Architecture:
    config.assume(
        vocab_size=32000,
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=32,
        num_attention_heads=32,
        max_position_embeddings=2048,
    )
    bias = config.flag("attention_bias", False)
    layer = Layer(
        attention=attention(config, lambda size: rope(config, size), qkv_bias=bias, output_bias=bias),
        mlp=mlp(config, bias=config.flag("mlp_bias", False)),
        norm=norm(config),
    )
    return decoder(config, "LlamaForCausalLM", lambda index: layer)

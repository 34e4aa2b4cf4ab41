"""The fields that configurations of decoder models have in common, read into stages."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from shoal.models.architecture import Activation, Architecture, Attention, Embed, Head, Layer, Mlp, Norm
from shoal.models.config import MAX_LAYERS, ConfigReader
from shoal.models.rotary import Factors, Linear, Llama3, Rotary, Scaling, Yarn, yarn_attention_factor

ACTIVATIONS: dict[str, Activation] = {"silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu_tanh"}
SLIDING, FULL = "sliding_attention", "full_attention"
MAX_POSITIONS = 1 << 30
MAX_HEADS = 1 << 16
MAX_PARAMETERS = 1 << 42
LEAST = 1e-6
"""Scaling factors and bases below this are no model's, and would divide by nothing in float32."""


def decoder(
    config: ConfigReader, name: str, layer: Callable[[int], Layer], *, scale: float = 1.0
) -> Architecture:
    """An architecture of as many layers as the configuration says, ``layer(index)`` each.

    Raises:
        OperatorError: a field is wrong, or the model is too large to be meant.
    """
    stages = tuple(layer(index) for index in range(layer_count(config)))
    architecture = Architecture(
        name=name,
        embed=Embed(config.integer("vocab_size"), config.integer("hidden_size"), scale),
        layers=stages,
        head=Head(stages[0].norm, config.flag("tie_word_embeddings", False)),
        longest=longest(config),
    )
    if architecture.parameter_count > MAX_PARAMETERS:
        config.refuse("hidden_size", f"and its companions make {architecture.parameter_count:.3g} parameters")
    return architecture


def layer_count(config: ConfigReader) -> int:
    return config.integer("num_hidden_layers", high=MAX_LAYERS)


def longest(config: ConfigReader) -> int:
    return config.integer("max_position_embeddings", high=MAX_POSITIONS)


def norm(config: ConfigReader, *, shift: float = 0.0) -> Norm:
    return Norm(config.number("rms_norm_eps", 1e-6, high=1.0), shift)


def mlp(config: ConfigReader, *, bias: bool = False, activation: str = "hidden_act") -> Mlp:
    kind = config.choice(activation, "silu", ACTIVATIONS)
    return Mlp(config.integer("intermediate_size"), kind, bias)


def attention(
    config: ConfigReader,
    rotary: Callable[[int], Rotary],
    *,
    scale: float | None = None,
    window: int | None = None,
    qkv_bias: bool = False,
    output_bias: bool = False,
    head_norm: bool = False,
) -> Attention:
    """Head counts and sizes from the configuration; ``rotary`` is asked with the head size."""
    heads = config.integer("num_attention_heads", high=MAX_HEADS)
    kv_heads = config.integer("num_key_value_heads", heads)
    if heads % kv_heads:
        config.refuse("num_key_value_heads", f"({kv_heads}) does not divide num_attention_heads ({heads})")
    size = head_size(config, heads)
    return Attention(
        heads=heads,
        kv_heads=kv_heads,
        head_size=size,
        scale=size**-0.5 if scale is None else scale,
        rotary=rotary(size),
        window=window,
        qkv_bias=qkv_bias,
        output_bias=output_bias,
        head_norm=head_norm,
    )


def head_size(config: ConfigReader, heads: int) -> int:
    """``head_dim``, or the hidden size divided among the heads."""
    size = config.integer("head_dim", None, high=MAX_HEADS)
    if size is None:
        hidden = config.integer("hidden_size")
        if hidden % heads:
            config.refuse("hidden_size", f"({hidden}) is not a multiple of num_attention_heads ({heads})")
        size = hidden // heads
    if size % 2:
        config.refuse("head_dim", f"is {size}; rotary embedding pairs dimensions, so it must be even")
    return size


def layer_windows(config: ConfigReader) -> list[int | None]:
    """A window or None for each layer, as Qwen says it: a switch, a size, and which layers have it."""
    layers = layer_count(config)
    switched = config.flag("use_sliding_window", False)
    size = config.integer("sliding_window", 4096, high=MAX_POSITIONS)
    first = config.integer("max_window_layers", 28, low=0)
    types = config.texts("layer_types", count=layers, options=(SLIDING, FULL))
    if types is None:
        types = [SLIDING if switched and index >= first else FULL for index in range(layers)]
    if SLIDING in types and not switched:
        config.refuse("layer_types", "names sliding layers, but use_sliding_window is not set")
    return [size if kind == SLIDING else None for kind in types]


def rope(config: ConfigReader, head_size: int) -> Rotary:
    """Rotary embedding where all layers turn alike: ``rope_parameters``, or the older fields."""
    return read_rotary(
        config, rope_section(config), head_size, config.number("rope_theta", 10_000.0, low=1.0)
    )


def rope_section(config: ConfigReader) -> ConfigReader | None:
    """``rope_parameters`` or its older name ``rope_scaling``; refused if both stand there and differ."""
    new, old = config.section("rope_parameters"), config.section("rope_scaling")
    if new is not None and old is not None and new.values != old.values:
        config.refuse("rope_scaling", "and rope_parameters contradict each other")
    return old if new is None else new


def read_rotary(config: ConfigReader, section: ConfigReader | None, head_size: int, base: float) -> Rotary:
    """One rotary section; ``base`` is used where it names none."""
    if section is None:
        return Rotary(base, head_size)
    kinds = {
        "default": _no_scaling,
        "linear": _linear,
        "llama3": _llama3,
        "yarn": _yarn,
        "factors": lambda section, longest: _factors(section, head_size // 2),
    }
    section.take("type", None)
    named = "rope_type" if section.values.get("rope_type") is not None else "type"
    kind = section.choice(named, "default", kinds)
    base = section.number("rope_theta", base, low=1.0)
    scaling = kind(section, longest(config))
    section.finish(harmless=frozenset({"type", "finetuned"}))
    rotary = Rotary(base, head_size, scaling)
    with np.errstate(all="ignore"):
        sound = np.isfinite(rotary.inverse_frequencies()).all()
    if not sound:
        section.refuse(named, "and its companions give frequencies that are not numbers")
    return rotary


def _no_scaling(section: ConfigReader, longest: int) -> Scaling:
    return None


def _linear(section: ConfigReader, longest: int) -> Scaling:
    return Linear(section.number("factor", low=LEAST))


def _llama3(section: ConfigReader, longest: int) -> Scaling:
    low = section.number("low_freq_factor", low=LEAST)
    high = section.number("high_freq_factor", low=LEAST)
    if low >= high:
        section.refuse("high_freq_factor", f"({high}) must be above low_freq_factor ({low})")
    return Llama3(section.number("factor", low=LEAST), low, high, _original(section, longest))


def _yarn(section: ConfigReader, longest: int) -> Scaling:
    original = _original(section, longest)
    factor = section.number("factor", None, low=LEAST)
    factor = longest / original if factor is None else factor
    recommended = yarn_attention_factor(
        factor, section.number("mscale", None, low=-LEAST), section.number("mscale_all_dim", None, low=-LEAST)
    )
    return Yarn(
        factor=factor,
        original=original,
        beta_fast=section.number("beta_fast", 32.0, low=LEAST),
        beta_slow=section.number("beta_slow", 1.0, low=LEAST),
        truncate=section.flag("truncate", True),
        attention_factor=section.number("attention_factor", recommended),
    )


def _factors(section: ConfigReader, count: int) -> Scaling:
    """What the reader of GGUF files makes of their table of factors; no published config.json has it."""
    values = section.take("factors")
    if not isinstance(values, list) or len(values) != count:
        section.refuse("factors", f"must be a list of {count} numbers")
    if not all(isinstance(value, float) and 0.0 < value < 1e12 for value in values):
        section.refuse("factors", "holds something that is not a number above zero")
    return Factors(tuple(values))


def _original(section: ConfigReader, longest: int) -> int:
    return section.integer("original_max_position_embeddings", longest, high=MAX_POSITIONS)

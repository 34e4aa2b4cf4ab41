"""A model as data: the list of stages a row goes through, the tensors they need, and what they cost.

The stages are one ``Embed``, a ``Layer`` each, and one ``Head``. Whatever computes a model (the torch
twin, a cost model) walks this list; nothing but this list says what the model is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

from shoal.models.rotary import Rotary

Activation = Literal["silu", "gelu_tanh"]
Role = Literal["matrix", "bias", "norm"]


@dataclass(frozen=True, slots=True)
class Embed:
    """Token id to hidden vector: a table of (vocabulary, hidden), its rows multiplied by ``scale``."""

    vocabulary: int
    hidden: int
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class Norm:
    """Root mean square norm. The factor is the stored weight plus ``shift`` (Gemma stores factor - 1)."""

    epsilon: float
    shift: float = 0.0


@dataclass(frozen=True, slots=True)
class Attention:
    """Causal attention; query head ``h`` reads key/value head ``h // (heads / kv_heads)``.

    scale: multiplies query . key. window: a row sees itself and the ``window - 1`` positions before it;
    None means all. head_norm: queries and keys are normed per head before they turn.
    """

    heads: int
    kv_heads: int
    head_size: int
    scale: float
    rotary: Rotary
    window: int | None = None
    qkv_bias: bool = False
    output_bias: bool = False
    head_norm: bool = False


@dataclass(frozen=True, slots=True)
class Mlp:
    """down(activation(gate(x)) * up(x))."""

    intermediate: int
    activation: Activation = "silu"
    bias: bool = False


@dataclass(frozen=True, slots=True)
class Layer:
    """x += attention(norm(x)); x += mlp(norm(x)). ``sandwich``: what is added is normed once more."""

    attention: Attention
    mlp: Mlp
    norm: Norm
    sandwich: bool = False


@dataclass(frozen=True, slots=True)
class Head:
    """Last norm and the product with the vocabulary table, which is the embedding's own when ``tied``."""

    norm: Norm
    tied: bool


Stage: TypeAlias = Embed | Layer | Head


@dataclass(frozen=True, slots=True)
class Part:
    """One stored tensor under its Hugging Face name."""

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Parameter:
    """What the model holds under ``name``: stored parts, one below the other (q, k and v are one product).

    Matrices have shape (outputs, inputs). ``shift`` is added to the stored values.
    """

    name: str
    role: Role
    parts: tuple[Part, ...]
    shift: float = 0.0

    @property
    def shape(self) -> tuple[int, ...]:
        return (sum(part.shape[0] for part in self.parts), *self.parts[0].shape[1:])

    @property
    def elements(self) -> int:
        return self.shape[0] * (self.shape[1] if len(self.shape) == 2 else 1)


@dataclass(frozen=True, slots=True)
class Architecture:
    """A whole model.

    Attributes:
        name: class name of the architecture in ``config.json``.
        longest: most positions it was made for.
        renames: name prefixes that some checkpoints use, and what they mean here.
        unused: name prefixes of tensors that text generation does not need.
    """

    name: str
    embed: Embed
    layers: tuple[Layer, ...]
    head: Head
    longest: int
    renames: tuple[tuple[str, str], ...] = ()
    unused: tuple[str, ...] = ()

    @property
    def stages(self) -> tuple[Stage, ...]:
        return (self.embed, *self.layers, self.head)

    def parameters(self) -> Iterator[Parameter]:
        """All parameters, in the order a row meets them."""
        table = Part("model.embed_tokens.weight", (self.embed.vocabulary, self.embed.hidden))
        yield Parameter("embed", "matrix", (table,))
        for index, layer in enumerate(self.layers):
            yield from _layer_parameters(index, layer, self.embed.hidden)
        final = Part("model.norm.weight", (self.embed.hidden,))
        yield Parameter("head.norm", "norm", (final,), self.head.norm.shift)
        if not self.head.tied:
            yield Parameter("head", "matrix", (Part("lm_head.weight", table.shape),))

    def canonical(self, name: str) -> str:
        """The name a stored tensor has here."""
        for old, new in self.renames:
            if name.startswith(old):
                return new + name.removeprefix(old)
        return name

    def ignores(self, name: str) -> bool:
        """Whether a stored tensor of this (canonical) name may be left alone: copies of a tied table,
        rotary tables that old checkpoints carry, other modalities."""
        return (
            (name == "lm_head.weight" and self.head.tied)
            or name.endswith(".rotary_emb.inv_freq")
            or (bool(self.unused) and name.startswith(self.unused))
        )

    @property
    def parameter_count(self) -> int:
        return sum(parameter.elements for parameter in self.parameters())

    def weight_bytes(self, item: int) -> int:
        """Bytes of all parameters with ``item`` bytes an element; norms are kept in float32."""
        return sum(p.elements * (4 if p.role == "norm" else item) for p in self.parameters())

    def kv_bytes_per_token(self, item: int) -> int:
        """Bytes of K and V of one position in all layers with ``item`` bytes an element."""
        return sum(2 * a.attention.kv_heads * a.attention.head_size * item for a in self.layers)

    def row_flops(self, position: int, *, emits: bool) -> int:
        """Floating point operations of one row at ``position``: two a multiply-add of every product."""
        total = 0
        for layer in self.layers:
            attention = layer.attention
            seen = position + 1 if attention.window is None else min(position + 1, attention.window)
            total += 4 * attention.heads * attention.head_size * seen
        skipped = {"embed", "head"}
        total += sum(
            2 * p.elements for p in self.parameters() if p.role == "matrix" and p.name not in skipped
        )
        return total + (2 * self.embed.vocabulary * self.embed.hidden if emits else 0)


def _layer_parameters(index: int, layer: Layer, hidden: int) -> Iterator[Parameter]:
    ours, stored = f"layers.{index}.", f"model.layers.{index}."
    attention, mlp = layer.attention, layer.mlp
    query, shared = attention.heads * attention.head_size, attention.kv_heads * attention.head_size

    def product(name: str, outputs: dict[str, int], inputs: int, bias: bool) -> Iterator[Parameter]:
        parts = tuple(Part(f"{stored}{key}.weight", (rows, inputs)) for key, rows in outputs.items())
        yield Parameter(ours + name, "matrix", parts)
        if bias:
            parts = tuple(Part(f"{stored}{key}.bias", (rows,)) for key, rows in outputs.items())
            yield Parameter(f"{ours}{name}.bias", "bias", parts)

    def norm(name: str, key: str, size: int) -> Parameter:
        return Parameter(ours + name, "norm", (Part(f"{stored}{key}.weight", (size,)),), layer.norm.shift)

    yield norm("attention.before", "input_layernorm", hidden)
    heads = {"self_attn.q_proj": query, "self_attn.k_proj": shared, "self_attn.v_proj": shared}
    yield from product("qkv", heads, hidden, attention.qkv_bias)
    if attention.head_norm:
        yield norm("query_norm", "self_attn.q_norm", attention.head_size)
        yield norm("key_norm", "self_attn.k_norm", attention.head_size)
    yield from product("output", {"self_attn.o_proj": hidden}, query, attention.output_bias)
    if layer.sandwich:
        yield norm("attention.after", "post_attention_layernorm", hidden)
        yield norm("mlp.before", "pre_feedforward_layernorm", hidden)
        yield norm("mlp.after", "post_feedforward_layernorm", hidden)
    else:
        yield norm("mlp.before", "post_attention_layernorm", hidden)
    gated = {"mlp.gate_proj": mlp.intermediate, "mlp.up_proj": mlp.intermediate}
    yield from product("gate_up", gated, hidden, mlp.bias)
    yield from product("down", {"mlp.down_proj": hidden}, mlp.intermediate, mlp.bias)

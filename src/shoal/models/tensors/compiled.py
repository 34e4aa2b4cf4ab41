"""A model whose stages the compiled kernels walk: one call a step, no Python between two stages.

It means what its twin ``shoal.models.tensors.model.Model`` means, and takes its place. Between stages rows
are float32 whatever the type of the weights. A row's bits depend on its own tokens alone: not on the rows
beside it, the threads, the pages, or how its prompt was cut.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from shoal.core.plan import StepPlan
from shoal.kernels import native
from shoal.kernels.plain import rotary_table
from shoal.models.architecture import Architecture, Layer
from shoal.models.rotary import Rotary
from shoal.models.tensors.weights import Weights

ACTIVATIONS = {"silu": 0, "gelu_tanh": 1}
FIRST_POSITIONS = 1024
"""Rotary tables begin with so many positions and double when a step goes beyond."""


@dataclass(frozen=True)
class CompiledCache:
    """K and V of every layer as the kernels lay them out: (kv_heads, pages, numbers of a page) each.

    stride: numbers from a page to the next where a page has all layers and heads, else 0. depth: pages a
    place, where there are any; places begin after the pages.
    """

    keys: list[Tensor]
    values: list[Tensor]
    pages: int
    page_size: int
    stride: int = 0
    depth: int = 0

    def move(self, source: int, target: int, slots: int) -> None:
        """Copy a page, of which the first ``slots`` positions matter, in every layer."""
        for layer in (*self.keys, *self.values):
            layer[:, target] = layer[:, source]


@dataclass(frozen=True)
class CompiledInputs:
    """A step's integers, and the arrays that keep them alive."""

    step: native.Step
    rows: int
    arrays: tuple[npt.NDArray[Any], ...]


class CompiledModel:
    """An architecture with its weights, packed where they lie.

    Args:
        weights: on the CPU; their tensors mean nothing to torch afterwards.
        session: computes; it has packed the weights, or packs them now.
    """

    invariant = True

    def __init__(self, architecture: Architecture, weights: Weights, session: native.Session) -> None:
        self.architecture = architecture
        self.weights = weights
        self.device = weights.device
        self.dtype = weights.dtype
        self.session = session
        self._tensors = weights.tensors
        self._rotaries = list(dict.fromkeys(layer.attention.rotary for layer in architecture.layers))
        assert len(self._rotaries) <= native.MOST_TURNS
        self._tables: list[tuple[Tensor, Tensor]] = []
        self._turns = (native.Turns * native.MOST_TURNS)()
        self._positions = 0
        self._bound: CompiledCache | None = None
        self._layers = (native.Layer * len(architecture.layers))(
            *(self._layer(index, layer) for index, layer in enumerate(architecture.layers))
        )
        embed = self._matrix("embed")
        head = architecture.head
        self._model = native.Model(
            bf16=int(self.dtype == torch.bfloat16),
            hidden=architecture.embed.hidden,
            layer_count=len(architecture.layers),
            layers=self._layers,
            embed=embed,
            head=embed if head.tied else self._matrix("head"),
            head_norm=self._pointer("head.norm"),
            head_epsilon=head.norm.epsilon,
            # Rounded to the type of the weights, as the checkpoints were trained.
            embed_scale=float(torch.tensor(architecture.embed.scale, dtype=self.dtype)),
        )

    def allocate_cache(self, pages: int, page_size: int) -> CompiledCache:
        """Room for ``pages`` pages in every layer; the system commits main memory as pages are written."""

        def room(slots: int, width: int, kv_heads: int) -> Tensor:
            return torch.empty((kv_heads, pages, slots * width), dtype=self.dtype)

        padded = native.padded_rows
        attentions = [layer.attention for layer in self.architecture.layers]
        keys = [room(padded(page_size), a.head_size, a.kv_heads) for a in attentions]
        values = [room(page_size, padded(a.head_size), a.kv_heads) for a in attentions]
        return CompiledCache(keys, values, pages, page_size)

    def page_bytes(self, page_size: int) -> int:
        """Bytes of a page of all layers, for ``cache_in``."""
        return self.dtype.itemsize * sum(sum(numbers) for numbers in self._page_numbers(page_size))

    def cache_in(self, room: Tensor, pages: int, depth: int, page_size: int) -> CompiledCache:
        """A cache in (pages + places * depth, page_bytes), uint8: pages, then places of ``depth`` pages."""
        wide = room.view(self.dtype)
        keys, values, at = [], [], 0
        for layer, numbers in zip(self.architecture.layers, self._page_numbers(page_size), strict=True):
            for kind, count in zip((keys, values), numbers, strict=True):
                kind.append(
                    wide[:, at : at + count].unflatten(1, (layer.attention.kv_heads, -1)).transpose(0, 1)
                )
                at += count
        return CompiledCache(keys, values, pages, page_size, stride=wide.shape[1], depth=depth)

    def _page_numbers(self, page_size: int) -> list[tuple[int, int]]:
        """How many numbers the keys and the values of a page take in each layer."""
        padded = native.padded_rows
        attentions = [layer.attention for layer in self.architecture.layers]
        return [
            (a.kv_heads * padded(page_size) * a.head_size, a.kv_heads * page_size * padded(a.head_size))
            for a in attentions
        ]

    def inputs(self, plan: StepPlan, cache: CompiledCache) -> CompiledInputs:
        """The plan's integers where the kernels can use them."""
        self._reach(int(plan.position.max()) + 1)
        columns = [plan.token, plan.position, plan.first_row, plan.rows, plan.first_page, plan.pages]
        if len(plan.place):
            columns.append(cache.pages + plan.place * np.int32(cache.depth))
        arrays = tuple(np.ascontiguousarray(column, dtype=np.int32) for column in columns)
        pointers = [array.ctypes.data for array in arrays]
        place = pointers.pop() if len(plan.place) else None
        step = native.Step(plan.row_count, plan.run_count, *pointers, place, self._turns)
        return CompiledInputs(step, plan.row_count, arrays)

    def forward(self, inputs: CompiledInputs, cache: CompiledCache) -> Tensor:
        """All stages but the head for every row, (R, hidden), float32; writes K and V to ``cache``."""
        if cache is not self._bound:
            for layer, keys, values in zip(self._layers, cache.keys, cache.values, strict=True):
                layer.keys, layer.values = keys.data_ptr(), values.data_ptr()
            self._bound = cache
        hidden = torch.empty(inputs.rows, self.architecture.embed.hidden)
        shape = native.Cache(cache.pages, cache.page_size, cache.stride)
        model, step = ctypes.byref(self._model), ctypes.byref(inputs.step)
        self.session.call("forward", model, ctypes.byref(shape), step, hidden.data_ptr())
        return hidden

    def attention(self, inputs: CompiledInputs, cache: CompiledCache, wide: Tensor) -> Tensor:
        """The first layer's attention alone, (R, heads * head_size), float32; writes K and V to ``cache``.

        Args:
            wide: (R, (heads + 2 * kv_heads) * head_size), float32: q, k and v of every row; q and k turn.
        """
        layer = self._layers[0]
        layer.keys, layer.values = cache.keys[0].data_ptr(), cache.values[0].data_ptr()
        mixed = torch.empty(inputs.rows, layer.heads * layer.head_size)
        shape = native.Cache(cache.pages, cache.page_size, cache.stride)
        model, step = ctypes.byref(self._model), ctypes.byref(inputs.step)
        self.session.call("attention", model, ctypes.byref(shape), step, wide.data_ptr(), mixed.data_ptr())
        return mixed

    def logits(self, hidden: Tensor) -> Tensor:
        """The head stage: (n, hidden) to (n, vocabulary), float32."""
        hidden = hidden.contiguous()
        logits = torch.empty(len(hidden), self.architecture.embed.vocabulary)
        model = ctypes.byref(self._model)
        self.session.call("head", model, hidden.data_ptr(), len(hidden), logits.data_ptr())
        return logits

    def best(self, hidden: Tensor) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int32]]:
        """The largest logit of each of (n, hidden), NaN where one is none, and its token, the lowest of equal
        ones; the logits themselves never come into being."""
        hidden = hidden.contiguous()
        found = np.empty(len(hidden), dtype=native.BEST)
        self.session.call(
            "best", ctypes.byref(self._model), hidden.data_ptr(), len(hidden), found.ctypes.data
        )
        return found["value"], found["output"]

    def _layer(self, index: int, layer: Layer) -> native.Layer:
        name, attention = f"layers.{index}.", layer.attention
        norms = "attention.before", "attention.after", "mlp.before", "mlp.after"
        return native.Layer(
            **{norm.replace(".", "_"): self._pointer(name + norm) for norm in norms},
            **{norm: self._pointer(name + norm) for norm in ("query_norm", "key_norm")},
            **{part: self._matrix(name + part) for part in ("qkv", "output", "gate_up", "down")},
            heads=attention.heads,
            kv_heads=attention.kv_heads,
            head_size=attention.head_size,
            window=attention.window or 0,
            rotary=self._rotaries.index(attention.rotary),
            intermediate=layer.mlp.intermediate,
            activation=ACTIVATIONS[layer.mlp.activation],
            epsilon=layer.norm.epsilon,
            scale=attention.scale,
        )

    def _pointer(self, name: str) -> int | None:
        tensor = self._tensors.get(name)
        return None if tensor is None else tensor.data_ptr()

    def _matrix(self, name: str) -> native.Matrix:
        weight, bias = self._tensors[name], self._tensors.get(name + ".bias")
        if not self.weights.packed:
            self.session.pack(weight)
        return native.matrix(weight, bias)

    def _reach(self, positions: int) -> None:
        """Rotary tables of at least so many positions."""
        if positions <= self._positions:
            return
        self._positions = max(FIRST_POSITIONS, 2 * self._positions, positions)
        self._tables = [self._table(rotary) for rotary in self._rotaries]
        pointers = (native.Turns(cosine.data_ptr(), sine.data_ptr()) for cosine, sine in self._tables)
        self._turns = (native.Turns * native.MOST_TURNS)(*pointers)

    def _table(self, rotary: Rotary) -> tuple[Tensor, Tensor]:
        inverse = torch.from_numpy(rotary.inverse_frequencies())
        return rotary_table(torch.arange(self._positions), inverse, rotary.attention_factor)

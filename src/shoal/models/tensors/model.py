"""The twin: walks the list of stages with plain torch operators. What it computes is what shoal means."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from shoal.core.plan import StepPlan
from shoal.kernels.attention import Group, attend, group_reads, write
from shoal.kernels.plain import gated, linear, rms_norm, rotary_table, rotate
from shoal.models.architecture import Architecture, Attention, Layer
from shoal.models.rotary import Rotary
from shoal.models.tensors.weights import Weights

Turn = tuple[Tensor, Tensor]

BEST_ROWS = 64
"""Rows whose logits exist at once where only the largest is asked for."""


@dataclass(frozen=True)
class Cache:
    """K and V of every layer, each (kv_heads, pages, page_size, head_size).

    places: the same memory where pages are mapped side by side, each place as one page; None if none are.
    """

    keys: list[Tensor]
    values: list[Tensor]
    pages: int
    page_size: int
    places: Cache | None = None

    def move(self, source: int, target: int, slots: int) -> None:
        """Copy the first ``slots`` positions of one page to another, in every layer."""
        for layer in (*self.keys, *self.values):
            layer[:, target, :slots] = layer[:, source, :slots]


@dataclass(frozen=True)
class StepInputs:
    """A step plan as tensors on the model's device.

    token, position, slot: (R,), int64. reads: for each window of the model what its layers read.
    cache: where slots and reads are.
    """

    token: Tensor
    position: Tensor
    slot: Tensor
    reads: dict[int | None, list[Group]]
    cache: Cache


class Model:
    """An architecture with its weights."""

    # Products come from torch's libraries, whose last bits may change with the number of rows.
    invariant = False

    def __init__(self, architecture: Architecture, weights: Weights) -> None:
        self.architecture = architecture
        self.weights = weights
        self.device = weights.device
        self.dtype = weights.dtype
        self._tensors = weights.tensors
        attentions = [layer.attention for layer in architecture.layers]
        self._windows = list(dict.fromkeys(attention.window for attention in attentions))
        self._width = sum(2 * attention.kv_heads * attention.head_size for attention in attentions)
        self._heads = max(attention.heads for attention in attentions)
        self._kv_width = max(attention.kv_heads * attention.head_size for attention in attentions)
        self._inverse = {
            attention.rotary: torch.from_numpy(attention.rotary.inverse_frequencies()).to(self.device)
            for attention in attentions
        }

    def allocate_cache(self, pages: int, page_size: int, dtype: torch.dtype | None = None) -> Cache:
        """Room for ``pages`` pages in every layer; the system commits main memory as pages are written."""

        def room() -> list[Tensor]:
            return [
                torch.empty(
                    (layer.attention.kv_heads, pages, page_size, layer.attention.head_size),
                    dtype=dtype or self.dtype,
                    device=self.device,
                )
                for layer in self.architecture.layers
            ]

        return Cache(room(), room(), pages, page_size)

    def page_bytes(self, page_size: int) -> int:
        """Bytes of a page of all layers, for ``cache_in``."""
        return page_size * self.architecture.kv_bytes_per_token(self.dtype.itemsize)

    def cache_in(self, room: Tensor, pages: int, depth: int, page_size: int) -> Cache:
        """A cache in (pages + places * depth, page_bytes), uint8: pages, then places of ``depth`` pages."""

        def part(pages: Tensor, size: int) -> Cache:
            # A position has K and V of all layers, so that a place is one stretch of positions.
            wide = pages.view(-1).view(self.dtype).view(-1, size, self._width)
            keys, values, at = [], [], 0
            for layer in self.architecture.layers:
                heads = layer.attention.kv_heads, layer.attention.head_size
                for kind in (keys, values):
                    end = at + heads[0] * heads[1]
                    kind.append(wide[:, :, at:end].unflatten(2, heads).permute(2, 0, 1, 3))
                    at = end
            return Cache(keys, values, len(wide), size)

        pool = part(room[:pages], page_size)
        return replace(pool, places=part(room[pages:], depth * page_size))

    def inputs(self, plan: StepPlan, cache: Cache) -> StepInputs:
        """The plan's integers where the model can use them."""
        run = plan.run_of_row()
        pages, first_page = plan.pages.astype(np.int64), plan.first_page.astype(np.int64)
        if len(plan.place):
            assert cache.places is not None, "a plan of places for a cache without any"
            cache = cache.places
            pages, first_page = plan.place.astype(np.int64), np.arange(plan.run_count)
        page_size = cache.page_size
        page = pages[first_page[run] + plan.position // page_size]
        slot = page * page_size + plan.position % page_size
        reads = {
            window: group_reads(
                plan.first_row.astype(np.int64),
                plan.rows.astype(np.int64),
                plan.position[plan.first_row].astype(np.int64),
                first_page,
                pages,
                page_size=page_size,
                heads=self._heads,
                kv_width=self._kv_width,
                window=window,
                device=self.device,
            )
            for window in self._windows
        }
        rows = (plan.token, plan.position, slot)
        token, position, slot = (torch.from_numpy(x.astype(np.int64)).to(self.device) for x in rows)
        return StepInputs(token, position, slot, reads, cache)

    @torch.inference_mode()
    def forward(self, inputs: StepInputs, cache: Cache) -> Tensor:
        """All stages but the head for every row, (R, hidden); writes K and V of the rows to ``cache``."""
        cache = inputs.cache
        turns = {
            rotary: rotary_table(inputs.position, inverse, rotary.attention_factor)
            for rotary, inverse in self._inverse.items()
        }
        embed = self.architecture.embed
        x = self._tensors["embed"].index_select(0, inputs.token)
        if embed.scale != 1.0:
            # The factor is rounded to the type of the weights, as the checkpoints were trained.
            x = x * torch.tensor(embed.scale, dtype=x.dtype, device=x.device)
        for index, layer in enumerate(self.architecture.layers):
            x = self._layer(index, layer, x, inputs, turns, cache)
        return x

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """The head stage: (n, hidden) to (n, vocabulary), float32."""
        head = self.architecture.head
        normed = rms_norm(hidden, self._tensors["head.norm"], head.norm.epsilon)
        return linear(normed, self._tensors["embed" if head.tied else "head"]).float()

    def best(self, hidden: Tensor) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int32]]:
        """The largest logit of each of (n, hidden), NaN where one is none, and its token, the lowest of equal
        ones."""
        values, tokens = zip(*(self.logits(rows).max(dim=1) for rows in hidden.split(BEST_ROWS)), strict=True)
        return torch.cat(values).cpu().numpy(), torch.cat(tokens).cpu().numpy().astype(np.int32)

    def _layer(
        self,
        index: int,
        layer: Layer,
        x: Tensor,
        inputs: StepInputs,
        turns: dict[Rotary, Turn],
        cache: Cache,
    ) -> Tensor:
        name, epsilon, tensors = f"layers.{index}.", layer.norm.epsilon, self._tensors
        normed = rms_norm(x, tensors[name + "attention.before"], epsilon)
        added = self._attention(index, layer, normed, inputs, turns[layer.attention.rotary], cache)
        if layer.sandwich:
            added = rms_norm(added, tensors[name + "attention.after"], epsilon)
        x = x + added
        normed = rms_norm(x, tensors[name + "mlp.before"], epsilon)
        added = gated(self._product(name + "gate_up", normed), layer.mlp.activation)
        added = self._product(name + "down", added)
        if layer.sandwich:
            added = rms_norm(added, tensors[name + "mlp.after"], epsilon)
        return x + added

    def _attention(
        self, index: int, layer: Layer, x: Tensor, inputs: StepInputs, turn: Turn, cache: Cache
    ) -> Tensor:
        attention, name = layer.attention, f"layers.{index}."
        query, key, value = self._heads_of(attention, self._product(name + "qkv", x))
        if attention.head_norm:
            query = rms_norm(query, self._tensors[name + "query_norm"], layer.norm.epsilon)
            key = rms_norm(key, self._tensors[name + "key_norm"], layer.norm.epsilon)
        keys, values = cache.keys[index], cache.values[index]
        write(keys, inputs.slot, rotate(key, *turn))
        write(values, inputs.slot, value)
        reads = inputs.reads[attention.window]
        mixed = attend(rotate(query, *turn), keys, values, reads, attention.scale)
        return self._product(name + "output", mixed)

    def _heads_of(self, attention: Attention, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value heads, (R, heads, head_size) each, out of one product."""
        split = x.view(len(x), attention.heads + 2 * attention.kv_heads, attention.head_size)
        query, key, value = split.split([attention.heads, attention.kv_heads, attention.kv_heads], dim=1)
        return query, key, value

    def _product(self, name: str, x: Tensor) -> Tensor:
        return linear(x, self._tensors[name], self._tensors.get(name + ".bias"))

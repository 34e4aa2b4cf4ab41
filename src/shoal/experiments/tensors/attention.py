"""The attention of one layer in one step over a tree of sequences: compiled, by torch, and in double."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from shoal.engine.build import Prepared
from shoal.engine.model import StoredModel
from shoal.engine.tensors.model_executor import ModelExecutor
from shoal.engine.tensors.sampler import Sampler
from shoal.engine.tensors.start import DTYPES
from shoal.experiments.prefixes import Tree, plan
from shoal.kernels import native
from shoal.models.architecture import Architecture, Attention, Embed, Head, Layer, Mlp, Norm
from shoal.models.rotary import F32, Rotary
from shoal.models.tensors.compiled import CompiledCache, CompiledModel
from shoal.models.tensors.weights import dummy_source, load_weights

PLACED = 4096
"""Rows whose K and V are written at once."""


def compute_on(threads: int) -> int:
    """Let torch use so many threads; returns them."""
    torch.set_num_threads(threads)
    return threads


@dataclass(frozen=True, slots=True)
class Still(Rotary):
    """Turns nothing, so that queries and keys are what they were drawn as."""

    def inverse_frequencies(self) -> F32:
        return 0 * Rotary(self.base, self.size).inverse_frequencies()


@dataclass(frozen=True, slots=True)
class Shape:
    """Heads of a layer, and float32 or bfloat16 for its K and V."""

    dtype: str = "float32"
    heads: int = 8
    kv_heads: int = 8
    size: int = 64

    def model(self, threads: int, *, window: int | None = None, share: bool = True) -> CompiledModel:
        """A layer of this shape, its other parts as small as can be."""
        attention = Attention(
            self.heads, self.kv_heads, self.size, self.size**-0.5, Still(1e4, self.size), window
        )
        norm = Norm(1e-5)
        layer = Layer(attention, Mlp(16), norm)
        whole = Architecture("one layer", Embed(16, 16), (layer,), Head(norm, tied=True), longest=1 << 20)
        weights = load_weights(whole, dummy_source(whole), DTYPES[self.dtype], "cpu")
        return CompiledModel(whole, weights, native.Session(threads, share=share))


class Drawn:
    """Random q, k and v of a tree: each node's K and V, and the query of each sequence's last token. All are
    numbers of the shape's type."""

    def __init__(self, tree: Tree, shape: Shape, seed: int) -> None:
        self.tree, self.shape = tree, shape
        generator = torch.Generator().manual_seed(seed)

        def draw(*sizes: int) -> Tensor:
            return torch.randn(*sizes, shape.size, generator=generator).to(DTYPES[shape.dtype])

        self.query = draw(tree.count, shape.heads)
        self._nodes = [[draw(2, n, shape.kv_heads) for n in level] for level in tree.levels]

    def keys_values(self, sequence: int, levels: int | None = None) -> Tensor:
        """K and V of a sequence's first ``levels`` levels, (2, tokens, kv_heads, size)."""
        path = list(zip(self._nodes, self.tree.nodes(sequence)))
        return torch.cat([level[node] for level, node in path[:levels]], dim=1)

    def own(self, sequence: int) -> Tensor:
        """K and V of a sequence's own tokens, (2, tokens, kv_heads, size)."""
        return self._nodes[-1][sequence]

    def exact(self) -> Tensor:
        """softmax(q . k / sqrt(size)) . v of each sequence, (count, heads, size), in double."""
        shape, found = self.shape, []
        for sequence in range(self.tree.count):
            keys, values = self.keys_values(sequence).double().transpose(1, 2)
            query = self.query[sequence].double().view(shape.kv_heads, -1, shape.size)
            weights = torch.softmax(query @ keys.transpose(1, 2) * shape.size**-0.5, dim=-1)
            found.append((weights @ values).view(shape.heads, shape.size))
        return torch.stack(found)


class Compiled:
    """The compiled operator over what was drawn, K and V in pages.

    Args:
        shared: levels whose pages the sequences of a node have in common; ``Tree.pages``.
        share: whether the operator sees it.
        like: takes the pages and K and V of another one, which has the same levels in common.
    """

    def __init__(
        self,
        drawn: Drawn,
        threads: int,
        shared: int,
        *,
        share: bool = True,
        page_size: int = 16,
        like: Compiled | None = None,
    ) -> None:
        self.drawn, self.threads = drawn, threads
        self.model = drawn.shape.model(threads, share=share)
        if like is None:
            self.pages, count = drawn.tree.pages(page_size, shared)
            self.cache: CompiledCache = self.model.allocate_cache(count, page_size)
            self._place()
        else:
            self.pages, self.cache = like.pages, like.cache
        every = range(drawn.tree.count)
        last = [drawn.tree.length(sequence) - 1 for sequence in every]
        self._runs = [(sequence, last[sequence], 1) for sequence in every]
        self._wide = torch.cat([self._rows(*run) for run in self._runs])
        self._inputs = self.model.inputs(plan(self.pages, self._runs), self.cache)

    def __call__(self) -> Tensor:
        """The step, (count, heads, size), float32."""
        shape = self.drawn.shape
        return self.model.attention(self._inputs, self.cache, self._wide).view(-1, shape.heads, shape.size)

    def alone(self, sequence: int) -> Tensor:
        """The same with a step of its own for this sequence, (1, heads, size)."""
        shape = self.drawn.shape
        inputs = self.model.inputs(plan(self.pages, [self._runs[sequence]]), self.cache)
        wide = self._wide[sequence : sequence + 1]
        return self.model.attention(inputs, self.cache, wide).view(-1, shape.heads, shape.size)

    def reads(self) -> int:
        """Positions that the step reads, by head of K and V, as the kernel counts them."""
        before = self.model.session.positions_read
        self()
        return (self.model.session.positions_read - before) // self.drawn.shape.kv_heads

    def _place(self) -> None:
        """Write K and V of all but the last tokens, each page once. Where a row sees nothing but itself, the
        operator does little else."""
        writer = self.drawn.shape.model(self.threads, window=1)
        placed: set[int] = set()
        for sequence, pages in enumerate(self.pages):
            size = self.cache.page_size
            first = size * next((i for i, page in enumerate(pages.tolist()) if page not in placed), 0)
            placed.update(pages.tolist())
            end = self.drawn.tree.length(sequence) - 1
            for start in range(first, end, PLACED):
                run = sequence, start, min(PLACED, end - start)
                inputs = writer.inputs(plan(self.pages, [run]), self.cache)
                writer.attention(inputs, self.cache, self._rows(*run))

    def _rows(self, sequence: int, start: int, count: int) -> Tensor:
        """q, k and v of some rows as the operator takes them; queries but the last token's are zero."""
        shape, drawn = self.drawn.shape, self.drawn
        keys, values = drawn.keys_values(sequence)[:, start : start + count].float().flatten(2)
        query = torch.zeros(count, shape.heads * shape.size)
        if start + count == drawn.tree.length(sequence):
            query[-1] = drawn.query[sequence].flatten()
        return torch.cat([query, keys, values], dim=1)


class Torch:
    """torch's own operator over one prefix and own tokens; query heads of one head of K and V are rows."""

    def __init__(self, drawn: Drawn) -> None:
        shape, every = drawn.shape, range(drawn.tree.count)
        self._query = drawn.query.view(-1, shape.kv_heads, shape.heads // shape.kv_heads, shape.size)
        self._prefix = _by_head(drawn.keys_values(0, 1))
        self._own = [_by_head(drawn.own(sequence)) for sequence in every]

    def each(self) -> Tensor:
        """One sequence after the other; the prefix is stored once and gathered for each."""
        found = []
        for query, own in zip(self._query, self._own):
            keys, values = torch.cat([self._prefix, own], dim=2)
            found.append(scaled_dot_product_attention(query[None], keys[None], values[None]))
        return torch.cat(found)

    def replicated(self) -> Replicated:
        """All sequences at once over a copy of the prefix each."""
        return Replicated(
            self._query, torch.stack([torch.cat([self._prefix, own], 2) for own in self._own], 1)
        )


@dataclass(frozen=True, slots=True)
class Replicated:
    """query: (count, kv_heads, share, size). held: (2, count, kv_heads, tokens, size)."""

    query: Tensor
    held: Tensor

    def __call__(self) -> Tensor:
        return scaled_dot_product_attention(self.query, *self.held)

    def by_products(self) -> Tensor:
        """The same written out: torch's operator lets a thread idle at few sequences and heads."""
        keys, values = self.held
        scores = self.query @ keys.transpose(2, 3) * self.query.shape[3] ** -0.5
        return scores.softmax(dim=3) @ values


def executor(prepared: Prepared, *, share: bool = True, window: int | None = None) -> ModelExecutor:
    """A compiled model with random weights and a pool of its own.

    Args:
        share: whether its attention sees what sequences share.
        window: 1 lets every row see itself alone: what a step takes without attention.
    """
    assert isinstance(prepared.model, StoredModel)
    architecture = prepared.architecture
    assert architecture is not None
    if window is not None:
        layers = (
            replace(layer, attention=replace(layer.attention, window=window)) for layer in architecture.layers
        )
        architecture = replace(architecture, layers=tuple(layers))
    torch.set_num_threads(prepared.threads)
    source = dummy_source(architecture, prepared.config.seed)
    weights = load_weights(architecture, source, DTYPES[prepared.dtype], "cpu")
    return ModelExecutor(
        CompiledModel(architecture, weights, native.Session(prepared.threads, share=share)),
        Sampler(prepared.model.vocabulary),
        prepared.pages,
        prepared.config.page_size,
        time.perf_counter,
    )


def differing(one: Tensor, other: Tensor) -> int:
    """Rows in which any bit differs."""
    return int((one != other).flatten(1).any(dim=1).sum())


def _by_head(held: Tensor) -> Tensor:
    """(2, tokens, kv_heads, size) to (2, kv_heads, tokens, size), a copy."""
    return held.transpose(1, 2).contiguous()

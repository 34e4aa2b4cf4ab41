"""How fast this machine could do a job's arithmetic: its least work at rates measured outside shoal."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import Protocol

from shoal.bench.work import Work
from shoal.models.architecture import Architecture

BULK_ROWS = (256, 512, 1024)
"""Rows of a product where prompts are computed; the best of them counts."""

Shapes = tuple[tuple[int, int], ...]
"""(outputs, inputs) of products that follow each other."""


@dataclass(frozen=True)
class Heads:
    """The shape of an attention: query heads, key/value heads, numbers a head."""

    query: int
    kv: int
    size: int


class Rates(Protocol):
    """What a machine does, as measured: ``shoal.bench.tensors.rates.MeasuredRates``.

    Attributes:
        read: bytes a second of a plain loop over memory.
    """

    read: float

    def product(self, shapes: Shapes, rows: int) -> float:
        """Operations a second (two a multiply-add) of products of so many rows with each of these weights."""
        ...

    def attention(self, heads: Heads, keys: int) -> float:
        """Operations a second of scores and weighted values over ``keys`` positions."""
        ...


@dataclass(frozen=True)
class Part:
    """A part of a limit.

    Attributes:
        operations: two a multiply-add.
        rate: operations a second.
        how: where the rate comes from, for people.
    """

    name: str
    operations: float
    rate: float
    how: str

    @property
    def seconds(self) -> float:
        return self.operations / self.rate if self.operations else 0.0


@dataclass(frozen=True)
class Limit:
    """Seconds that a job's least work takes, and its parts."""

    parts: tuple[Part, ...]

    @property
    def seconds(self) -> float:
        return sum(part.seconds for part in self.parts)


def limit_of(work: Work, together: int, architecture: Architecture, rates: Rates, item: int) -> Limit:
    """The limit of a job.

    Args:
        together: requests that can decode side by side.
        item: bytes of a weight. One row is as fast as its weights can be read, even where the library's
            product of one row is slower.
    """
    table = (architecture.embed.vocabulary, architecture.embed.hidden)
    counted = Counter(layer_shapes(architecture))
    return Limit(
        (
            _products("prompt", counted, work.prompt_rows, BULK_ROWS, rates, item),
            _products("decode", counted, work.decode_rows, (together,), rates, item),
            _products("vocabulary", Counter({(table,): 1}), work.emitted, (together,), rates, item),
            _attention(work, architecture, rates),
        )
    )


def layer_shapes(architecture: Architecture) -> list[Shapes]:
    """The products of each layer."""
    found: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for parameter in architecture.parameters():
        stem, _, rest = parameter.name.partition(".")
        if parameter.role == "matrix" and stem == "layers":
            outputs, inputs = parameter.shape
            found[rest.partition(".")[0]].append((outputs, inputs))
    return [tuple(shapes) for shapes in found.values()]


def _products(
    name: str, counted: Counter[Shapes], rows: int, together: tuple[int, ...], rates: Rates, item: int
) -> Part:
    """``rows`` rows through these products, as many at a time as is best of ``together``."""
    found = []
    for count in together:
        seconds = operations = 0.0
        for shapes, copies in counted.items():
            each = 2.0 * copies * sum(outputs * inputs for outputs, inputs in shapes)
            rate = rates.product(shapes, count)
            if count == 1:
                rate = max(rate, 2.0 * rates.read / item)
            operations += each
            seconds += each / rate
        found.append((operations / seconds, count, operations))
    rate, count, operations = max(found)
    plural = "row" if count == 1 else "rows"
    return Part(name, operations * rows, rate, f"{count:,} {plural} at a time")


def _attention(work: Work, architecture: Architecture, rates: Rates) -> Part:
    """Scores and weighted values, at the rate of each kind of layer over its mean number of positions."""
    rows = max(1, work.prompt_rows + work.decode_rows)
    kinds = Counter(
        (Heads(a.heads, a.kv_heads, a.head_size), a.window)
        for a in (layer.attention for layer in architecture.layers)
    )
    seconds = operations = 0.0
    means = set()
    for (heads, window), layers in kinds.items():
        pairs = work.pairs(window)
        keys = max(64, -(-(pairs // rows) // 64) * 64)
        each = 4.0 * layers * heads.query * heads.size * pairs
        operations += each
        seconds += each / rates.attention(heads, keys)
        means.add(keys)
    said = " and ".join(f"{keys:,}" for keys in sorted(means))
    return Part("attention", operations, operations / seconds if seconds else 1.0, f"over {said} positions")

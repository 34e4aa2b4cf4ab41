"""How fast this machine multiplies and reads, measured with torch's own operators.

Nothing of shoal runs here: a slow kernel of ours must not raise the share of the limit that it reaches.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from shoal.bench.limit import Heads, Shapes

ENOUGH_PARAMETERS = 35e6
"""Weights to pass through, so that caches hold few of them."""
ATTENTION_ROWS = 256
MOST_COPIES = 64
HOPELESS = 4.0
"""A way that takes so many times as long as the best so far is not measured a second time."""


def seconds_of(work: Callable[[], object], best: float = float("inf")) -> float:
    """The best of at least three runs and half a second, after one to warm up; of one run where that takes
    much longer than ``best``."""
    begin = time.perf_counter()
    work()
    first = time.perf_counter() - begin
    if first > HOPELESS * best:
        return first
    found, spent, runs = float("inf"), 0.0, 0
    while runs < 3 or spent < 0.5:
        begin = time.perf_counter()
        work()
        last = time.perf_counter() - begin
        found, spent, runs = min(found, last), spent + last, runs + 1
    return found


class MeasuredRates:
    """Implements ``shoal.bench.limit.Rates``; each rate is measured when first asked for.

    Of bfloat16 the better of two ways counts: products in bfloat16, and in float32. A processor without
    arithmetic in bfloat16 is several times faster in the latter, and nobody need compute as its library
    does; what bfloat16 saves there is memory.

    Args:
        dtype: of the weights.
        threads: that compute; sets torch's for the whole process.
    """

    def __init__(self, dtype: str, threads: int) -> None:
        torch.set_num_threads(threads)
        wanted = ("float32", "bfloat16") if dtype == "bfloat16" else (dtype,)
        self.dtypes = [getattr(torch, name) for name in wanted]
        self.read = read_rate()
        self._products: dict[tuple[Shapes, int], float] = {}
        self._attention: dict[tuple[Heads, int], float] = {}

    def product(self, shapes: Shapes, rows: int) -> float:
        key = shapes, rows
        if key not in self._products:
            self._products[key] = max(product_rates(shapes, rows, self.dtypes).values())
        return self._products[key]

    def attention(self, heads: Heads, keys: int) -> float:
        key = heads, keys
        if key not in self._attention:
            self._attention[key] = max(_attention_rate(heads, keys, dtype) for dtype in self.dtypes)
        return self._attention[key]


def product_rates(shapes: Shapes, rows: int, dtypes: list[torch.dtype]) -> dict[torch.dtype, float]:
    """Operations a second in each type: the best of torch's ways."""
    parameters = sum(outputs * inputs for outputs, inputs in shapes)
    copies = max(1, min(MOST_COPIES, round(ENOUGH_PARAMETERS / parameters)))
    found: dict[torch.dtype, float] = {}
    best = float("inf")
    for dtype in dtypes:
        seconds = min(_each_way(shapes, copies, rows, dtype, best))
        best = min(best, seconds)
        found[dtype] = 2.0 * copies * parameters * rows / seconds
    return found


def _each_way(shapes: Shapes, copies: int, rows: int, dtype: torch.dtype, best: float) -> Iterator[float]:
    """Seconds through ``copies`` sets of products, each of torch's ways."""
    weights = [torch.randn(shape).mul_(0.02).to(dtype) for _ in range(copies) for shape in shapes]
    inputs = {size: torch.randn(rows, size).to(dtype) for _, size in shapes}

    def through(product: Callable[[int, Tensor], object]) -> Callable[[], None]:
        def run() -> None:
            for i, weight in enumerate(weights):
                product(i, inputs[weight.shape[1]])

        return run

    for product in _products(weights, rows):
        try:
            seconds = seconds_of(through(product), best)
        except RuntimeError:
            continue
        best = min(best, seconds)
        yield seconds


def _products(weights: list[Tensor], rows: int) -> Iterator[Callable[[int, Tensor], object]]:
    """Plain products, then oneDNN's and MKL's with weights packed beforehand, where this CPU has them."""
    yield lambda i, x: torch.nn.functional.linear(x, weights[i])
    try:
        packed = [torch.ops.mkldnn._reorder_linear_weight(weight, rows) for weight in weights]
        yield lambda i, x: torch.ops.mkldnn._linear_pointwise(x, packed[i], None, "none", [], "")
    except (RuntimeError, AttributeError):
        pass
    if weights[0].dtype == torch.float32 and torch.backends.mkl.is_available():
        mkl = [torch.ops.mkl._mkl_reorder_linear_weight(weight, rows) for weight in weights]
        yield lambda i, x: torch.ops.mkl._mkl_linear(x, mkl[i], weights[i], None, rows)


def _attention_rate(heads: Heads, keys: int, dtype: torch.dtype) -> float:
    """For many rows over ``keys`` positions, the query heads of a key folded into rows."""
    rows = ATTENTION_ROWS * heads.query // heads.kv
    query = torch.randn(heads.kv, rows, heads.size).to(dtype)
    key, value = torch.randn(2, heads.kv, keys, heads.size).to(dtype)
    scores = torch.randn(heads.kv, rows, keys).to(dtype)

    def products() -> None:
        torch.bmm(query, key.transpose(1, 2))
        torch.bmm(scores, value)

    return 4 * heads.kv * rows * keys * heads.size / seconds_of(products)


def read_rate() -> float:
    """Bytes/s of a plain read loop over 512 MB."""
    data = torch.ones(128 * 2**20)
    return data.nbytes / seconds_of(data.sum)

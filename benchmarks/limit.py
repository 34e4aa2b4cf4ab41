"""How fast this machine could do a job's arithmetic, measured with torch's own products.

Nothing of shoal runs here: a slow kernel of ours must not raise the share of the limit that it reaches.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from benchmarks.jobs import HEAD, HEADS, HIDDEN, INNER, KV_HEADS, LAYERS, VOCABULARY, Job, least_work

LINEAR = ((HIDDEN + 2 * KV_HEADS * HEAD, HIDDEN), (HIDDEN, HIDDEN), (2 * INNER, HIDDEN), (HIDDEN, INNER))
"""(outputs, inputs) of a layer's products: q/k/v, attention output, gate and up, down."""
DECODER = LAYERS * sum(outputs * inputs for outputs, inputs in LINEAR)
MEASURED_LAYERS = 10
"""Enough weights to pass through that caches hold few of them (35 MB of parameters)."""
BULK_ROWS = (256, 512, 1024)


def seconds_of(work: Callable[[], object]) -> float:
    """The best of at least three runs and half a second, after one to warm up."""
    work()
    best, spent, runs = float("inf"), 0.0, 0
    while runs < 3 or spent < 0.5:
        start = time.perf_counter()
        work()
        last = time.perf_counter() - start
        best, spent, runs = min(best, last), spent + last, runs + 1
    return best


def linear_seconds(shapes: tuple[tuple[int, int], ...], copies: int, rows: int, dtype: torch.dtype) -> float:
    """Seconds for ``rows`` rows through ``copies`` sets of products: the best of torch's own ways."""
    generator = torch.Generator().manual_seed(0)
    weights = [
        torch.randn(shape, generator=generator).mul_(0.02).to(dtype)
        for _ in range(copies)
        for shape in shapes
    ]
    inputs = {size: torch.randn(rows, size, generator=generator).to(dtype) for _, size in shapes}

    def run(product: Callable[[int, torch.Tensor], object]) -> Callable[[], None]:
        def through() -> None:
            for i, weight in enumerate(weights):
                product(i, inputs[weight.shape[1]])

        return through

    return min(seconds_of(run(product)) for product in _products(weights, rows))


def _products(weights: list[torch.Tensor], rows: int) -> Iterator[Callable[[int, torch.Tensor], object]]:
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


def attention_rate(keys: int, dtype: torch.dtype) -> float:
    """FLOP/s of scores and weighted values for 256 rows over ``keys`` positions, all heads."""
    rows = 256 * HEADS // KV_HEADS
    query = torch.randn(KV_HEADS, rows, HEAD).to(dtype)
    key, value = torch.randn(2, KV_HEADS, keys, HEAD).to(dtype)
    scores = torch.randn(KV_HEADS, rows, keys).to(dtype)

    def products() -> None:
        torch.bmm(query, key.transpose(1, 2))
        torch.bmm(scores, value)

    return 4 * KV_HEADS * rows * keys * HEAD / seconds_of(products)


def read_rate() -> float:
    """Bytes/s of a plain read loop over 512 MB."""
    data = torch.ones(128 * 2**20)
    return data.nbytes / seconds_of(data.sum)


@dataclass(frozen=True)
class Limit:
    """Seconds that a job's least work takes at the measured rates, and the parts of it."""

    prompt: float
    decode: float
    vocabulary: float
    attention: float

    @property
    def seconds(self) -> float:
        return self.prompt + self.decode + self.vocabulary + self.attention


class Limits:
    """Measures what a job needs, once for each shape.

    Args:
        dtype: what shoal computes in.
        threads: as many as shoal uses.
    """

    def __init__(self, dtype: torch.dtype, threads: int) -> None:
        self.dtype = dtype
        self._item = torch.empty((), dtype=dtype).element_size()
        torch.set_num_threads(threads)
        self.read = read_rate()
        self._decoder: dict[int, float] = {}
        self._vocabulary: dict[int, float] = {}
        self._attention: dict[int, float] = {}

    def decoder(self, rows: int) -> float:
        """Seconds a row through all layers when ``rows`` go together."""
        if rows not in self._decoder:
            measured = linear_seconds(LINEAR, MEASURED_LAYERS, rows, self.dtype) * LAYERS / MEASURED_LAYERS
            self._decoder[rows] = self._at_best(measured, rows, DECODER)
        return self._decoder[rows]

    def vocabulary(self, rows: int) -> float:
        """Seconds a row through the product with the vocabulary when ``rows`` go together."""
        if rows not in self._vocabulary:
            measured = linear_seconds(((VOCABULARY, HIDDEN),), 1, rows, self.dtype)
            self._vocabulary[rows] = self._at_best(measured, rows, VOCABULARY * HIDDEN)
        return self._vocabulary[rows]

    def _at_best(self, measured: float, rows: int, parameters: int) -> float:
        """One row is as fast as its weights can be read, even where torch's product is slower."""
        return min(measured, parameters * self._item / self.read) if rows == 1 else measured / rows

    def attention(self, keys: int) -> float:
        keys = max(64, -(-keys // 64) * 64)
        if keys not in self._attention:
            self._attention[keys] = attention_rate(keys, self.dtype)
        return self._attention[keys]

    def of(self, job: Job) -> Limit:
        work = least_work(job)
        together = job.side_by_side
        keys = work.pairs // (work.prompt_rows + work.decode_rows)
        return Limit(
            prompt=work.prompt_rows * min(self.decoder(rows) for rows in BULK_ROWS),
            decode=work.decode_rows * self.decoder(together),
            vocabulary=work.emitted * self.vocabulary(together),
            attention=4 * HEADS * HEAD * LAYERS * work.pairs / self.attention(keys),
        )

    def rates(self) -> dict[str, float]:
        """What was measured so far, in GFLOP/s and GB/s."""
        found = {"read_gb_s": self.read / 1e9}
        found |= {f"linear_{n}_gflop_s": 2 * DECODER / s / 1e9 for n, s in sorted(self._decoder.items())}
        found |= {f"attention_{n}_gflop_s": rate / 1e9 for n, rate in sorted(self._attention.items())}
        return found

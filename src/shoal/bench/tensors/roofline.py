"""What this machine can do at best, by rows: rate of a model's products, and bytes read a second."""

from __future__ import annotations

from collections import Counter

import torch

from shoal.bench.limit import layer_shapes
from shoal.bench.roofline import Roofline
from shoal.bench.tensors.rates import product_rates, read_rate
from shoal.models.architecture import Architecture

ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
DTYPES = (torch.float32, torch.bfloat16)


def measure_roofline(architecture: Architecture, threads: int) -> Roofline:
    """Through the products of the model's commonest layer, with torch's own operators."""
    torch.set_num_threads(threads)
    (shapes, _), *_ = Counter(layer_shapes(architecture)).most_common()
    read = read_rate()
    found: dict[str, dict[int, float]] = {str(dtype).removeprefix("torch."): {} for dtype in DTYPES}
    for rows in ROWS:
        for dtype, rate in product_rates(shapes, rows, list(DTYPES)).items():
            found[str(dtype).removeprefix("torch.")][rows] = rate
    return Roofline(read=read, threads=threads, shapes=shapes, rates=found)

"""From measured steps to a cost table: least squares with parts that cannot be negative."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from shoal.core.cost import CostTable, StepShape, earlier_slots, further_runs

F64 = npt.NDArray[np.float64]
PRODUCTS = ("run", "gathered", "pair", "drawn", "masked")
"""Parts of a step that are proportional to one number of its shape."""


def fit(
    measured: Sequence[tuple[StepShape, float]], row_counts: Sequence[int], emit_counts: Sequence[int]
) -> CostTable:
    """The table whose predictions have the least mean square of relative errors.

    Unknown are the steps up from one count to the next, and the seconds of the products. All of them are
    at least 0, so that the table never falls.

    Args:
        measured: shapes of steps, and their seconds.
        row_counts, emit_counts: ascending; where the table has its points.
    """
    seconds = np.array([took for _, took in measured])
    shapes = [shape for shape, _ in measured]
    parts = [
        _ramps(np.array([shape.rows for shape in shapes]), row_counts),
        _ramps(np.array([shape.emits for shape in shapes]), emit_counts),
        np.array([_products(shape) for shape in shapes], dtype=np.float64),
    ]
    design = np.hstack(parts) / seconds[:, None]
    found = nonnegative(design, np.ones(len(seconds)))
    rows, emits, products = np.split(found, [len(row_counts), len(row_counts) + len(emit_counts)])
    return CostTable(
        row_counts=tuple(row_counts),
        row_seconds=tuple(np.cumsum(rows).tolist()),
        emit_counts=tuple(emit_counts),
        emit_seconds=tuple(np.cumsum(emits).tolist()),
        **dict(zip(PRODUCTS, products.tolist(), strict=True)),
    )


def _products(shape: StepShape) -> tuple[int, ...]:
    return further_runs(shape), earlier_slots(shape), shape.pairs, shape.drawn, shape.masked


def _ramps(values: npt.NDArray[np.int64], points: Sequence[int]) -> F64:
    """How far each value has come on each stretch between two points, (values, points): 0 before it, 1 at
    its end, more than 1 only beyond the last point. The first stretch is all or nothing."""
    if not len(points):
        return np.zeros((len(values), 0))
    columns = [(values > 0).astype(np.float64)]
    for low, high in pairwise(points):
        columns.append(np.maximum(0.0, (values - low) / (high - low)))
        if high != points[-1]:
            columns[-1] = np.minimum(1.0, columns[-1])
    return np.stack(columns, axis=1)


def nonnegative(design: F64, target: F64) -> F64:
    """The x >= 0 that minimises |design x - target| (Lawson and Hanson 1974, chapter 23).

    Args:
        design: (m, n). target: (m,).

    Returns:
        (n,); entries that the data say nothing about are 0.
    """
    # Columns of equal length: the parts differ by ten orders of magnitude.
    scale = np.linalg.norm(design, axis=0)
    scale[scale == 0.0] = 1.0
    scaled = design / scale
    count = scaled.shape[1]
    x, free = np.zeros(count), np.zeros(count, dtype=bool)
    tolerance = 1e-10 * np.abs(scaled.T @ target).max(initial=1e-300)
    for _ in range(3 * count):
        gradient = scaled.T @ (target - scaled @ x)
        gradient[free] = -np.inf
        if not count or gradient.max() <= tolerance:
            break
        free[np.argmax(gradient)] = True
        x = _inside(scaled, target, x, free)
    return x / scale


def _inside(design: F64, target: F64, x: F64, free: npt.NDArray[np.bool_]) -> F64:
    """Towards the least squares over the free columns, as far as no entry turns negative; columns that
    reach 0 on the way are no longer free."""
    while True:
        best = np.zeros_like(x)
        best[free] = np.linalg.lstsq(design[:, free], target, rcond=None)[0]
        falling = free & (best <= 0.0)
        if not falling.any():
            return best
        ways = np.full(len(x), np.inf)
        ways[falling] = x[falling] / np.maximum(x[falling] - best[falling], 1e-300)
        x = x + ways.min() * (best - x)
        free &= ways > ways.min()
        x[~free] = 0.0

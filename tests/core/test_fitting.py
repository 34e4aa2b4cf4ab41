"""The fit finds what the seconds were made of."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.core.cost import CostTable, StepShape
from shoal.core.fitting import fit, nonnegative

TRUE = CostTable(
    row_counts=(1, 2, 8, 32, 128, 512),
    row_seconds=(0.01, 0.011, 0.02, 0.05, 0.2, 0.9),
    emit_counts=(1, 8, 64),
    emit_seconds=(0.001, 0.004, 0.03),
    run=1e-4,
    gathered=2e-7,
    pair=3e-8,
    drawn=1e-3,
)


def random_shapes(rng, count):
    for _ in range(count):
        rows = int(2 ** rng.uniform(0.0, 9.5))
        runs = int(rng.integers(1, rows + 1))
        emits = int(rng.integers(0, min(runs, 80) + 1))
        gathered, pairs = rows + int(rng.integers(0, 900 * runs)), rows * int(rng.integers(1, 900))
        drawn, masked = (int(rng.integers(0, emits + 1)) for _ in range(2))
        yield StepShape(rows, runs, emits, gathered, pairs, drawn, masked)


@given(st.integers(0, 2**32))
def test_known_coefficients_are_recovered(seed):
    rng = np.random.default_rng(seed)
    measured = [(shape, TRUE.step(shape)) for shape in random_shapes(rng, 150)]
    found = fit(measured, TRUE.row_counts, TRUE.emit_counts)
    assert found.row_seconds == pytest.approx(TRUE.row_seconds, rel=1e-4)
    assert found.emit_seconds == pytest.approx(TRUE.emit_seconds, rel=1e-4)
    for name in ("run", "gathered", "pair", "drawn", "masked"):
        assert getattr(found, name) == pytest.approx(getattr(TRUE, name), rel=1e-4, abs=1e-12)


@given(st.integers(0, 2**32))
def test_noisy_seconds_give_a_table_that_never_falls(seed):
    rng = np.random.default_rng(seed)
    measured = [(s, TRUE.step(s) * rng.uniform(0.5, 2.0)) for s in random_shapes(rng, 30)]
    found = fit(measured, TRUE.row_counts, TRUE.emit_counts)
    assert np.all(np.diff(found.row_seconds, prepend=0.0) >= 0.0)
    assert np.all(np.diff(found.emit_seconds, prepend=0.0) >= 0.0)
    assert min(found.run, found.gathered, found.pair, found.drawn, found.masked) >= 0.0


@given(st.integers(0, 2**32), st.integers(1, 12), st.integers(0, 8))
def test_the_least_squares_cannot_be_bettered(seed, rows, columns):
    """A convex problem: the conditions of Karush, Kuhn and Tucker hold at the minimum and only there."""
    rng = np.random.default_rng(seed)
    design = rng.normal(size=(rows, columns)) * 10.0 ** rng.integers(-6, 6, columns)
    target = rng.normal(size=rows)
    x = nonnegative(design, target)
    gradient = design.T @ (design @ x - target)
    limit = 1e-6 * np.linalg.norm(design, axis=0) * np.linalg.norm(target)
    assert np.all(x >= 0.0)
    assert np.all(gradient >= -limit)
    assert np.all(np.abs(gradient[x > 0.0]) <= limit[x > 0.0])


def test_steps_of_one_kind_say_nothing_about_the_others():
    measured = [(StepShape(n, 1, 0, n, n * (n + 1) // 2), 0.1 + 0.01 * n) for n in (1, 2, 4, 8)]
    found = fit(measured, (1, 2, 4, 8), ())
    assert found.step(StepShape(4, 4, 0, 4000, 4000)) == pytest.approx(found.rows(4), rel=0.2)
    assert (found.run, found.gathered, found.emit_counts) == (0.0, 0.0, ())

"""Numbers for people, and ticks of axes."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.jobs.report import scale


@given(st.floats(1e-9, 1e15), st.integers(3, 8), st.booleans())
def test_ticks_are_few_even_and_within(high: float, most: int, whole: bool) -> None:
    ticks = scale.ticks(high, most, whole=whole)
    assert ticks[0] == 0
    assert ticks[-1] <= high * (1 + 1e-9)
    assert len(ticks) <= most + 1
    if not whole:
        assert len(ticks) >= 2
    for a, b in pairwise(ticks):
        assert b - a == pytest.approx(ticks[1])
    if len(ticks) > 1:
        step = ticks[1]
        assert step / 10 ** math.floor(math.log10(step) + 1e-9) == pytest.approx(
            min((1, 2, 5, 10), key=lambda nice: abs(nice - step / 10 ** math.floor(math.log10(step) + 1e-9)))
        )
        assert not whole or step == round(step)


@given(st.floats(1e-6, 1e6), st.floats(1.0001, 1e6))
def test_inner_and_logarithmic_ticks_stay_inside(low: float, factor: float) -> None:
    high = low * factor
    for ticks in (scale.inner_ticks(low, high), scale.log_ticks(low, high)):
        assert all(low * (1 - 1e-6) <= tick <= high * (1 + 1e-6) for tick in ticks)
        assert ticks == sorted(ticks)
        assert len(ticks) <= 14


@given(st.floats(1e-4, 1e8))
def test_time_ticks_are_few_and_start_at_zero(seconds: float) -> None:
    ticks = scale.time_ticks(seconds)
    assert ticks[0] == 0
    assert ticks[-1] <= seconds * (1 + 1e-6)
    assert len(ticks) <= 10


@pytest.mark.parametrize(("seconds", "step"), [(50, 10), (100, 15), (300, 60), (4000, 600), (90_000, 21_600)])
def test_time_ticks_are_whole_units(seconds: float, step: float) -> None:
    ticks = scale.time_ticks(seconds)
    assert ticks[1] - ticks[0] == step


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (0.25, "0.25"),
        (7, "7"),
        (999.4, "999"),
        (999.6, "1k"),
        (1234, "1.23k"),
        (65_536, "65.5k"),
        (2e9, "2G"),
    ],
)
def test_short_numbers(number: float, text: str) -> None:
    assert scale.short(number) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (0.0004, "0.4 ms"),
        (0.35, "350 ms"),
        (0.9999, "1 s"),
        (3.2, "3.2 s"),
        (59.96, "1 min"),
        (245, "4 min 5 s"),
        (3599.8, "1 h"),
        (7384, "2 h 3 min"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert scale.duration(seconds) == text


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (0, "0%"),
        (0.0004, "under 0.1%"),
        (0.034, "3.4%"),
        (0.5, "50%"),
        (0.997, "99.7%"),
        (0.9999, "over 99.9%"),
        (1, "100%"),
    ],
)
def test_shares_are_never_rounded_to_all_or_nothing(share: float, text: str) -> None:
    assert scale.percent(share) == text


def test_moments_on_an_axis() -> None:
    assert [scale.clock(0.05, 0.2), scale.clock(2.5, 60), scale.clock(200, 1000)] == [
        "50 ms",
        "2.5 s",
        "3:20",
    ]
    assert [scale.clock(7200, 9000), scale.clock(5000, 9000)] == ["2:00 h", "1:23:20"]

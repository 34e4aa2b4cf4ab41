"""Charts show what they are given, all of it, in well-formed SVG."""

from __future__ import annotations

import math
import re
from itertools import pairwise
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.jobs.report import charts
from shoal.jobs.report.charts import HEIGHT, WIDTH, Series
from shoal.jobs.trace import Bins, Histogram


def bins(seconds: list[float]) -> Bins:
    names = [name for name in Bins.__struct_fields__ if name != "seconds"]
    return Bins(seconds=seconds, **{name: list(range(len(seconds))) for name in names})


def numbers(path: str) -> list[float]:
    return [float(number) for number in re.findall(r"-?\d+\.?\d*", path)]


def inside(chart: charts.Chart) -> ElementTree.Element:
    """The drawing, parsed; nothing lies outside its box, and labels lie on their axes."""
    root = ElementTree.fromstring(str(chart.drawing))
    for rect in root.findall("rect"):
        x, y, width, height = (float(rect.get(name, "")) for name in ("x", "y", "width", "height"))
        assert x >= 0
        assert y >= -0.1
        assert x + width <= WIDTH + 0.1
        assert y + height <= HEIGHT + 0.1
    for axis in (chart.x, chart.y):
        assert all(-1e-9 <= at <= 1 + 1e-9 for at, _ in axis.ticks)
    assert len(chart.tips.edges) == len(chart.tips.labels) + 1
    assert all(len(values) == len(chart.tips.labels) for _, _, values in chart.tips.lines)
    return root


@given(st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=400), st.integers(1, 50))
def test_fewer_bins_of_about_equal_length_keep_the_time(seconds: list[float], most: int) -> None:
    fewer = charts.by_time(bins(seconds), most)
    assert len(fewer) <= most
    assert math.fsum(fewer.seconds) == pytest.approx(math.fsum(seconds))
    assert sum(fewer.steps) == sum(range(len(seconds)))


def test_areas_lie_upon_each_other() -> None:
    series = [Series("a", "prompt", [1.0, 3.0]), Series("b", "generated", [1.0, 5.0])]
    chart = charts.timeline([0.0, 1.0, 4.0], series, stacked=True, marks=[(1.0, "stopped")])
    paths = [path.get("d", "") for path in inside(chart).findall("path")]
    roof = charts.HEADROOM * 8
    x, floor = [0, 250, 1000], HEIGHT
    low = [HEIGHT * (1 - value / roof) for value in (1, 3)]
    high = [HEIGHT * (1 - value / roof) for value in (2, 8)]
    expected = [x[0], low[0], x[1], low[1], x[2], floor, x[1], floor, x[0]]
    assert numbers(paths[0]) == pytest.approx(expected, abs=0.06)
    expected = [x[0], high[0], x[1], high[1], x[2], low[1], x[1], low[0], x[0]]
    assert numbers(paths[1]) == pytest.approx(expected, abs=0.06)
    assert chart.marks == [(0.25, "stopped")]
    assert chart.tips.lines[1] == ("b", "generated", ["1", "5"])


@pytest.mark.parametrize("values", [[0.0], [0.0, 0.0], [1e-9], [1e12, 0.0]])
@pytest.mark.parametrize("stacked", [True, False])
def test_any_values_can_be_drawn(values: list[float], stacked: bool) -> None:
    edges = [0.1 * i for i in range(len(values) + 1)]
    inside(charts.timeline(edges, [Series("a", "prompt", values)], stacked=stacked, whole=True))


def shown(values: list[float], *, time: bool) -> charts.Chart:
    found = Histogram()
    for value in values:
        found.add(value)
    chart = charts.histogram(found, "", "prompt", time=time, thing="rows")
    inside(chart)
    assert [text for _, text in chart.marks] == ["median", "90%", "99%"]
    assert all(0 <= at <= 1 for at, _ in chart.marks)
    return chart


@given(st.lists(st.floats(1e-7, 1e7), min_size=1, max_size=60), st.integers(1, 60))
def test_every_value_lies_under_some_bar(values: list[float], bars: int) -> None:
    found = Histogram()
    for value in values:
        found.add(value)
    edges = [1.0 + i for i in range(bars + 1)]
    for whole in (False, True):
        assert math.fsum(charts.spread(found, edges, whole=whole)) == pytest.approx(len(values))


@given(st.lists(st.floats(1e-7, 1e5), min_size=1, max_size=60))
def test_any_times_can_be_drawn(values: list[float]) -> None:
    shown(values, time=True)


@given(st.lists(st.integers(0, 100_000), min_size=1, max_size=60))
def test_any_lengths_can_be_drawn(values: list[float]) -> None:
    shown(values, time=False)


def test_each_length_has_its_bar() -> None:
    chart = shown([1, 2, 2, 9, 12, 12, 12], time=False)
    label = chart.tips.labels
    _, _, counts = chart.tips.lines[0]
    assert {text: count for text, count in zip(label, counts) if count != "0"} == {
        "1": "1",
        "2": "2",
        "9": "1",
        "12": "3",
    }


def test_long_lengths_have_bars_no_finer_than_they_are_known() -> None:
    chart = shown([float(value) for value in range(418, 443)], time=False)
    _, _, counts = chart.tips.lines[0]
    assert sum(map(int, counts)) == 25
    assert set(counts[1:-1]) == {"4"}


def test_a_long_tail_makes_the_axis_logarithmic() -> None:
    chart = shown([0.01, 0.012, 0.02, 5.0], time=True)
    widths = [b / a for a, b in pairwise(scale_of(chart))]
    assert max(widths) == pytest.approx(min(widths), rel=0.05)


def scale_of(chart: charts.Chart) -> list[float]:
    """Seconds at a few equal distances, read off the tips."""
    units = {"ms": 1e-3, "s": 1.0}
    starts = [label.split(" to ")[0].split() for label in chart.tips.labels]
    return [float(number) * units[unit] for number, unit in starts][::8]

"""Charts as inline SVG under labels in HTML.

The drawing stretches with the page (a viewBox without a fixed aspect, strokes that do not scale) and the
labels keep their size, so that a chart can be read on a telephone. Colours are classes; the style sheet has
them for light and dark. Whatever stands in a label is escaped here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import msgspec
from markupsafe import Markup

from shoal.jobs.report import scale
from shoal.jobs.trace import Bins, Histogram, apart

WIDTH, HEIGHT = 1000, 240
MOST_POINTS = 240
HEADROOM = 1.04
MOST_BARS = 40
FEW = 8
WIDE = 30.0
"""From this ratio of the largest to the smallest usual value on, a histogram's axis is logarithmic."""


class Series(msgspec.Struct):
    """Values over bins of time. ``colour`` is a class of the style sheet."""

    name: str
    colour: str
    values: list[float]
    unit: str = ""


class Axis(msgspec.Struct):
    """Ticks as (share of the axis from 0 to 1, label)."""

    ticks: list[tuple[float, str]]


class Tips(msgspec.Struct):
    """What the pointer shows: ``edges`` of n bins as shares of the width (n + 1), a label each, and lines of
    (name, colour, n values)."""

    edges: list[float]
    labels: list[str]
    lines: list[tuple[str, str, list[str]]]


class Chart(msgspec.Struct):
    """A drawing and what stands around it."""

    drawing: Markup
    x: Axis
    y: Axis
    tips: Tips
    marks: list[tuple[float, str]] = []
    """Upright lines: (share of the width, what it says)."""


def by_time(bins: Bins, most: int = MOST_POINTS) -> Bins:
    """The same time in at most ``most`` bins of about equal length."""
    least, borders, length = sum(bins.seconds) / most, [0], 0.0
    for i, seconds in enumerate(bins.seconds):
        length += seconds
        # What rounding leaves over goes into the last bin.
        if length >= least * (1 - 1e-9) and len(borders) < most:
            borders.append(i + 1)
            length = 0.0
    if borders[-1] != len(bins):
        borders.append(len(bins))
    return bins.joined(borders)


def timeline(
    edges: list[float],
    series: Sequence[Series],
    *,
    stacked: bool,
    top: float = 0.0,
    whole: bool = False,
    title: str = "",
    marks: Sequence[tuple[float, str]] = (),
) -> Chart:
    """Series over time, as steps: areas upon each other, or lines.

    Args:
        edges: n + 1 seconds, ascending from 0; each series has n values.
        top: the axis reaches at least so far.
        whole: values are things that are counted.
        marks: (seconds, what happened).
    """
    end = edges[-1] or 1.0
    totals = [math.fsum(values) for values in zip(*(one.values for one in series))]
    peaks = totals if stacked else [value for one in series for value in one.values]
    roof = max(top, HEADROOM * max(peaks, default=0.0)) or 1.0
    x = [WIDTH * edge / end for edge in edges]
    shapes, below = [], [0.0] * len(totals)
    for one in series:
        height = [low + value for low, value in zip(below, one.values)] if stacked else one.values
        y = [HEIGHT * (1 - value / roof) for value in height]
        base = [HEIGHT * (1 - value / roof) for value in below] if stacked else None
        shapes.append(
            f'<path class="{"area" if stacked else "line"} {one.colour}" d="{_steps(x, y, base)}"/>'
        )
        if stacked:
            below = height
    upright = _upright(roof, whole)
    tips = Tips(
        [edge / end for edge in edges],
        [_stretch(scale.clock(a, end), scale.clock(b, end)) for a, b in pairwise(edges)],
        [(one.name, one.colour, [_value(value, one.unit) for value in one.values]) for one in series],
    )
    return Chart(
        _svg(shapes, upright, title),
        Axis([(tick / end, scale.clock(tick, end)) for tick in scale.time_ticks(end)]),
        upright,
        tips,
        [(seconds / end, text) for seconds, text in marks],
    )


def _stretch(start: str, end: str) -> str:
    return start if start == end else f"{start} to {end}"


def _value(value: float, unit: str) -> str:
    return f"{scale.short(value)} {unit}".rstrip()


def _upright(roof: float, whole: bool) -> Axis:
    return Axis([(tick / roof, scale.short(tick)) for tick in scale.ticks(roof, whole=whole)])


def _steps(x: list[float], y: list[float], base: list[float] | None) -> str:
    """A path of steps, closed along ``base`` where there is one."""
    parts = [f"M{_n(x[0])} {_n(y[0])}"]
    for i, height in enumerate(y):
        parts.append(f"{f'V{_n(height)}' if i else ''}H{_n(x[i + 1])}")
    if base is not None:
        for i in range(len(base) - 1, -1, -1):
            parts.append(f"V{_n(base[i])}H{_n(x[i])}")
        parts.append("Z")
    return "".join(parts)


def _n(number: float) -> str:
    """A coordinate in a tenth of a unit."""
    return f"{number:.1f}".removesuffix(".0")


def _svg(shapes: Sequence[str], upright: Axis, title: str) -> Markup:
    lines = "".join(
        f'<line class="{"grid" if at else "floor"}" x1="0" x2="{WIDTH}" y1="{y}" y2="{y}"/>'
        for at, _ in upright.ticks
        for y in [_n(HEIGHT * (1 - at))]
    )
    label = Markup(' role="img" aria-label="{}"').format(title) if title else Markup(' aria-hidden="true"')
    head = Markup('<svg viewBox="0 0 {} {}" preserveAspectRatio="none"{}>').format(WIDTH, HEIGHT, label)
    return head + Markup(lines + "".join(shapes) + "</svg>")


class Scaled(msgspec.Struct):
    """The axis of a histogram."""

    low: float
    high: float
    log: bool

    def share(self, value: float) -> float:
        """Where a value lies, 0 to 1."""
        if self.log:
            value, low, high = math.log(max(value, self.low)), math.log(self.low), math.log(self.high)
        else:
            low, high = self.low, self.high
        return min(1.0, max(0.0, (value - low) / (high - low)))

    def edges(self, bars: int) -> list[float]:
        if self.log:
            factor = self.high / self.low
            return [self.low * factor ** (i / bars) for i in range(bars + 1)]
        return [self.low + (self.high - self.low) * i / bars for i in range(bars + 1)]


def histogram(found: Histogram, name: str, colour: str, *, time: bool, thing: str, title: str = "") -> Chart:
    """How often which value occurred; upright marks at the median, 90% and 99%.

    Args:
        time: values are seconds; otherwise whole numbers of things.
        thing: what is counted, in the plural.
    """
    axis, bars = _scaled(found, time)
    edges = axis.edges(bars)
    heights = spread(found, edges, whole=not time)
    roof = HEADROOM * max(heights, default=0.0) or 1.0
    upright = _upright(roof, True)
    x = [axis.share(edge) for edge in edges]
    shapes = [
        f'<rect class="stick {colour}" x="{_n(WIDTH * a + 1)}" width="{_n(max(1.0, WIDTH * (b - a) - 2))}" '
        f'y="{_n(HEIGHT * (1 - height / roof))}" height="{_n(HEIGHT * height / roof)}"/>'
        for a, b, height in zip(x, x[1:], heights)
        if height > 0
    ]
    write = scale.duration if time else scale.short
    labels = [f"{_between(low, high, time)} {name}".rstrip() for low, high in pairwise(edges)]
    ticks = scale.log_ticks(axis.low, axis.high) if axis.log else scale.inner_ticks(axis.low, axis.high)
    if not time:
        ticks = sorted({float(math.floor(tick + 1e-9)) for tick in ticks if tick >= axis.low})
    # A bar that stands for one number has its tick in the middle.
    offset = 0.0 if time or axis.log or bars != axis.high - axis.low else 0.5
    placed = [(axis.share(tick + offset), write(tick)) for tick in ticks if tick + offset <= axis.high]
    marks = [(axis.share(found.quantile(q) + offset), text) for q, text in QUANTILES]
    values = [scale.count(height) if height >= 1 or not height else "under 1" for height in heights]
    return Chart(
        _svg(shapes, upright, title),
        Axis(placed),
        upright,
        Tips(x, labels, [(thing, colour, values)]),
        marks,
    )


QUANTILES = ((0.5, "median"), (0.9, "90%"), (0.99, "99%"))


def _between(low: float, high: float, time: bool) -> str:
    if time:
        return f"{scale.duration(low)} to {scale.duration(high)}"
    first, last = math.ceil(low - 1e-9), math.ceil(high - 1e-9) - 1
    return scale.count(first) if last <= first else f"{scale.count(first)} to {scale.count(last)}"


def _scaled(found: Histogram, time: bool) -> tuple[Scaled, int]:
    """The axis that shows the values best, and how many bars."""
    usual = max(found.quantile(0.02), 1e-6 if time else 1.0)
    low, high = found.low, found.high
    if high / usual > WIDE:
        return Scaled(max(low, usual / 10), high if time else high + 1, True), MOST_BARS
    if not time:
        return _whole(low, high, found.quantile(0.5))
    if high - low < 0.02 * high:
        # All about equal: show the neighbourhood.
        low, high = 0.9 * low, max(1.1 * high, 1e-9)
    elif low < 0.5 * high:
        low = 0.0
    return Scaled(low, high, False), MOST_BARS


def _whole(low: float, high: float, median: float) -> tuple[Scaled, int]:
    """Bars of as many whole numbers each, and of no fewer than the histogram can tell apart."""
    if low < 0.5 * high:
        low = 0.0
    if high - low < FEW:
        low, high = max(0.0, low - FEW // 2), high + FEW // 2
    size = max(math.ceil((high + 1 - low) / MOST_BARS), apart(median))
    low = size * math.floor(low / size)
    bars = math.ceil((high + 1 - low) / size)
    return Scaled(low, low + bars * size, False), bars


def spread(found: Histogram, edges: list[float], *, whole: bool) -> list[float]:
    """Values in each bar; a bin of the histogram that lies across an edge is divided by length.

    The outermost bars take what lies beyond them, so that nothing is left out.
    """
    heights = [0.0] * (len(edges) - 1)
    for low, high, count in found.bins():
        if whole:
            # The last whole number of the bin, and the room up to the next one.
            high = max(math.ceil(high), math.floor(low) + 1)
        _pour(heights, edges, low, high, count)
    return heights


def _pour(heights: list[float], edges: list[float], low: float, high: float, count: int) -> None:
    last = len(heights) - 1
    length = high - low
    for i in range(last + 1):
        a = -math.inf if i == 0 else edges[i]
        b = math.inf if i == last else edges[i + 1]
        if length <= 0:
            inside = 1.0 if a <= low < b else 0.0
        else:
            inside = max(0.0, min(b, high) - max(a, low)) / length
        heights[i] += count * inside

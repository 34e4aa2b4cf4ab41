"""Numbers for people: how they are written, and where an axis puts its ticks."""

from __future__ import annotations

import math

_UNITS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))

_SECONDS = (1, 2, 5, 10, 15, 30)
_STEPS_OF_TIME = tuple(unit * step for unit in (1, 60) for step in _SECONDS) + tuple(
    3600 * step for step in (1, 2, 3, 6, 12, 24, 48, 96, 168, 336)
)


def count(number: float) -> str:
    """A whole number with separators."""
    return f"{round(number):,}"


def short(number: float) -> str:
    """At most three digits and a unit: ``950``, ``1.2k``, ``34M``."""
    for size, unit in _UNITS:
        if abs(number) >= 0.9995 * size:
            return _three(number / size) + unit
    return _three(number)


def _three(number: float) -> str:
    """Three significant digits, no zeros behind the point."""
    if number == 0:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(abs(number)) + 1e-9))
    text = f"{number:.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def duration(seconds: float) -> str:
    """``350 ms``, ``3.2 s``, ``4 min 5 s`` or ``2 h 3 min``."""
    if seconds < 0.9995:
        return f"{_three(1000 * seconds)} ms" if seconds > 0 else "0 s"
    if seconds < 59.95:
        return f"{_three(seconds)} s"
    if seconds < 3599.5:
        minutes, rest = divmod(round(seconds), 60)
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"


def percent(share: float) -> str:
    """``12%``; small shares with one digit more; never 100% for less, nor 0% for more."""
    if 0 < share < 0.001:
        return "under 0.1%"
    if 0.9995 > share > 0.995 or 0 < share < 0.0995:
        return f"{100 * share:.1f}%"
    if 0.9995 <= share < 1:
        return "over 99.9%"
    return f"{100 * share:.0f}%"


def plural(number: int, thing: str, things: str = "") -> str:
    """``1 row``, ``2 rows``, ``no rows``."""
    return f"{count(number) if number else 'no'} {thing if number == 1 else things or thing + 's'}"


def ticks(high: float, most: int = 6, *, whole: bool = False) -> list[float]:
    """From 0 up to ``high`` in steps of 1, 2 or 5 times a power of ten, at most ``most`` of them.

    Args:
        whole: of things that are counted, so that no step is below 1.
    """
    if not high > 0 or not math.isfinite(high):
        return [0.0]
    step = _step(high / most)
    if whole:
        step = max(1.0, step)
    return [i * step for i in range(math.floor(high / step + 1e-9) + 1)]


def inner_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Multiples of a nice step inside [low, high]; at least one where the stretch is not empty."""
    if not high > low:
        return [low]
    step = _step((high - low) / most)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)]


def _step(least: float) -> float:
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least * (1 - 1e-9))


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten inside [low, high]; the powers alone where there are many."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if len(powers) <= 3 else (1, 3) if len(powers) <= 5 else (1,)
    found = [factor * 10.0**power for power in powers for factor in factors]
    return [tick for tick in found if low * (1 - 1e-9) <= tick <= high * (1 + 1e-9)]


def time_ticks(seconds: float, most: int = 8) -> list[float]:
    """Ticks on a time axis from 0: whole seconds, minutes and hours once it is long enough."""
    if not seconds > 0:
        return [0.0]
    if seconds / most < 1:
        return inner_ticks(0.0, seconds, most)
    step = next((step for step in _STEPS_OF_TIME if step * most >= seconds), _step(seconds / most))
    return [float(i * step) for i in range(math.floor(seconds / step + 1e-9) + 1)]


def clock(seconds: float, whole: float) -> str:
    """A moment on an axis that ends at ``whole``: ``2.5 s``, ``3:20`` or ``1:03:20``."""
    if whole <= 120:
        return f"{_three(seconds)} s" if whole >= 1 else f"{_three(1000 * seconds)} ms"
    minutes, rest = divmod(round(seconds), 60)
    if whole < 3600:
        return f"{minutes}:{rest:02}"
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if rest else f"{minutes // 60}:{minutes % 60:02} h"

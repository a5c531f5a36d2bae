"""From values to places on a picture: ticks, scales, and fewer points where there are too many."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

Point = tuple[float, float]


@dataclass(frozen=True)
class Scale:
    """Values from ``low`` to ``high`` on pixels from ``start`` to ``stop``."""

    low: float
    high: float
    start: float
    stop: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, value = (
            (math.log10(v) for v in (self.low, self.high, value))
            if self.log
            else (self.low, self.high, value)
        )
        share = (value - low) / (high - low) if high > low else 0.5
        return self.start + min(1.0, max(0.0, share)) * (self.stop - self.start)


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers (1, 2, 5 times a power of ten) from ``low`` to ``high``, both included."""
    if not high > low:
        return [low]
    rough = (high - low) / most
    base = 10.0 ** math.floor(math.log10(rough))
    step = next(base * m for m in (1, 2, 5, 10) if base * m >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{i * step:.12g}") for i in range(first, last + 1)]


def log_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Powers of ten from ``low`` to ``high``; 2 and 5 times them where these are few."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    inside = [10.0**d for d in decades if low <= 10.0**d * 1.001 and 10.0**d <= high * 1.001]
    if len(inside) >= 3:
        return inside[:: math.ceil(len(inside) / most)]
    finer = [m * 10.0**d for d in decades for m in (1, 2, 5)]
    chosen = [value for value in finer if low <= value * 1.001 and value <= high * 1.001]
    return chosen or [low]


def span(values: Sequence[float], *, zero: bool = False, log: bool = False) -> Point:
    """The stretch an axis should show: all values and a little air, never empty."""
    low, high = min(values), max(values)
    if log:
        return (low / 1.5, high * 1.5)
    if zero:
        low = min(low, 0.0)
    air = (high - low) * 0.06 or abs(high) * 0.05 or 1.0
    return (low if zero and low == 0 else low - air, high + air)


def thin(points: Sequence[Point], most: int = 400) -> list[Point]:
    """At most ``most`` points: first, last, and the lowest and highest of each stretch, so that no
    spike is lost.
    """
    if len(points) <= most:
        return list(points)
    kept: list[Point] = []
    for chunk in _chunks(points, (most - 2) // 2):
        kept += sorted({min(chunk, key=lambda p: p[1]), max(chunk, key=lambda p: p[1])})
    return [points[0], *(p for p in kept if p not in (points[0], points[-1])), points[-1]]


def some(points: Sequence[Point], most: int) -> list[Point]:
    """At most ``most`` points, evenly picked, first and last among them."""
    if len(points) <= most:
        return list(points)
    return [points[round(i * (len(points) - 1) / (most - 1))] for i in range(most)]


def smooth(points: Sequence[Point], share: float = 0.04) -> list[Point]:
    """Running mean over ``share`` of the points, centred, so that it does not lag behind."""
    half = max(1, round(len(points) * share / 2))
    sums = [0.0]
    for _, y in points:
        sums.append(sums[-1] + y)
    result: list[Point] = []
    for i, (x, _) in enumerate(points):
        reach = min(half, i, len(points) - 1 - i)
        result.append((x, (sums[i + reach + 1] - sums[i - reach]) / (2 * reach + 1)))
    return result


def _chunks(points: Sequence[Point], number: int) -> Iterator[Sequence[Point]]:
    for i in range(number):
        yield points[i * len(points) // number : (i + 1) * len(points) // number]

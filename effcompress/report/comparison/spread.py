"""Means, spreads, and what may be said of two of them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Spread:
    """Mean of ``number`` values and their sample standard deviation; None for a single value."""

    mean: float
    deviation: float | None
    number: int

    @property
    def error(self) -> float | None:
        """Standard error of the mean."""
        return None if self.deviation is None else self.deviation / math.sqrt(self.number)


def spread(values: Iterable[float | None]) -> Spread | None:
    """Of the values that are known; None if none is."""
    known = [float(v) for v in values if v is not None]
    if not known:
        return None
    if len(known) == 1:
        return Spread(known[0], None, 1)
    # Squares of what a broken model scores would overflow.
    scale = max(abs(v) for v in known) or 1.0
    deviation = scale * statistics.stdev(v / scale for v in known)
    return Spread(statistics.fmean(known), deviation, len(known))


def geometric_mean(values: Iterable[float]) -> float:
    """``exp`` of the mean logarithm: every domain counts alike, whatever its scale."""
    return math.exp(statistics.fmean(math.log(v) for v in values))


def tied(one: Spread, other: Spread) -> bool | None:
    """Whether two means are closer than twice their combined standard error (or equal); None where
    one of them is a single value, of which nothing can be said.
    """
    if one.error is None or other.error is None:
        return None
    difference = abs(one.mean - other.mean)
    return difference == 0 or difference < 2 * math.hypot(one.error, other.error)


BEST, TIED = "best", "tied"


def marks(values: Sequence[Spread | None]) -> list[str]:
    """For each: ``best`` (the lowest mean), ``tied`` with it, or nothing. Single values take no
    part, and one alone is not best of anything.
    """
    ranked = [v for v in values if v is not None and v.error is not None]
    if len(ranked) < 2:
        return ["" for _ in values]
    best = min(ranked, key=lambda v: v.mean)
    found: list[str] = []
    for value in values:
        close = value is not None and tied(value, best)
        found.append(BEST if value is best else TIED if close else "")
    return found

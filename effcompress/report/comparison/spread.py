"""Mean and spread over seeds, Welch's t test of two means, and Holm's correction for several."""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mpmath import betainc

LEVEL = 0.05
"""Significance level of the test for a tie."""
BEST, TIED = "best", "tied"


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
    """Returns mean and sample standard deviation of the known values; None if none is known."""
    known = [float(v) for v in values if v is not None]
    if not known:
        return None
    if len(known) == 1:
        return Spread(known[0], None, 1)
    # Squares of the perplexity of a broken model would overflow.
    scale = max(abs(v) for v in known) or 1.0
    deviation = scale * statistics.stdev(v / scale for v in known)
    return Spread(statistics.fmean(known), deviation, len(known))


def geometric_mean(values: Iterable[float]) -> float:
    """``exp`` of the mean logarithm: every domain has the same weight, whatever its scale."""
    return math.exp(statistics.fmean(math.log(v) for v in values))


def welch(one: Spread, other: Spread) -> float | None:
    """Returns the two-sided p value of Welch's t test for equal means; None where one side has a
    single value, whose spread is unknown.

    Source: B. L. Welch, Biometrika 34 (1947), with the Welch-Satterthwaite degrees of freedom.
    """
    if one.error is None or other.error is None:
        return None
    difference, combined = one.mean - other.mean, math.hypot(one.error, other.error)
    if not difference or not combined:
        return float(not difference)
    t = difference / combined
    # (s1²/n1 + s2²/n2)² / ((s1²/n1)²/(n1-1) + (s2²/n2)²/(n2-1)), in fractions of the combined
    # variance: the fourth powers of a broken model's perplexities would overflow.
    fractions = [((side.error or 0.0) / combined) ** 2 for side in (one, other)]
    freedom = 1 / sum(
        fraction**2 / (side.number - 1)
        for fraction, side in zip(fractions, (one, other), strict=True)
    )
    # P(|T| > t) of Student's distribution is the regularized incomplete beta function
    # I_x(freedom/2, 1/2) at x = freedom / (freedom + t²).
    return float(betainc(freedom / 2, 0.5, 0, freedom / (freedom + t * t), regularized=True))


def holm(p_values: Sequence[float]) -> list[float]:
    """Returns p values adjusted for their number: below a level in at most that fraction of the
    families in which no means differ.

    Source: S. Holm, Scandinavian Journal of Statistics 6 (1979).
    """
    order = sorted(range(len(p_values)), key=lambda k: p_values[k])
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, k in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p_values[k]))
        adjusted[k] = largest
    return adjusted


def marks(values: Sequence[Spread | None]) -> list[str]:
    """``best``, ``tied`` or nothing for each; of one value, or one ranked alone, nothing. Tied is
    what the tests against the best, adjusted for their number, do not tell from it at ``LEVEL``.
    """
    ranked = [v for v in values if v is not None and v.error is not None]
    if len(ranked) < 2:
        return ["" for _ in values]
    best = min(ranked, key=lambda v: v.mean)
    others = [v for v in ranked if v is not best]
    tested = [welch(value, best) for value in others]
    adjusted = holm([1.0 if p is None else p for p in tested])
    ties = [v for v, p in zip(others, adjusted, strict=True) if p >= LEVEL]
    return [BEST if v is best else TIED if any(v is one for one in ties) else "" for v in values]

"""How loss falls with tokens: a power law per row, its error, and where two of them cross."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from effcompress.record import readable
from effcompress.report import charts

DRAWS = 20_000
TONES = ("after", "attention", "ink", "hidden")


@dataclass(frozen=True)
class Power:
    """``loss = exp(intercept) tokens^slope`` in nats per token, by least squares on logarithms.
    ``covariance`` of (intercept, slope): None where two budgets or fewer leave no residual.
    """

    intercept: float
    slope: float
    covariance: tuple[tuple[float, float], tuple[float, float]] | None
    measured: tuple[float, float]
    """Fewest and most tokens of its points."""

    def __call__(self, tokens: float) -> float:
        """Returns the loss."""
        return math.exp(self.intercept + self.slope * math.log(tokens))

    @property
    def error(self) -> float | None:
        """Standard error of the slope."""
        return None if self.covariance is None else math.sqrt(self.covariance[1][1])


def fit(points: Sequence[tuple[float, float]]) -> Power:
    """Fits (tokens, loss). Raises ValueError for points of fewer than two budgets."""
    x, y = (np.log(np.array(values, dtype=np.float64)) for values in zip(*points, strict=True))
    if len(set(x.tolist())) < 2:
        raise ValueError("a power law needs two budgets at least")
    middle = x.mean()
    spread = float(((x - middle) ** 2).sum())
    slope = float(((x - middle) * y).sum() / spread)
    intercept = float(y.mean() - slope * middle)
    freedom = len(x) - 2
    covariance = None
    if freedom > 0:
        variance = float(((y - intercept - slope * x) ** 2).sum()) / freedom
        both = -middle / spread
        covariance = (
            (variance * (1 / len(x) + middle**2 / spread), variance * both),
            (variance * both, variance / spread),
        )
    return Power(intercept, slope, covariance, (math.exp(x.min()), math.exp(x.max())))


@dataclass(frozen=True)
class Crossing:
    """Tokens from which on the second law is lower, with the middle 68 % of draws from both fits'
    errors (None: not known); ``never``: fraction of the draws in which it does not get lower.
    """

    tokens: float
    low: float | None
    high: float | None
    never: float | None


def crossing(first: Power, second: Power, seed: int = 0) -> Crossing | None:
    """Returns where ``second``, which is higher at first, gets lower than ``first``; None where the
    fits never do. An extrapolation, and as good as the power law is.
    """
    at = _meet(first.intercept, first.slope, second.intercept, second.slope)
    if at is None:
        return None
    if first.covariance is None or second.covariance is None:
        return Crossing(at, None, None, None)
    rng = np.random.default_rng(seed)
    drawn = [
        rng.multivariate_normal((law.intercept, law.slope), np.array(law.covariance), DRAWS)
        for law in (first, second)
    ]
    met = [_meet(*a, *b) for a, b in zip(*(d.tolist() for d in drawn), strict=True)]
    found = [tokens for tokens in met if tokens is not None]
    low, high = (float(np.quantile(found, q)) for q in (0.16, 0.84))
    return Crossing(at, low, high, 1 - len(found) / DRAWS)


def _meet(a: float, slope: float, b: float, other: float) -> float | None:
    """Tokens at which the second law falls below the first; None where it falls less steeply."""
    if other >= slope:
        return None
    logarithm = (b - a) / (slope - other)
    return math.exp(logarithm) if logarithm < 200 else None


def chart(rows: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    """Returns perplexity over tokens, one line per row, as a file of its own (SVG)."""
    lines = [
        charts.Line(name, sorted((t, math.exp(loss)) for t, loss in points), tone, name)
        for (name, points), tone in zip(rows.items(), TONES, strict=False)
    ]
    made = charts.Chart(
        "How the lead grows",
        lines,
        "perplexity (logarithmic)",
        charts.PLAIN,
        readable.decimal,
        unit="geometric mean over the domains, per token; lower is better",
        log=True,
    )
    return charts.alone(charts.draw(made))

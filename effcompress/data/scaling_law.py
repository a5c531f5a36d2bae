"""Losses of a model that does not exist yet, from those of models of other sizes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from effcompress.spec import MeasuredSpec

LARGEST = 100.0
"""A larger loss is none of a language model."""
GRID = 240
"""Values of ``b`` between which the best one is looked for."""
STEEPEST = 30.0
"""Largest ``b ln(largest / smallest)``, up and down: beyond it the law is a step."""


@dataclass(frozen=True)
class ScalingLaw:
    """``c + A N^-b``, written as ``start - fall (1 - (N / smallest)^-b) / b``, which also holds
    where ``b`` is near 0 and ``A`` and ``c`` become huge.
    """

    start: float
    fall: float
    b: float
    smallest: int

    @property
    def a(self) -> float:
        """The factor ``A``."""
        return self.fall / self.b * self.smallest**self.b

    @property
    def c(self) -> float:
        """The loss of an infinite model, where ``b`` is above 0."""
        return self.start - self.fall / self.b

    def __call__(self, params: int) -> float:
        """The loss of a model of so many parameters."""
        return float(self.start - self.fall * _fallen(self.b, math.log(params / self.smallest)))


def _fallen(b: float, x: Any) -> Any:
    """``(1 - e^(-b x)) / b``; ``x`` where ``b`` is 0."""
    return -np.expm1(-b * x) / b if b else x


def _slope(b: float, x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Its derivative by ``b``."""
    if abs(b) < 1e-4:  # the next term of the series is below the rounding of the quotient
        return x * x * (b * x / 3 - 0.5)
    return (b * x * np.exp(-b * x) + np.expm1(-b * x)) / b**2


def fitted(params: Sequence[int], losses: Sequence[float]) -> ScalingLaw:
    """Fits the law to models of three sizes or more: exactly through three, by least squares to
    more. Nothing is bounded: the asymptote of measured losses may be negative.

    Raises ValueError where the losses do not fall with size as any such law does.
    """
    smallest, span = min(params), math.log(max(params) / min(params))
    x_M = np.log(np.asarray(params, np.float64) / smallest) / span
    loss_M = np.asarray(losses, np.float64)

    def line(b: float) -> tuple[float, float, NDArray[np.float64]]:
        """Of a given ``b`` the law is a straight line in what has fallen: start, fall, errors."""
        fallen_M = _fallen(b, x_M)
        off_M = fallen_M - fallen_M.mean()
        fall = -float(off_M @ loss_M / (off_M @ off_M))
        start = float(loss_M.mean() + fall * fallen_M.mean())
        return start, fall, loss_M - start + fall * fallen_M

    def uphill(b: float) -> bool:
        _, fall, error_M = line(b)
        return fall * float(error_M @ _slope(b, x_M)) > 0

    grid = np.linspace(-STEEPEST, STEEPEST, GRID).tolist()
    squares = [float(error_M @ error_M) for _, _, error_M in map(line, grid)]
    best = squares.index(min(squares))
    if best in (0, GRID - 1) or line(grid[best])[1] <= 0:
        said = ", ".join(f"{loss:g}" for _, loss in sorted(zip(params, losses, strict=True)))
        raise ValueError(f"the losses {said} do not fall with size as c + A params^-b does")
    low, high = grid[best - 1], grid[best + 1]
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (low, middle) if uphill(middle) else (middle, high)
    start, fall, _ = line(low)
    return ScalingLaw(start, fall / span, low / span, smallest)


def predicted(models: Sequence[MeasuredSpec], params: int) -> dict[str, float]:
    """Domain -> loss of a model of so many parameters. Raises ValueError naming the domain whose
    losses follow no law, or one that gives no loss of that size.
    """
    found: dict[str, float] = {}
    for domain in models[0].losses:
        try:
            law = fitted([m.params for m in models], [m.losses[domain] for m in models])
            with np.errstate(over="ignore"):
                found[domain] = law(params)
            if not 0 <= found[domain] <= LARGEST:
                raise ValueError(f"at {params:,} parameters the law gives {found[domain]:.3g}")
        except ValueError as error:
            raise ValueError(f"domain '{domain}': {error}") from error
    return found

"""One level per module under a budget: the multiple-choice knapsack, by dynamic programming."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from effcompress.errors import RunError

if TYPE_CHECKING:
    from torch import Tensor

BUCKETS = 10_000
ROUNDING = 1e-9
"""What binary numbers add to a cost that is a whole number of buckets, relative to the budget."""


def least_error(
    error_ML: Sequence[Sequence[float]],
    cost_ML: Sequence[Sequence[float]],
    budget: float,
    *,
    buckets: int = BUCKETS,
) -> list[int]:
    """Returns the level of every module with which the sum of errors is least and the sum of costs
    at most ``budget`` (arXiv:2302.04089; the program is that of SPDY, arXiv:2201.13096).

    The budget is divided into ``buckets``, and costs are rounded up to whole ones, so that the
    choice never exceeds it; it may miss one that lies within a bucket per module below it. Of equal
    errors the cheaper choice wins. Raises RunError, with the least cost that there is, where no
    choice fits.
    """
    cheapest = [min(range(len(costs)), key=costs.__getitem__) for costs in cost_ML]
    least = sum(costs[level] for costs, level in zip(cost_ML, cheapest, strict=True))
    if least > budget * (1 + ROUNDING) + ROUNDING:
        raise RunError(f"no choice of levels costs at most {budget:.6g}; the least is {least:.6g}")
    if budget <= 0:
        return _free(error_ML, cost_ML)
    whole_ML = [[_whole(cost, budget, buckets) for cost in costs] for costs in cost_ML]
    return _filled(error_ML, whole_ML, buckets) or cheapest


def _whole(cost: float, budget: float, buckets: int) -> int:
    return math.ceil(cost / budget * buckets - ROUNDING * buckets)


def _free(error_ML: Sequence[Sequence[float]], cost_ML: Sequence[Sequence[float]]) -> list[int]:
    """The best of the levels that cost nothing."""
    pairs = zip(error_ML, cost_ML, strict=True)
    return [
        min((k for k, cost in enumerate(costs) if cost <= ROUNDING), key=errors.__getitem__)
        for errors, costs in pairs
    ]


def _filled(
    error_ML: Sequence[Sequence[float]], whole_ML: Sequence[Sequence[int]], buckets: int
) -> list[int] | None:
    """``best_B[b]``: least error of the modules so far that fill exactly ``b`` buckets. None where
    rounding up leaves no choice.
    """
    import torch

    best_B = torch.full((buckets + 1,), torch.inf, dtype=torch.float64)
    best_B[0] = 0.0
    taken: list[Tensor] = []
    for errors, wholes in zip(error_ML, whole_ML, strict=True):
        next_B, level_B = torch.full_like(best_B, torch.inf), best_B.new_full(best_B.shape, -1)
        for level, (error, whole) in enumerate(zip(errors, wholes, strict=True)):
            if whole > buckets:
                continue
            tried_B = best_B.new_full(best_B.shape, torch.inf)
            tried_B[whole:] = best_B[: buckets + 1 - whole] + error
            better_B = tried_B < next_B
            next_B = torch.where(better_B, tried_B, next_B)
            level_B[better_B] = level
        best_B = next_B
        taken.append(level_B)
    at = int(best_B.argmin())
    if best_B[at] == torch.inf:
        return None
    levels: list[int] = []
    for level_B, wholes in zip(reversed(taken), reversed(whole_ML), strict=True):
        levels.append(int(level_B[at]))
        at -= wholes[levels[-1]]
    return levels[::-1]

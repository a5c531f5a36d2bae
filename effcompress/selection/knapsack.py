"""One level per module under a budget: the multiple-choice knapsack, by dynamic programming."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
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
    at most ``budget`` (arXiv:2302.04089, arXiv:2201.13096).

    The budget is divided into ``buckets``, and costs are rounded to whole ones: up, which never
    exceeds the budget but may miss a choice that just fits, and down, of which only what fits is
    taken. The better one wins. Raises RunError, with the least cost that there is, where no choice
    fits.
    """
    cheapest = [min(range(len(costs)), key=costs.__getitem__) for costs in cost_ML]
    least = sum(costs[level] for costs, level in zip(cost_ML, cheapest, strict=True))
    if least > budget * (1 + ROUNDING) + ROUNDING:
        raise RunError(f"no choice of levels costs at most {budget:.6g}; the least is {least:.6g}")
    if budget <= 0:
        return _free(error_ML, cost_ML)
    found = [cheapest]
    for rounded in (math.ceil, math.floor):
        whole_ML = [[_whole(c, budget, buckets, rounded) for c in costs] for costs in cost_ML]
        for levels in _best_first(error_ML, whole_ML, buckets):
            if _sum(cost_ML, levels) <= budget * (1 + ROUNDING):
                found.append(levels)
                break
    return min(found, key=lambda levels: (_sum(error_ML, levels), _sum(cost_ML, levels)))


def _sum(values_ML: Sequence[Sequence[float]], levels: Sequence[int]) -> float:
    return math.fsum(values[level] for values, level in zip(values_ML, levels, strict=True))


def _whole(cost: float, budget: float, buckets: int, rounded: Callable[[float], int]) -> int:
    exact = cost / budget * buckets
    near = round(exact)
    return near if abs(exact - near) <= ROUNDING * buckets else rounded(exact)


def _free(error_ML: Sequence[Sequence[float]], cost_ML: Sequence[Sequence[float]]) -> list[int]:
    """The best of the levels that cost nothing."""
    pairs = zip(error_ML, cost_ML, strict=True)
    return [
        min((k for k, cost in enumerate(costs) if cost <= ROUNDING), key=errors.__getitem__)
        for errors, costs in pairs
    ]


def _best_first(
    error_ML: Sequence[Sequence[float]], whole_ML: Sequence[Sequence[int]], buckets: int
) -> Iterator[list[int]]:
    """Yields the best choice for every number of buckets that is filled exactly, the one of least
    error first. ``best_B[b]``: least error of the modules so far that fill ``b``.
    """
    import torch

    best_B = torch.full((buckets + 1,), torch.inf, dtype=torch.float64)
    best_B[0] = 0.0
    taken: list[Tensor] = []
    for errors, wholes in zip(error_ML, whole_ML, strict=True):
        next_B = torch.full_like(best_B, torch.inf)
        level_B = torch.full_like(best_B, -1, dtype=torch.int32)
        for level, (error, whole) in enumerate(zip(errors, wholes, strict=True)):
            if whole > buckets:
                continue
            tried_B = torch.full_like(best_B, torch.inf)
            tried_B[whole:] = best_B[: buckets + 1 - whole] + error
            level_B[tried_B < next_B] = level
            next_B = torch.minimum(next_B, tried_B)
        best_B = next_B
        taken.append(level_B)
    for at in torch.sort(best_B, stable=True).indices.tolist():
        if best_B[at] == torch.inf:
            return
        levels: list[int] = []
        for level_B, wholes in zip(reversed(taken), reversed(whole_ML), strict=True):
            levels.append(int(level_B[at]))
            at -= wholes[levels[-1]]
        yield levels[::-1]

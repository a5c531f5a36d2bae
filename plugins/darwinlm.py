"""DarwinLM: an evolution over the levels of all blocks at equal cost (arXiv:2502.07780).

A generation makes children of one parent by exchanging levels between modules, so that the cost in
sum stays within the budget, and keeps the child whose whole model is nearest to the source model on
calibration text: many are compared on little text, the few that are left on more. The authors also
fine-tune every child for some thousand tokens before it is compared; that is left out here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

from effcompress import Positive, allocation, least_error

if TYPE_CHECKING:
    from torch import Generator

Levels = list[int]
Costs = Sequence[Sequence[float]]


@allocation("evolution", paper="arXiv:2502.07780, algorithm 1")
def evolution(
    error_ML: Sequence[Sequence[float]],
    cost_ML: Costs,
    budget: float,
    kind_M: Sequence[str],
    loss: Callable[[Sequence[int], int], float],
    sequences: int,
    generator: Generator,
    *,
    generations: Positive = 10,
    offspring: Positive = 16,
    swaps: Positive = 3,
    survivors: tuple[Positive, ...] = (8, 4, 2, 1),
    start: Literal["uniform", "least_error"] = "uniform",
) -> Levels:
    """The levels that ``generations`` of ``offspring`` children end with.

    A child has 1 to ``swaps`` exchanges: a module gets a level more, others of its kind a level
    less until the budget holds again. Of the children ``survivors[0]`` are kept by the loss on
    ``1 / 2^n`` of the sequences, and so on with twice the text; the parent takes part in the last
    round. ``start: uniform``: all modules lose about the same fraction.
    """
    if start == "uniform":
        parent = _uniform(cost_ML, budget)
    else:
        parent = least_error(error_ML, cost_ML, budget)
    rounds = survivors or (1,)
    for _ in range(generations):
        children = _children(parent, cost_ML, budget, kind_M, generator, offspring, swaps)
        for n, keep in enumerate(rounds):
            last = n == len(rounds) - 1
            text = max(1, sequences >> (len(rounds) - 1 - n))
            children += [parent] if last else []
            children = sorted(children, key=lambda levels: loss(levels, text))[:keep]
        parent = children[0] if children else parent
    return parent


def _cost(levels: Levels, cost_ML: Costs) -> float:
    return sum(costs[level] for costs, level in zip(cost_ML, levels, strict=True))


def _fits(levels: Levels, cost_ML: Costs, budget: float) -> bool:
    return _cost(levels, cost_ML) <= budget * (1 + 1e-12)


def _uniform(cost_ML: Costs, budget: float) -> Levels:
    """The levels next below one fraction of every module's cost, the largest that fits; what is
    left goes to the modules in their order.
    """
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        fits = _fits(_at_fraction(cost_ML, middle), cost_ML, budget)
        low, high = (middle, high) if fits else (low, middle)
    return _topped_up(_at_fraction(cost_ML, low), cost_ML, budget, range(len(cost_ML)))


def _at_fraction(cost_ML: Costs, fraction: float) -> Levels:
    """First level of every module that costs at most this fraction of the whole; else the last."""
    found = []
    for costs in cost_ML:
        low = [k for k, cost in enumerate(costs) if cost <= fraction * costs[0]]
        found.append(min(low, default=len(costs) - 1))
    return found


def _topped_up(levels: Levels, cost_ML: Costs, budget: float, order: Sequence[int]) -> Levels:
    """Gives modules a level more, one after another, as long as the budget holds."""
    found, grew = list(levels), True
    while grew:
        grew = False
        for m in order:
            wider = [*found[:m], found[m] - 1, *found[m + 1 :]]
            if found[m] and _fits(wider, cost_ML, budget):
                found, grew = wider, True
    return found


def _children(
    parent: Levels,
    cost_ML: Costs,
    budget: float,
    kind_M: Sequence[str],
    generator: Generator,
    offspring: int,
    swaps: int,
) -> list[Levels]:
    """Up to ``offspring`` children, all different and none like the parent."""
    found: dict[tuple[int, ...], Levels] = {}
    for _ in range(10 * offspring):
        child = list(parent)
        for _ in range(1 + _draw(swaps, generator)):
            child = _exchanged(child, cost_ML, budget, kind_M, generator)
        order = _shuffled(len(child), generator)
        child = _topped_up(child, cost_ML, budget, order)
        if child != parent:
            found[tuple(child)] = child
        if len(found) == offspring:
            break
    return list(found.values())


def _exchanged(
    levels: Levels, cost_ML: Costs, budget: float, kind_M: Sequence[str], generator: Generator
) -> Levels:
    """One module a level wider, and others of its kind narrower until the budget holds; unchanged
    where that is impossible.
    """
    wide = [m for m, level in enumerate(levels) if level]
    if not wide:
        return levels
    m = wide[_draw(len(wide), generator)]
    child = [*levels[:m], levels[m] - 1, *levels[m + 1 :]]
    while not _fits(child, cost_ML, budget):
        others = [
            k
            for k, level in enumerate(child)
            if k != m and kind_M[k] == kind_M[m] and level + 1 < len(cost_ML[k])
        ]
        if not others:
            return levels
        child[others[_draw(len(others), generator)]] += 1
    return child


def _draw(below: int, generator: Generator) -> int:
    import torch

    return int(torch.randint(below, (1,), generator=generator))


def _shuffled(count: int, generator: Generator) -> list[int]:
    import torch

    return torch.randperm(count, generator=generator).tolist()

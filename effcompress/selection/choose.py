"""Chooses the mini-groups to remove: scores and a budget in, a plan out. Changes no tensor."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from effcompress.registry import Bound
from effcompress.selection.budget import Budget
from effcompress.selection.candidates import Candidate, candidates_of
from effcompress.types import DEPTH, AxisMap, Due, GroupSet, Plan, Scores, Widths, axis_layer


@dataclass(frozen=True)
class Choice:
    """The mini-groups to remove, and the numbers behind the decision."""

    plan: Plan
    scores: dict[str, list[float]]
    """Raw saliency of each mini-group in the plan."""
    lowest: dict[str, float]
    """Kind -> lowest saliency per freed parameter when the decision was made."""
    removed: dict[str, int]
    """Kind -> mini-groups in the plan (a lockstep tuple or a block counts once)."""
    units: dict[str, int]
    """The same in units: a block counts as many as it has."""
    params: int
    widths: Widths
    exhausted: bool
    """The target is met, or no candidate may go any more."""


@dataclass(frozen=True)
class _Queue:
    """Units of one candidate, least salient first: ``total_J`` sums the j-th of every set."""

    units: dict[str, list[int]]
    raw: dict[str, list[float]]
    total_J: Tensor
    mean_J: Tensor
    """Mean of the candidates from the j-th on: the ones still alive when it is next."""


def choose(
    sets: Sequence[GroupSet],
    axes: AxisMap,
    scores: Scores,
    due: Due,
    target: int,
    selector: Bound,
    state: Any = None,
    begun: Widths | None = None,
    *,
    raw_pools: bool = False,
) -> Choice:
    """Returns the mini-groups to remove now.

    ``sets`` and ``axes`` describe the parent (original units), ``scores[set]`` is ``[G]`` with inf
    where a unit is gone. Stops at ``due``, and never passes ``target`` by more than 0.5 %.
    ``state``: what the selector's ``observe`` returned for this cut. ``begun``: the units that
    fractions are fractions of (default: all that the parent has). ``raw_pools``: within a pool
    saliency is compared as it is, not per parameter that a removal frees.

    Raises PluginError when the selector returns something else than one value per candidate.
    """
    # Mini-groups of a removed layer are neither candidates nor counted.
    there = {s.name: int(torch.isfinite(scores[s.name]).sum()) for s in sets}
    candidates = candidates_of(s for s in sets if axes.living(s.name, there))
    queues = [
        _queue([scores[name] for name in candidate.sets], candidate.sets, candidate.parts)
        for candidate in candidates
    ]
    alive = dict.fromkeys((s.name for s in sets), 0)
    alive |= {name: len(q.units[name]) for q in queues for name in q.units}
    budget = Budget(axes, candidates, alive, target)
    lowest = _lowest(queues, budget)
    taken = [0] * len(candidates)
    removed: dict[str, int] = {}
    known: dict[int, float] = {}
    while due.groups is None or sum(removed.values()) < due.groups:
        choices = _first_of_pools(budget.open(), queues, taken, budget, known, raw_pools)
        if not choices or budget.satisfies(due.params):
            break
        value_K = _compare(choices, queues, taken, budget, selector, state, begun or {})
        k = choices[int(value_K.argmin())]
        taken[k] += budget.step(k)
        budget.take(k)
        for j in budget.touched(k):
            known.pop(j, None)
        removed[candidates[k].kind] = removed.get(candidates[k].kind, 0) + 1
    plan, raw = _taken(budget, queues, taken)
    widths = {name: budget.widths[name] * axes.living(name, budget.widths) for name in alive}
    done = not budget.open()
    return Choice(plan, raw, lowest, removed, budget.units, budget.params, widths, done)


def _first_of_pools(
    choices: list[int],
    queues: list[_Queue],
    taken: list[int],
    budget: Budget,
    known: dict[int, float],
    raw: bool,
) -> list[int]:
    """Keeps of every pool (scope `global`) only its least salient candidate. ``known``: values of
    earlier removals that are still true; in a pool, one removal changes one value of many.
    """
    first: dict[str, int] = {}
    for k in choices:
        if not (pool := budget.candidates[k].pool):
            first[f"candidate {k}"] = k
            continue
        if k not in known:
            freed = 1 if raw else budget.freed(k)
            known[k] = float(_next(queues, taken, budget, k)) / freed
        if pool not in first or known[k] < known[first[pool]]:
            first[pool] = k
    return list(first.values())


def _next(queues: list[_Queue], taken: list[int], budget: Budget, k: int) -> Tensor:
    """Returns the saliency of the next step of candidate ``k``."""
    return queues[k].total_J[taken[k] : taken[k] + budget.step(k)].sum()


def _taken(
    budget: Budget, queues: list[_Queue], taken: list[int]
) -> tuple[Plan, dict[str, list[float]]]:
    """Returns the first ``taken[k]`` units of every set of candidate ``k``, and their raw saliency.
    Units of a layer that goes as well are left out.
    """
    plan: Plan = {}
    raw: dict[str, list[float]] = {}
    for candidate, queue, n in zip(budget.candidates, queues, taken, strict=True):
        for name in candidate.sets if n else ():
            if candidate.kind not in DEPTH and not budget.axes.living(name, budget.widths):
                continue
            chosen = dict(zip(queue.units[name][:n], queue.raw[name][:n], strict=True))
            plan[name] = sorted(chosen)
            raw[name] = [chosen[unit] for unit in plan[name]]
    return plan, raw


def least_salient(score_G: Tensor, count: int, parts: int = 1) -> tuple[list[int], list[float]]:
    """The ``count`` least salient units of one set in their order (equally many of each of
    ``parts``), and their raw saliency.
    """
    units, value = _ranked(score_G, parts)
    chosen = dict(zip(units[:count], value[:count].tolist(), strict=True))
    return sorted(chosen), [chosen[unit] for unit in sorted(chosen)]


def _ranked(score_G: Tensor, parts: int) -> tuple[list[int], Tensor]:
    """Units alive, least salient first (of equals those in front), and their saliency in fp64. With
    several ``parts``: the least salient of each part, then the next of each.
    """
    value, order = torch.sort(score_G.double(), stable=True)
    alive = int(torch.isfinite(value).sum())
    value, order = value[:alive], order[:alive]
    if parts > 1:
        part = order // (len(score_G) // parts)
        # The place of a unit among those of its own part.
        place = torch.stack([(part == p).cumsum(0) for p in range(parts)]).gather(0, part[None])[0]
        turn = torch.sort(place, stable=True).indices
        value, order = value[turn], order[turn]
    return order.tolist(), value


def _queue(scores: list[Tensor], names: tuple[str, ...], parts: int) -> _Queue:
    units: dict[str, list[int]] = {}
    raw: dict[str, list[float]] = {}
    ordered = []
    for name, score_G in zip(names, scores, strict=True):
        units[name], value = _ranked(score_G, parts)
        raw[name] = value.tolist()
        ordered.append(value)
    shortest = min(len(value) for value in ordered)
    total_J = torch.stack([value[:shortest] for value in ordered]).sum(0)
    left = torch.arange(len(total_J), 0, -1)
    mean_J = total_J.flip(0).cumsum(0).flip(0) / left
    return _Queue(units, raw, total_J, mean_J)


def _compare(
    choices: list[int],
    queues: list[_Queue],
    taken: list[int],
    budget: Budget,
    selector: Bound,
    state: Any,
    begun: Widths,
) -> Tensor:
    """The selector's value of every candidate, ``[K]``; the lowest goes.

    Raises PluginError when the selector returns something else.
    """

    def each(value: Callable[[int], float]) -> Tensor:
        return torch.tensor([value(k) for k in choices], dtype=torch.float64)

    # Asked once per removal, thousands of times in a cut: only what the selector takes is made.
    inputs: dict[str, Callable[[], Any]] = {
        "score_K": lambda: torch.stack([_next(queues, taken, budget, k) for k in choices]),
        "mean_K": lambda: torch.stack(
            [queues[k].mean_J[taken[k]] * budget.step(k) for k in choices]
        ),
        "params_K": lambda: each(budget.freed),
        "removed_K": lambda: each(budget.removed),
        "removed_after_K": lambda: each(budget.removed_after),
        "fraction_K": lambda: each(lambda k: _fraction_after(budget, k, begun)),
        "widths_K": lambda: each(lambda k: budget.widths[budget.candidates[k].sets[0]]),
        "begun_K": lambda: each(lambda k: _begun(budget, k, begun)),
        "layer_K": lambda: torch.tensor([_layer(budget.candidates[k]) for k in choices]),
        "state": lambda: state,
    }
    value_K = selector(**{need: inputs[need]() for need in selector.needs})
    wanted = f"where one number for each of {len(choices)} candidates was expected"
    selector.plugin.require_shape(value_K, wanted, (len(choices),))
    if bool(torch.isnan(value_K).any()):
        raise selector.plugin.error(f"returned NaN {wanted}")
    return value_K


def _begun(budget: Budget, k: int, begun: Widths) -> int:
    """Units of one set of candidate ``k`` when the stage began."""
    candidate = budget.candidates[k]
    return begun.get(candidate.sets[0], candidate.size)


def _fraction_after(budget: Budget, k: int, begun: Widths) -> float:
    """Fraction of the units that candidate ``k`` began with that is gone after its next step and
    what is promised by it.
    """
    return 1.0 - budget.width_after(k) / _begun(budget, k, begun)


def _layer(candidate: Candidate) -> int:
    """Number of the layer that a candidate's one set lies in; -1 for several, or none."""
    layer = axis_layer(candidate.sets[0]) if len(candidate.sets) == 1 else None
    return -1 if layer is None else layer


def _lowest(queues: list[_Queue], budget: Budget) -> dict[str, float]:
    """Per kind, the lowest saliency of a candidate for each parameter that it frees: one scale for
    all kinds, whatever the selector compares.
    """
    lowest: dict[str, float] = {}
    for k, (candidate, queue) in enumerate(zip(budget.candidates, queues, strict=True)):
        block = budget.step(k)
        if len(queue.total_J) >= block and budget.freed(k) > 0:
            value = float(queue.total_J[:block].sum()) / budget.freed(k)
            lowest[candidate.kind] = min(value, lowest.get(candidate.kind, value))
    return lowest

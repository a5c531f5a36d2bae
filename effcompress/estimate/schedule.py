"""The schedule, played on widths alone: what a run will do if kinds shrink in proportion.

Which kind really goes is decided by saliency during the run; the recipe's schedule and target are
followed to the step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from effcompress.estimate.feasibility import SizedModel, budget_of
from effcompress.selection.budget import Budget
from effcompress.selection.candidates import positions
from effcompress.selection.schedules import ask
from effcompress.selection.simulate import simulate
from effcompress.sparsity.needs import reads_inputs
from effcompress.spec import PruneSpec, Recipe
from effcompress.types import Due

WITHOUT_TEXT = {
    *("weight", "kind", "layer", "positions"),
    *("gain", "epsilon", "before", "after", "gone"),
}
"""Inputs of criteria and repairs that are known without reading any text."""


@dataclass(frozen=True)
class Point:
    """The model after an optimizer step at which something was cut (and at the ends)."""

    step: int
    tokens: int
    params: int
    widths: dict[str, int]


@dataclass(frozen=True)
class Timeline:
    """Points in order, and whether the target was met by the schedule."""

    points: tuple[Point, ...]
    reached: bool
    groups: int
    """Mini-groups cut (a lockstep tuple counts once)."""
    cuts: int = 0
    """Cuts that they went in; several may lie at one point."""
    rest: int = 0
    """Parameters that the schedule leaves too many, cut when the pruning stage ends and training
    goes on."""


def tokens_per_step(recipe: Recipe) -> int:
    """Tokens of one optimizer step."""
    return recipe.loop.batch_size * recipe.data.sequence_length if recipe.loop else 0


def stages_of(recipe: Recipe) -> dict[str, int]:
    """Stage -> tokens at which it ends; empty stages are left out. Without stages in the recipe,
    everything is the pruning stage (or training, where nothing is pruned).
    """
    train = recipe.train
    if recipe.recover is not None:
        return {"recovery": recipe.recover.tokens}
    if train is None:
        return {}
    if train.stages is None:
        return {"pruning" if recipe.prune else "training": train.tokens or 0}
    ends: dict[str, int] = {}
    for name, tokens in vars(train.stages).items():
        if tokens:
            ends[name] = max(ends.values(), default=0) + tokens
    return ends


def stage_at(recipe: Recipe, tokens: int) -> str:
    """The stage under way when so many tokens are behind; empty when all are."""
    return next((name for name, end in stages_of(recipe).items() if tokens < end), "")


def pruning_stage(recipe: Recipe) -> tuple[int, int]:
    """Tokens at which the pruning stage begins and ends."""
    stages = recipe.train.stages if recipe.train else None
    begin = stages.warmup if stages else 0
    return begin, (begin + stages.pruning if stages else total_tokens(recipe))


def total_tokens(recipe: Recipe) -> int:
    """Tokens that training reads: whole steps, at least what the recipe asks for."""
    per_step = tokens_per_step(recipe)
    asked = max(stages_of(recipe).values(), default=0)
    return -(-asked // per_step) * per_step if per_step else 0


def fastest(budget: Budget, k: int) -> float:
    """Prefer the line whose next removal frees most."""
    return -budget.freed(k)


def reads_text(prune: PruneSpec) -> bool:
    """Whether criterion or repairs use what only text gives (training's or calibration's)."""
    needs = {need for plugin in (prune.criterion, *prune.repair) for need in plugin.needs}
    selects = prune.selector is not None and bool(prune.selector.plugin.statistics)
    return selects or bool(needs - WITHOUT_TEXT)


def measures(recipe: Recipe) -> str:
    """Which text decides what goes and what makes up for it: ``training``, ``calibration`` or
    ``nothing``.
    """
    prune, sparsify = recipe.prune, recipe.sparsify
    if prune is not None and reads_text(prune):
        return prune.measure.source
    refits = prune is not None and prune.refit is not None
    zeros = sparsify is not None and reads_inputs(sparsify.method)
    return "calibration" if refits or zeros else "nothing"


def _first_step(prune: PruneSpec) -> int:
    """Nothing can be cut before the step after which there is a measurement."""
    return int(reads_text(prune) and prune.measure.source == "training")


def play(
    recipe: Recipe, price: SizedModel, prefer: Callable[[Budget, int], float] = Budget.removed
) -> Timeline:
    """Follow the schedule from the first step to the last."""
    prune, per_step, total = recipe.prune, tokens_per_step(recipe), total_tokens(recipe)
    assert prune is not None and price.target is not None
    budget = budget_of(price)
    due_at = _asking(recipe, price, budget)
    _, end = pruning_stage(recipe)
    points = [Point(0, 0, budget.params, dict(budget.widths))]
    cut = cuts = step = rest = 0
    last = total // per_step if per_step else 0
    for step in range(_first_step(prune), last + 1):
        due = due_at(step, cut)
        over = end < total and step * per_step >= end
        if due is None and not over:
            continue
        left, before = 0, cut
        if due is None or (over and not due.again and due.params != price.target):
            due, left = Due(params=price.target), budget.params - price.target
        while due is not None:
            taken = sum(simulate(budget, due.groups, prefer, due.params).values())
            cut += taken
            cuts += taken > 0
            due = due_at(step, cut) if due.again and taken else None
        if cut == before:
            continue
        rest = max(left, 0)
        points.append(Point(step, step * per_step, budget.params, dict(budget.widths)))
        if not budget.open():
            break
    points.append(Point(last, total, budget.params, dict(budget.widths)))
    return Timeline(tuple(points), budget.reached, cut, cuts, rest)


def _asking(recipe: Recipe, price: SizedModel, budget: Budget) -> Callable[[int, int], Due | None]:
    """(Step, mini-groups cut so far) -> what the schedule asks for, at the budget's size then."""
    prune, per_step = recipe.prune, tokens_per_step(recipe)
    assert prune is not None and price.target is not None
    begin, end = pruning_stage(recipe)
    fixed: dict[str, Any] = {
        "total_tokens": total_tokens(recipe),
        "start_params": price.start,
        "target_params": price.target,
        "removed": budget.units,
        "positions": positions(price.axes, price.sets),
        "prune_from": begin,
        "prune_until": end,
    }

    def due_at(step: int, cut: int) -> Due | None:
        place = {"step": step, "tokens": step * per_step, "params": budget.params}
        return ask(prune.schedule, **fixed, **place, groups_cut=cut)

    return due_at

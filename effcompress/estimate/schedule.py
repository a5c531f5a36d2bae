"""Simulates a recipe's schedule on widths alone: what a run will do if kinds shrink in proportion.

Saliency, which decides between kinds during the run, is not known here; schedule, stages and target
are followed to the step.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from effcompress.estimate.feasibility import SizedModel, budget_of
from effcompress.injectable import PLACE
from effcompress.selection.budget import Budget, simulate
from effcompress.selection.candidates import positions
from effcompress.sparsity.magnitude import reads_inputs
from effcompress.spec import LoopSpec, PruneSpec, Recipe
from effcompress.types import Due

WITHOUT_TEXT = {"weight", "uniform", *PLACE, "gain", "epsilon", "before", "after", "gone"}
"""Inputs of criteria and repairs that need no text."""


@dataclass(frozen=True)
class Point:
    """The model after an optimizer step at which something was cut, and at both ends."""

    step: int
    tokens: int
    params: int
    widths: dict[str, int]


@dataclass(frozen=True)
class Timeline:
    """Points in order; ``reached``: the schedule met the target."""

    points: tuple[Point, ...]
    reached: bool
    groups: int
    """Mini-groups cut (a lockstep tuple counts once)."""
    cuts: int = 0
    """Number of cuts; several may lie at one point."""
    rest: int = 0
    """Parameters above the target that the schedule leaves; they are cut at once when the pruning
    stage ends and training goes on."""


def tokens_per_step(recipe: Recipe, tokens: int = 0) -> int:
    """Returns the tokens of the optimizer step that begins at ``tokens``; 0 without training."""
    loop = loop_at(recipe, tokens)
    return loop.batch_size * recipe.data.sequence_length if loop else 0


def anew_at(recipe: Recipe) -> int | None:
    """Returns the tokens at which the continued stage begins as a training of its own (the stages
    before it, rounded up to whole steps); None where it is not one.
    """
    train = recipe.train
    if train is None or train.stages is None or train.continued is None:
        return None
    each = train.batch_size * recipe.data.sequence_length
    return -(-(train.stages.warmup + train.stages.pruning) // each) * each


def loop_at(recipe: Recipe, tokens: int) -> LoopSpec | None:
    """Returns the settings of the optimizer step that begins at ``tokens``."""
    train, anew = recipe.train, anew_at(recipe)
    if train is None or train.continued is None or anew is None or tokens < anew:
        return recipe.loop
    given = {key: value for key, value in vars(train.continued).items() if value is not None}
    return replace(train, **given)


def loops_of(recipe: Recipe) -> list[LoopSpec]:
    """Returns the settings of training, and those of a continued stage of its own behind them."""
    anew = anew_at(recipe)
    found = (loop_at(recipe, 0), None if anew is None else loop_at(recipe, anew))
    return [loop for loop in found if loop is not None]


def rate_span(recipe: Recipe, tokens: int) -> tuple[int, int]:
    """Returns the tokens from and to which the learning-rate schedule at ``tokens`` reaches."""
    anew, total = anew_at(recipe), total_tokens(recipe)
    if anew is None:
        return 0, total
    return (0, anew) if tokens < anew else (anew, total)


def clock(recipe: Recipe) -> Callable[[int], int]:
    """Returns a function: optimizer steps -> the tokens behind them. A forecast asks at each of a
    hundred thousand steps.
    """
    each, anew = tokens_per_step(recipe), anew_at(recipe)
    if anew is None:
        return lambda step: step * each
    own, before = tokens_per_step(recipe, anew), anew // each
    return lambda step: step * each if step <= before else anew + (step - before) * own


def stages_of(recipe: Recipe) -> dict[str, int]:
    """Returns stage -> tokens at which it ends, without empty stages. A recipe without stages has
    one: ``pruning``, or ``training`` where nothing is pruned.
    """
    train = recipe.train
    if recipe.recover is not None:
        return {"recovery": recipe.recover.tokens}
    if train is None:
        return {}
    if train.stages is None:
        return {"pruning" if recipe.prune else "training": train.tokens or 0}
    stages = {name: tokens for name, tokens in vars(train.stages).items() if tokens}
    return dict(zip(stages, itertools.accumulate(stages.values()), strict=True))


def stage_at(recipe: Recipe, tokens: int) -> str:
    """Returns the stage that the next token belongs to; empty after the last."""
    return next((name for name, end in stages_of(recipe).items() if tokens < end), "")


def pruning_stage(recipe: Recipe) -> tuple[int, int]:
    """Returns the tokens at which the pruning stage begins and ends."""
    stages = recipe.train.stages if recipe.train else None
    begin = stages.warmup if stages else 0
    return begin, (begin + stages.pruning if stages else total_tokens(recipe))


def total_tokens(recipe: Recipe) -> int:
    """Returns the tokens that training reads: the recipe's, rounded up to whole steps."""
    per_step, anew = tokens_per_step(recipe), anew_at(recipe)
    asked = max(stages_of(recipe).values(), default=0)
    if anew is not None and recipe.train and recipe.train.stages:
        own = tokens_per_step(recipe, anew)
        return anew + -(-recipe.train.stages.continued // own) * own
    return -(-asked // per_step) * per_step if per_step else 0


def steps_at(recipe: Recipe, tokens: int) -> int:
    """Returns the optimizer steps that ``tokens`` take."""
    each, anew = tokens_per_step(recipe), anew_at(recipe)
    if anew is None or tokens <= anew:
        return tokens // each if each else 0
    return anew // each + (tokens - anew) // tokens_per_step(recipe, anew)


def steps_of(recipe: Recipe) -> int:
    """Returns the optimizer steps of a run."""
    return steps_at(recipe, total_tokens(recipe))


def measurements(recipe: Recipe, begin: int, end: int) -> int:
    """Returns how often held-out losses are measured for the mixture while ``begin`` to ``end``
    tokens have been trained on, the end left out.
    """
    if recipe.data.mixture is None:
        return 0
    before, last = (max(0, steps_at(recipe, tokens) - 1) for tokens in (begin, end))
    return last // recipe.data.mixture.every - before // recipe.data.mixture.every


def too_rare(recipe: Recipe) -> str:
    """Returns the warning for a mixture that the run is too short to change; else nothing."""
    if recipe.data.mixture is None or measurements(recipe, 0, total_tokens(recipe)):
        return ""
    every = f"losses are measured every {recipe.data.mixture.every} steps, and the run has"
    return f"data.mixture.every: {every} {steps_of(recipe)}: the weights stay as they are"


def fastest(budget: Budget, k: int) -> float:
    """Preference for ``simulate``: the candidate whose next step frees most goes first."""
    return -budget.freed(k)


def reads_text(prune: PruneSpec) -> bool:
    """Returns whether criterion, repairs or selector need text, training or calibration."""
    if prune.rotate is not None:
        return True
    needs = {need for plugin in (prune.saliency, *prune.repair) for need in plugin.needs}
    selects = prune.selector is not None and bool(prune.selector.plugin.statistics)
    return selects or bool(needs - WITHOUT_TEXT)


def measures(recipe: Recipe) -> str:
    """Returns the text that saliency, repairs and refits read: ``training``, ``calibration`` or
    ``nothing``.
    """
    prune, sparsify = recipe.prune, recipe.sparsify
    if prune is not None and reads_text(prune):
        return prune.measure.source
    refits = prune is not None and prune.refit is not None
    zeros = sparsify is not None and reads_inputs(sparsify.method)
    return "calibration" if refits or zeros else "nothing"


def proportion(prune: PruneSpec) -> Callable[[Budget, int], float]:
    """Preference for ``simulate``: kinds shrink in proportion, by fractions before or after a
    removal as the selector compares them.
    """
    rounds_down = prune.selector is not None and "removed_after_K" in prune.selector.needs
    return Budget.removed_after if rounds_down else Budget.removed


def play(
    recipe: Recipe, sized: SizedModel, prefer: Callable[[Budget, int], float] | None = None
) -> Timeline:
    """Follows the schedule from the first step to the last, as ``runner/prune.py`` does. Kinds
    shrink in proportion, by fractions before or after a removal as the selector compares them.
    """
    prune, total = recipe.prune, total_tokens(recipe)
    assert prune is not None and sized.target is not None
    if prune.rotate is not None:
        return _sliced(recipe, sized)
    prefer = prefer or proportion(prune)
    budget = budget_of(sized)
    due_at, tokens_at = _asking(recipe, sized, budget), clock(recipe)
    _, end = pruning_stage(recipe)
    points = [Point(0, 0, budget.params, dict(budget.widths))]
    cut = cuts = step = rest = 0
    last = steps_of(recipe)
    # Saliency that comes from training needs a gradient before the first cut.
    first = int(reads_text(prune) and prune.measure.source == "training")
    for step in range(first, last + 1):
        tokens = tokens_at(step)
        due = due_at(step, tokens, cut)
        over = end < total and tokens >= end
        if due is None and not over:
            continue
        left, before = 0, cut
        # The pruning stage is over: what the schedule has not cut goes at once, in one cut.
        if due is None or (over and not due.again and due.params != sized.target):
            due, left = Due(params=sized.target), budget.params - sized.target
        while due is not None:
            taken = sum(simulate(budget, due.groups, prefer, due.params).values())
            cut += taken
            cuts += taken > 0
            due = due_at(step, tokens, cut) if due.again and taken else None
        if cut == before:
            continue
        rest = max(left, 0)
        points.append(Point(step, tokens, budget.params, dict(budget.widths)))
        if not budget.open():
            break
    points.append(Point(last, total, budget.params, dict(budget.widths)))
    return Timeline(tuple(points), budget.reached, cut, cuts, rest)


def _sliced(recipe: Recipe, sized: SizedModel) -> Timeline:
    """Returns the timeline of a recipe that slices the stream before the first step. All widths are
    those of the sliced model.
    """
    assert sized.target is not None
    widths, end = dict(sized.axes.widths), Point(0, 0, sized.target, dict(sized.axes.widths))
    last = replace(end, step=steps_of(recipe), tokens=total_tokens(recipe))
    return Timeline((Point(0, 0, sized.start, widths), end, last), True, 1, 1)


def _asking(
    recipe: Recipe, sized: SizedModel, budget: Budget
) -> Callable[[int, int, int], Due | None]:
    """Returns a function (step, tokens, mini-groups cut so far) -> what the schedule asks for."""
    prune = recipe.prune
    assert prune is not None and sized.target is not None
    begin, end = pruning_stage(recipe)
    fixed: dict[str, Any] = {
        "total_tokens": total_tokens(recipe),
        "start_params": sized.start,
        "target_params": sized.target,
        "removed": budget.units,
        "positions": positions(sized.axes, sized.sets),
        "prune_from": begin,
        "prune_until": end,
    }

    asks_left = "left" in prune.schedule.needs

    def due_at(step: int, tokens: int, cut: int) -> Due | None:
        place = {"step": step, "tokens": tokens, "params": budget.params, "groups_cut": cut}
        left = budget.left if asks_left else {}
        return prune.schedule.due(**fixed, **place, left=left)

    return due_at

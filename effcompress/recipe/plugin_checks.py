"""Whether the plugins of a recipe fit together and fit its training, before anything is loaded. No
plugin is known by name here. A schedule is asked by its own static check, and played on made-up
sizes where it matters whether everything goes at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from effcompress.errors import RecipeError
from effcompress.injectable import BACKWARD
from effcompress.recipe.source_map import Document, Key
from effcompress.registry import REGISTRY
from effcompress.spec import PruneSpec, Recipe
from effcompress.types import DEPTH

START, TARGET, GROUP = 1_000_000, 500_000, 1_000
"""Made-up sizes on which a schedule is played: parameters before and after, and of a mini-group."""
ROUNDS = 10_000
"""Cuts without training after which a schedule that asks for more is taken at its word."""


def check_plugins(recipe: Recipe, document: Document) -> None:
    """Raises RecipeError, at the line of the key that stands in the way."""
    prune = recipe.prune
    if prune is None:
        return
    found = prune.schedule.companion(**_stage(recipe))
    if found is not None:
        what, fix = found
        where = document.mark(("prune", "schedule")).where
        raise RecipeError(f"prune.schedule: {what}", where=where, fix=fix)
    for key, what, fix in _of_propagation(prune) if prune.measure.propagate else ():
        where = document.mark(("prune", *key)).where
        raise RecipeError(f"prune.measure.propagate: {what}", where=where, fix=fix)


def _of_propagation(prune: PruneSpec) -> Iterator[tuple[Key, str, str]]:
    """What keeps layers from being measured on what pruned layers hand on."""
    needs, name = set(prune.criterion.needs), prune.criterion.name
    if prune.measure.source != "calibration":
        what = "layers hand on calibration text, and none is read"
        yield ("measure", "propagate"), what, "Write `source: calibration` beside it."
    if BACKWARD & needs or not prune.criterion.plugin.reads_inputs:
        readers = [p.name for p in REGISTRY.all("criterion") if p.reads_inputs]
        what = f"'{name}' does not score by what layers read alone"
        yield ("criterion",), what, f"Remove `propagate`, or use one of {', '.join(readers)}."
    for index, space in enumerate(prune.space):
        if space.name == "hidden" or space.name in DEPTH:
            what = f"what goes of '{space.name}' does not lie within a layer"
            yield ("space", index), what, "Remove `propagate`, or this space."


def _stage(recipe: Recipe) -> dict[str, int]:
    """The tokens that a schedule's static check may ask for."""
    loop, train = recipe.loop, recipe.train
    per_step = loop.batch_size * recipe.data.sequence_length if loop and train else 0
    stages = train.stages if train else None
    begin = stages.warmup if stages else 0
    total = recipe.recover.tokens if recipe.recover else (train.tokens or 0) if train else 0
    if stages:
        total = stages.warmup + stages.pruning + stages.continued
    return {
        "tokens_per_step": per_step,
        "total_tokens": total,
        "prune_from": begin,
        "prune_until": begin + stages.pruning if stages else total,
    }


def cuts_all_at_start(recipe: Recipe) -> bool:
    """Whether the schedule reaches its target before the first optimizer step.

    Raises PluginError when the schedule fails or answers with something else than ``Due``.
    """
    prune = recipe.prune
    assert prune is not None
    place: dict[str, Any] = {
        **{"step": 0, "tokens": 0, "start_params": START, "target_params": TARGET},
        **{"removed": {}, "positions": {}, **_stage(recipe)},
    }
    params = START
    for cut in range(ROUNDS):
        due = prune.schedule.due(**place, params=params, groups_cut=cut)
        if due is None:
            return False
        left = params - GROUP * (due.groups or 0) if due.params is None else due.params
        if left <= TARGET:
            return True
        if not due.again or left >= params:
            return False
        params = left
    return True

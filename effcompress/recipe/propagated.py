"""Where ``prune.measure.propagate`` has a meaning: said before anything is loaded."""

from __future__ import annotations

from collections.abc import Iterator

from effcompress.errors import RecipeError
from effcompress.injectable import BACKWARD, READ
from effcompress.recipe.source_map import Document, Key
from effcompress.spec import PruneSpec, Recipe
from effcompress.types import DEPTH


def check_propagated(recipe: Recipe, document: Document) -> None:
    """Raises RecipeError, at the line of the key that stands in the way."""
    prune = recipe.prune
    if prune is None or not prune.measure.propagate:
        return
    for key, what, fix in _obstacles(prune):
        where = document.mark(("prune", *key)).where
        raise RecipeError(f"prune.measure.propagate: {what}", where=where, fix=fix)


def _obstacles(prune: PruneSpec) -> Iterator[tuple[Key, str, str]]:
    needs, name = set(prune.criterion.needs), prune.criterion.name
    if prune.measure.source != "calibration":
        what = "layers hand on calibration text, and none is read"
        yield ("measure", "propagate"), what, "Write `source: calibration` beside it."
    if BACKWARD & needs or not READ & needs:
        what = f"'{name}' does not score by what layers read alone"
        yield ("criterion",), what, "Remove `propagate`, or use wanda, flap or minitron."
    for index, space in enumerate(prune.space):
        if space.name == "hidden" or space.name in DEPTH:
            what = f"what goes of '{space.name}' does not lie within a layer"
            yield ("space", index), what, "Remove `propagate`, or this space."

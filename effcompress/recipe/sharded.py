"""What a model that is shared out over processes cannot do yet: said before anything is loaded."""

from __future__ import annotations

from collections.abc import Iterator

from effcompress.errors import RecipeError
from effcompress.recipe.source_map import Document, Key
from effcompress.spec import Recipe

FIX = "Write `distributed: {mode: replicate}`"


def check_sharded(recipe: Recipe, document: Document) -> None:
    """Raises RecipeError, at the line of the key that stands in the way."""
    if recipe.distributed.mode != "shard":
        return
    for key, what, fix in _obstacles(recipe):
        where = document.mark(key).where
        raise RecipeError(f"distributed.mode shard: {what}", where=where, fix=fix)


def _obstacles(recipe: Recipe) -> Iterator[tuple[Key, str, str]]:
    prune = recipe.prune
    if recipe.sparsify is not None:
        yield ("sparsify",), "sparsify needs the whole model in each process", f"{FIX}."
    if recipe.recover is not None and recipe.recover.method != "full":
        what = f"recover.method {recipe.recover.method} needs the whole model in each process"
        yield ("recover", "method"), what, f"Write `method: full`, or {FIX[0].lower()}{FIX[1:]}."
    if recipe.evaluate.tasks is not None:
        fix = "Remove it, and measure the result with `effcompress eval`."
        yield ("evaluate", "tasks"), "tasks are measured by one process alone", fix
    if prune is None:
        return
    if prune.measure.source != "training":
        what = "calibration needs the whole model in each process"
        fix = f"Write `measure: {{source: training}}` and `train:`, or {FIX[0].lower()}{FIX[1:]}."
        yield ("prune", "measure"), what, fix
    if prune.refit is not None:
        yield ("prune", "refit"), "refit needs the whole model in each process", f"{FIX}."

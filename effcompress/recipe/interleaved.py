"""Whether there is training for the schedule ``interleaved``: said before anything is loaded."""

from __future__ import annotations

from effcompress.errors import RecipeError
from effcompress.recipe.source_map import Document
from effcompress.spec import Recipe


def check_interleaved(recipe: Recipe, document: Document) -> None:
    """Raises RecipeError, at the line of the schedule, when nothing would be trained behind the
    last cut.
    """
    prune, train = recipe.prune, recipe.train
    if prune is None or prune.schedule.name != "interleaved":
        return
    where = document.mark(("prune", "schedule")).where
    if train is None:
        problem = "prune.schedule: 'interleaved' cuts between shards of training, but there is none"
        fix = "Add `train:`, or write `schedule: {name: once, at: 0, rounds: 10}`."
        raise RecipeError(problem, where=where, fix=fix)
    known, knobs = prune.schedule.plugin.knobs, prune.schedule.knobs
    stages = int(knobs.get("stages", known["stages"].default))
    begin = train.stages.warmup if train.stages else 0
    until = begin + train.stages.pruning if train.stages else train.tokens or 0
    start, end = knobs.get("start"), knobs.get("end")
    span = (until if end is None else end) - (begin if start is None else start)
    parts = 1 / stages if knobs.get("shards") == "equal" else 2 / (stages + 1)
    last, step = int(span * parts), train.batch_size * recipe.data.sequence_length
    if last < step:
        raise RecipeError(
            f"prune.schedule: the last of {stages} shards has {last:,} tokens, an optimizer step "
            f"{step:,}: nothing would be trained behind the last cut",
            where=where,
            fix="Write fewer `stages`, more tokens, or a smaller train.batch_size.",
        )

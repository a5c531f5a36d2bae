"""Sizes that a run passes: whether a model of each can be had (``export.at``), when the run comes
by it, and what it looks like then. Without torch.
"""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import replace

from effcompress.errors import RecipeError
from effcompress.estimate.exports import require_form
from effcompress.estimate.feasibility import SizedModel, require_reachable
from effcompress.estimate.schedule import Point, Timeline, proportion
from effcompress.recipe import LoadedRecipe
from effcompress.record.readable import short_count
from effcompress.selection.budget import Budget, simulate
from effcompress.selection.candidates import candidates_of
from effcompress.selection.reachability import TOLERANCE
from effcompress.spec import TargetSpec

TARGET = "prune.target.params"
"""Key that a size takes the place of when it is checked as a target of its own."""


def require_sizes(loaded: LoadedRecipe, found: SizedModel) -> list[str]:
    """Returns a line on the sizes of ``export.at``. Raises RecipeError, at the line of the first
    one that is not between source and target, that cannot be reached, or of which the form that
    the recipe names cannot hold a model.
    """
    spec, written = loaded.recipe.export, loaded.recipe.export.at or ()
    for index, size in enumerate(written):
        require_size(loaded, found, size, f"export.at.{index}")
    if not written or found.target is None:
        return []
    listed = ", ".join(short_count(size) for size in spec.sizes if not is_target(size, found))
    more = f", each trained on for {spec.continued:,} tokens" if spec.continued else ""
    return [f"export.at: a model of {listed} parameters{more}, and that of the target"]


def is_target(size: int, found: SizedModel) -> bool:
    """Whether a model of this size is that of the run itself."""
    return found.target is not None and abs(size - found.target) <= TOLERANCE * found.target


def require_size(loaded: LoadedRecipe, found: SizedModel, size: int, key: str) -> SizedModel:
    """Returns the sized model of the recipe with this size as its target. Raises RecipeError, with
    the line of ``key``, where that could not be run, and where the run does not pass it.
    """
    where = loaded.where(key)
    prune = loaded.recipe.prune
    if prune is None or found.target is None or is_target(size, found):
        return found
    if not found.target < size < found.start:
        raise RecipeError(
            f"{key}: {size:,} parameters are not between the source model's {found.start:,} and "
            f"the target's {found.target:,}",
            where=where,
            fix="Name sizes that the run passes.",
        )
    own = replace(
        loaded,
        recipe=replace(loaded.recipe, prune=replace(prune, target=TargetSpec(params=size))),
        origins={**loaded.origins, TARGET: where or "default"},
    )
    try:
        sized = require_reachable(own)
        assert sized is not None, "the configuration is known"
        require_form(own, sized)
    except RecipeError as error:
        what = error.what.replace("prune.target", key)
        what = what if key in what else f"{key}: at {size:,} parameters, {what}"
        raise RecipeError(what, where=where, fix=error.fix) from error
    return sized


def points_at(
    loaded: LoadedRecipe, found: SizedModel, timeline: Timeline, sizes: Mapping[str, int]
) -> Iterator[tuple[int, SizedModel, Point]]:
    """Yields every size (key -> parameters), the largest first, with its sized model and the point
    at which the run passes it: step and tokens of that cut, and the widths of a model that is cut
    to this size there, if kinds shrink in proportion. Raises RecipeError as ``require_size``.
    """
    prune, pairs = loaded.recipe.prune, [*itertools.pairwise(timeline.points)]
    assert prune is not None
    for key, size in sorted(sizes.items(), key=lambda one: -one[1]):
        own = require_size(loaded, found, size, key)
        assert own.target is not None, "sizes are refused where the target is none"
        before, after = next((p for p in pairs if p[1].params <= own.target), pairs[-1])
        if prune.rotate is not None:
            yield size, own, replace(after, params=own.target, widths=dict(own.axes.widths))
            continue
        there = candidates_of(s for s in own.sets if own.axes.living(s.name, before.widths))
        budget = Budget(own.axes, there, before.widths, own.target)
        simulate(budget, prefer=proportion(prune))
        widths = {**before.widths, **budget.widths}
        yield size, own, replace(after, params=budget.params, widths=widths)

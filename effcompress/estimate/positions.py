"""Whether texts are longer than the positions that a model has, or was trained for."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from effcompress.errors import RecipeError
from effcompress.model.suitability import positions_of
from effcompress.recipe import LoadedRecipe
from effcompress.spec import Recipe
from effcompress.types import Config


def require_positions(loaded: LoadedRecipe, config: Config, prompt: int) -> list[str]:
    """Returns a warning for each length beyond the positions that the model was trained for;
    ``prompt``: tokens of the prompt.

    Raises RecipeError where the model has no other positions.
    """
    fixed = positions_of(config)[1]
    warnings = []
    for key, text, fix in _too_long(loaded.recipe, config, prompt):
        if fixed:
            where = loaded.where(key)
            raise RecipeError(f"{key}: {text}", where=where, fix=fix)
        warnings.append(f"warning: {key}: {text}; it was not trained on others")
    return warnings


def warn_of_positions(
    recipe: Recipe, config: Config, prompt: int, warn: Callable[[str], None]
) -> None:
    """Calls ``warn`` with each of these warnings."""
    for key, text, _ in _too_long(recipe, config, prompt):
        warn(f"{key}: {text}; it was not trained on others")


def _too_long(recipe: Recipe, config: Config, prompt: int) -> Iterator[tuple[str, str, str]]:
    """Yields key, finding and remedy."""
    limit = positions_of(config)[0]
    if limit is None:
        return
    length, new = recipe.data.sequence_length, recipe.evaluate.new_tokens
    if length > limit:
        text = f"{length} tokens, and the model has {limit} positions"
        yield "data.sequence_length", text, f"Write data.sequence_length: {limit}, or less."
    load = recipe.prune.workload if recipe.prune else None
    if load is not None and (steps := load.length + max(load.new, load.rounds + 2)) > limit:
        text = f"{steps} tokens with those that are generated, and the model has {limit} positions"
        fix = f"Write prune.workload.length: {max(1, limit - steps + load.length)}, or less."
        yield "prune.workload.length", text, fix
    if prompt + new > limit:
        text = f"{prompt} tokens of the prompt + {new}, and the model has {limit} positions"
        fix = f"Write evaluate.new_tokens: {max(1, limit - prompt)}, or a shorter evaluate.prompt."
        yield "evaluate.new_tokens", text, fix

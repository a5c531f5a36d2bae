"""Packages that a recipe needs and effcompress does not bring."""

from __future__ import annotations

import importlib.util

from effcompress.errors import RecipeError
from effcompress.recipe.load import LoadedRecipe


def require_trackers(loaded: LoadedRecipe) -> None:
    """Raises RecipeError, with the line that names it, for a tracker that is not installed. Imports
    none of them.
    """
    spec = loaded.recipe.track
    for index, name in enumerate(spec.to if spec is not None else ()):
        if not _here(name):
            key = f"track.to.{index}"
            raise RecipeError(
                f"{key}: {name} is not installed",
                where=loaded.origins.get(key),
                fix=f"pip install {name}, or take it out of track.to.",
            )


def _here(name: str) -> bool:
    found = importlib.util.find_spec(name)
    # A mere folder of that name is none: W&B leaves one called wandb wherever it runs.
    return found is not None and found.origin is not None

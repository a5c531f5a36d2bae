"""What can be known to fail before torch is imported, a folder is made, or a byte is fetched."""

from __future__ import annotations

import os

from effcompress.errors import RunError, SourceError
from effcompress.model import source
from effcompress.recipe import LoadedRecipe
from effcompress.runner.reach import require_reachable


def preflight(loaded: LoadedRecipe, *, offline: bool) -> None:
    """Raises RecipeError for a target out of reach, SourceError for a model that is not here when
    ``offline``, RunError when a launcher started several processes.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise RunError(
            "a run is one process; several were started (WORLD_SIZE is above 1)",
            fix="Start it with plain `effcompress run`.",
        )
    require_reachable(loaded)
    if offline:
        require_here(loaded)


def require_here(loaded: LoadedRecipe) -> None:
    """Raises SourceError naming the first thing of the model that would have to be fetched."""
    missing = [item.name for item in source.items(loaded.recipe.model) if not item.cached]
    if missing:
        raise SourceError(
            f"'{missing[0]}' is not on this machine",
            where="model",
            fix=f"Run `effcompress fetch {loaded.path}` where there is a network.",
        )

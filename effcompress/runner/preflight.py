"""What can be known to fail before torch is imported, a folder is made, or a byte is fetched."""

from __future__ import annotations

import os
import shutil

from effcompress.errors import RecipeError, SourceError
from effcompress.estimate.check import check
from effcompress.model import source
from effcompress.recipe import LoadedRecipe, require_trackers
from effcompress.runner import tasks


def preflight(loaded: LoadedRecipe, *, offline: bool) -> None:
    """Raises RecipeError for a target out of reach, a batch that the processes cannot share, tasks
    without the harness or a tracker that is not installed, SourceError for what is not here when
    ``offline``.
    """
    require_trackers(loaded)
    check(loaded)
    _require_shares(loaded)
    _require_compiler(loaded)
    tasks.require_harness(loaded.recipe.evaluate.tasks)
    if offline:
        require_here(loaded)
        if any(domain.hub for domain in loaded.recipe.data.domains.values()):
            _require_text(loaded)


def _require_shares(loaded: LoadedRecipe) -> None:
    """Each of the processes that were launched together computes equally many rows."""
    size, loop = int(os.environ.get("WORLD_SIZE") or 1), loaded.recipe.loop
    if loop is not None and loop.batch_size % size:
        key = "recover" if loaded.recipe.recover is not None else "train"
        raise RecipeError(
            f"{key}.batch_size {loop.batch_size} is the batch of all processes, and {size} of them "
            "cannot share it equally",
            fix=f"Write {key}.batch_size: {-(-loop.batch_size // size) * size}.",
        )


def _require_compiler(loaded: LoadedRecipe) -> None:
    """What torch compiles for a CPU, and what starts kernels on a GPU, is C++."""
    loop = loaded.recipe.loop
    if loop is not None and loop.compile and not any(map(shutil.which, _compilers())):
        key = "recover" if loaded.recipe.recover is not None else "train"
        raise RecipeError(
            f"{key}.compile needs a C++ compiler, and there is none here",
            fix=f"Install one (g++, clang++), name it in $CXX, or write {key}.compile: false.",
        )


def _compilers() -> list[str]:
    own = os.environ.get("CXX")
    return [own] if own else ["g++", "c++", "clang++", "cl"]


def require_here(loaded: LoadedRecipe) -> None:
    """Raises SourceError naming the first thing that would have to be fetched: of the model, or of
    the tasks.
    """
    recipe = loaded.recipe
    wanted = [*source.items(recipe.model), *tasks.items(recipe.evaluate.tasks)]
    if missing := [item for item in wanted if not item.cached]:
        raise SourceError(
            f"'{missing[0].name}' is not on this machine",
            where=tasks.HERE if missing[0].kind == "tasks" else "model",
            fix=f"Run `effcompress fetch {loaded.path}` where there is a network.",
        )


def _require_text(loaded: LoadedRecipe) -> None:
    """Raises SourceError naming a hub data set of which too few tokens are here. Takes the
    tokenizer, but not the weights.
    """
    from effcompress.model.cache import cache_root
    from effcompress.model.fetch import ensure
    from effcompress.model.tokenizer import open_tokenizer
    from effcompress.runner.corpus import corpus_of

    recipe = loaded.recipe
    folder = ensure(recipe.model, cache_root(), offline=True)
    tokenizer = open_tokenizer(recipe.model.tokenizer, folder, offline=True)
    corpus_of(recipe, tokenizer, offline=True, say=_nothing, notice=_nothing)


def _nothing(_: str) -> None:
    """Whoever runs next says it again."""

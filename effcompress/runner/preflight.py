"""What can be known to fail before torch is imported, a folder is made, or a byte is fetched.

Checks that depend on this machine: installed packages, a compiler, the number of processes, and
files when there is no network. ``run`` and ``check`` both call ``preflight``.
"""

import ctypes
import importlib.util
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import version

from effcompress import data
from effcompress.errors import RecipeError, RunError, SourceError
from effcompress.estimate.check import CheckResult, check
from effcompress.estimate.communication import unequal
from effcompress.estimate.exports import require_taken
from effcompress.estimate.feasibility import sized_model
from effcompress.estimate.schedule import loops_of
from effcompress.launcher import launched
from effcompress.model import source
from effcompress.model.assets import tasks
from effcompress.model.cache import cache_root
from effcompress.model.chat_template import template_of
from effcompress.model.families import declared_by
from effcompress.model.lineage import is_pruned
from effcompress.network.axis_map import resolve_model
from effcompress.recipe import LoadedRecipe
from effcompress.spec import LoopSpec, Recipe, TasksSpec

CONVERSATIONS = 8
"""Conversations of each domain that are written with the chat template."""


def preflight(loaded: LoadedRecipe, *, offline: bool) -> CheckResult:
    """Checks that this machine can run the recipe and that its target can be reached.

    Raises RecipeError for a missing package, compiler or GPU, for a launcher's variables as
    ``launched``, for a batch that cannot be divided among the processes and for an unreachable
    target; SourceError for text that cannot be read or is too short, and for a model, text or task
    data that is not on this machine when ``offline``.
    """
    machine = [*_machine(loaded), *data.preview(loaded.recipe.data)]
    result = check(loaded)
    exports = _require_export(loaded)
    _require_template(loaded)
    if offline:
        require_here(loaded)
        if any(domain.hub for domain in loaded.recipe.data.domains.values()):
            _require_text(loaded)
    return replace(result, lines=[*machine, *result.lines, *exports])


def _require_export(loaded: LoadedRecipe) -> list[str]:
    """Tries the export of an architecture that is not declared in the package, without weights;
    returns warnings where a stock class may not take the result. Raises RecipeError where it does
    not.
    """
    config, prune = source.config_of(loaded.recipe.model), loaded.recipe.prune
    if config is None or prune is None or is_pruned(config):
        return []
    family, recipe = resolve_model(config).axes.family, loaded.recipe
    whole = recipe.export.multimodal == "whole" and not source.from_scratch(recipe.model)
    brought = family.traced or declared_by(str(config["model_type"])) is not None
    if not brought and not whole:
        return []
    from effcompress.export import rehearse  # imports torch, as tracing did
    from effcompress.runner.start import whole_of

    try:
        rehearse.rehearse(config, family, prune.space, whole_of(recipe) if whole else None)
    except RunError as error:
        if whole:
            where = loaded.where("export.multimodal")
            what = f"export.multimodal: {error.what}"
            raise RecipeError(what, where=where, fix=error.fix) from error
        raise RecipeError(
            f"model: {error.what}",
            where=loaded.origins.get("model.hub") or loaded.origins.get("model.folder"),
            fix="This is a fault of effcompress; please report it.",
        ) from error
    form, sized = recipe.export.form, sized_model(loaded)
    if form not in ("uniform", "padded") or whole or sized is None or prune.rotate is not None:
        return []
    of = config, family, prune.space, form
    return require_taken(loaded, sized, lambda shape: rehearse.refused_kinds(*of, shape))


def _require_template(loaded: LoadedRecipe) -> None:
    for name, domain in loaded.recipe.data.domains.items():
        if domain.chat is not None and source.has_template(loaded.recipe.model) is False:
            key = f"data.domains.{name}.chat"
            raise RecipeError(
                f"{key}: the tokenizer has no chat template to write conversations with",
                where=loaded.origins.get(key),
                fix="Name a tokenizer with one (model.tokenizer), or use `text:` and `prompt:`.",
            )
    _require_written(loaded)


def _require_written(loaded: LoadedRecipe) -> None:
    """Writes the first conversations with the template, as far as both are on this machine. Raises
    SourceError where that fails.
    """
    recipe = loaded.recipe
    found = [
        record
        for name, domain in recipe.data.domains.items()
        for record in data.conversations(domain, name, CONVERSATIONS)
    ]
    if found and (template := template_of(recipe.model)) is not None:
        for record in found:
            data.written(record.turns, template, record.where)


def _machine(loaded: LoadedRecipe) -> Iterator[str]:
    """Checks packages, processes and compiler; yields a line for each that the recipe needs."""
    recipe, section = loaded.recipe, "recover" if loaded.recipe.recover is not None else "train"
    size = launched().size
    _require_cache()
    _require_equal_shards(loaded, size)
    require_packages(loaded)
    if recipe.track is not None:
        yield f"trackers are installed: {', '.join(recipe.track.to)}"
    if recipe.evaluate.tasks is not None:
        require_harness(recipe.evaluate.tasks)
        yield "the lm-evaluation-harness is installed"
    if recipe.device == "cuda" and _no_gpu():
        raise RecipeError(
            "device: cuda, but this machine has no driver of a GPU, or torch was built without one",
            where=loaded.origins.get("device"),
            fix="Write `device: auto`.",
        )
    if recipe.loop is not None:
        for loop in loops_of(recipe):
            _require_equal_batches(loop, section, size)
        if recipe.loop.compile:
            _require_compiler(section)
            yield "a C++ compiler is there"


def _require_cache() -> None:
    """Raises SourceError where the cache folder, in which tokens are kept, cannot be made."""
    root = cache_root().absolute()
    above = next(path for path in (root, *root.parents) if os.path.lexists(path))
    if not above.is_dir():
        said = f"{above} is no folder"
    elif above != root and not os.access(above, os.W_OK | os.X_OK):
        said = f"{above} cannot be written to"
    else:
        return
    raise SourceError(
        f"the cache folder cannot be made: {said}",
        where=str(root),
        fix="Set EFFCOMPRESS_CACHE to a folder that you may write to.",
    )


_PIP = {"google.protobuf": "protobuf"}
"""Module -> the package that has it, where they differ."""


def _packages(recipe: Recipe) -> Iterator[tuple[str, str, str]]:
    """Yields packages that not every installation has, and that this recipe needs: its key, the
    package, what to do without.
    """
    for index, name in enumerate(recipe.track.to if recipe.track is not None else ()):
        fix = f"pip install {name}, or take it out of track.to."
        yield from ((f"track.to.{index}", package, fix) for package in (name, "accelerate"))
    if recipe.recover is not None and recipe.recover.method == "lora":
        fix = "pip install 'effcompress[lora]', or write `method: full`."
        yield "recover.method", "peft", fix
    if recipe.model.gguf is not None or recipe.model.wheel is not None:
        key = "model.gguf" if recipe.model.gguf is not None else "model.wheel"
        yield from ((key, name, f"pip install {name}") for name in ("gguf", "accelerate"))
    for name in source.tokenizer_packages(recipe.model):
        key = "tokenizer" if recipe.model.tokenizer else source.kind_of(recipe.model)
        fix = f"pip install {_PIP.get(name, name)}, or put a tokenizer.json into the folder."
        if name == "mistral_common":
            fix = "pip install mistral-common, or take tokenizer_class out of its configuration."
        yield f"model.{key}", name, fix
    for name, domain in recipe.data.domains.items():
        if domain.hub is not None:
            yield f"data.domains.{name}.hub", "datasets", "pip install datasets"


def require_packages(loaded: LoadedRecipe, *sections: str) -> None:
    """Raises RecipeError for a package that a key (of these sections, if any) needs. Imports none
    of them: some start threads or read credentials when imported.
    """
    for key, name, fix in _packages(loaded.recipe):
        if (not sections or key.partition(".")[0] in sections) and not installed(name):
            where = loaded.origins.get(key)
            raise RecipeError(f"{key}: {name} is not installed", where=where, fix=fix)


def _no_gpu() -> bool:
    """Whether torch can have no GPU here, as far as that is known without importing it."""
    build = version("torch")
    if sys.platform != "linux" or "+cpu" in build or "+rocm" in build:
        return "+cpu" in build
    try:
        ctypes.CDLL("libcuda.so.1")  # what torch loads, too
    except OSError:
        return True
    return False


def installed(package: str) -> bool:
    """Whether a package can be imported. A mere folder cannot (``find_spec`` takes it for a
    namespace package): W&B leaves one called wandb wherever it runs.
    """
    try:
        found = importlib.util.find_spec(package)
    except ModuleNotFoundError:  # the one that it lies in
        return False
    return found is not None and found.origin is not None


def require_harness(spec: TasksSpec | None) -> None:
    """Raises RecipeError where tasks are asked for and the lm-evaluation-harness is missing."""
    if spec is not None and not installed("lm_eval"):
        raise RecipeError(
            "tasks are scored by the lm-evaluation-harness, which is not installed",
            where=tasks.HERE,
            fix="pip install 'effcompress[tasks]'",
        )


def _require_equal_batches(loop: LoopSpec, section: str, size: int) -> None:
    """Each process that the launcher started computes equally many rows of a batch."""
    if loop.batch_size % size:
        raise RecipeError(
            f"{section}.batch_size {loop.batch_size} is the batch of all processes, and {size} of "
            "them cannot share it equally",
            fix=f"Write {section}.batch_size: {-(-loop.batch_size // size) * size}.",
        )


def _require_equal_shards(loaded: LoadedRecipe, size: int) -> None:
    """Replicas of a sharded model have equally many processes, at least two. One process alone
    shards nothing.
    """
    how = loaded.recipe.distributed
    if size > 1 and (problem := unequal(how, size)) is not None:
        what, fix = problem
        where = loaded.origins.get("distributed.replicas")
        raise RecipeError(f"distributed.replicas: {what}", where=where, fix=fix)


def _require_compiler(section: str) -> None:
    """torch.compile emits C++: CPU kernels, and the code that launches kernels on a GPU."""
    own = os.environ.get("CXX")
    if not any(map(shutil.which, [own] if own else ["g++", "c++", "clang++", "cl"])):
        raise RecipeError(
            f"{section}.compile needs a C++ compiler, and there is none here",
            fix=f"Install one (g++, clang++), name it in $CXX, or write {section}.compile: false.",
        )


def require_here(loaded: LoadedRecipe) -> None:
    """Raises SourceError naming the first item of the model or the tasks that is not cached."""
    recipe = loaded.recipe
    wanted = [*source.items(recipe.model), *tasks.items(recipe.evaluate.tasks)]
    if missing := [item for item in wanted if not item.cached]:
        raise SourceError(
            f"'{missing[0].name}' is not on this machine",
            where=tasks.HERE if missing[0].kind == "tasks" else "model",
            fix=f"Run `effcompress fetch {loaded.path}` where there is a network.",
        )


def _require_text(loaded: LoadedRecipe) -> None:
    """Raises SourceError naming a hub data set of which too few tokens are cached. Loads the
    tokenizer, but not the weights.
    """
    from effcompress.model.fetch import ensure
    from effcompress.model.tokenizer import open_tokenizer
    from effcompress.runner.start import corpus_of

    recipe = loaded.recipe
    folder = ensure(recipe.model, cache_root(), offline=True)
    tokenizer = open_tokenizer(recipe.model.tokenizer, folder, offline=True)
    told: list[str] = []  # not shown: the run says it again
    corpus_of(recipe, tokenizer, offline=True, say=told.append, notice=told.append)

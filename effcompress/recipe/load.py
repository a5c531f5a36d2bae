"""Recipe file -> ``LoadedRecipe``: gather, validate, bind, check sense; in this order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from effcompress.recipe.build import Builder
from effcompress.recipe.cross_checks import check_sense, check_version
from effcompress.recipe.explain import first_error
from effcompress.recipe.include import gather
from effcompress.recipe.json_schema import json_schema
from effcompress.recipe.plugin_checks import check_plugins
from effcompress.recipe.sharded import check_sharded
from effcompress.recipe.source_map import Document
from effcompress.registry import REGISTRY, Registry
from effcompress.spec import InputPath, Recipe


@dataclass(frozen=True)
class LoadedRecipe:
    """A recipe that makes sense, and where each of its values comes from.

    ``source`` is the text of ``path`` as written (without what it includes). ``origins`` maps
    dotted keys to ``file:line``, ``--set`` or ``default``.
    """

    recipe: Recipe
    path: Path
    source: str = field(repr=False)
    origins: Mapping[str, str] = field(repr=False)


def load(path: Path, overrides: Sequence[str] = (), registry: Registry = REGISTRY) -> LoadedRecipe:
    """Read a recipe, lay ``overrides`` (``key=value``) over it, and bind its plugins.

    Loads no weights and no text; it only looks whether the files named are there. Raises
    RecipeError with ``file:line`` (or ``--set ...``) for anything that cannot be meant, and
    PluginError for a plugin file that cannot be imported.
    """
    source, document = gather(Path(path), overrides)
    check_version(document)
    _load_plugin_files(document, registry)
    error = first_error(document, json_schema(registry))
    if error is not None:
        raise error
    document = _fill_defaults(document, registry)
    builder = Builder(document, registry)
    recipe = builder.recipe()
    check_sense(recipe, document)
    check_sharded(recipe, document)
    check_plugins(recipe, document)
    return LoadedRecipe(recipe, Path(path), source, builder.origins)


def load_plugins(path: Path, registry: Registry = REGISTRY) -> None:
    """Load only the plugin files that a recipe names; the rest of it may still be unfinished."""
    _, document = gather(Path(path), ())
    _load_plugin_files(document, registry)


def _load_plugin_files(document: Document, registry: Registry) -> None:
    written = document.values.get("plugins", [])
    listed = [written] if isinstance(written, str) else written
    if not isinstance(listed, list) or not all(isinstance(name, str) for name in listed):
        return  # the schema says it better
    builder = Builder(document, registry)
    for index, name in enumerate(listed):
        registry.load_file(builder.value(InputPath, name, ("plugins", index), {}))


def _fill_defaults(document: Document, registry: Registry) -> Document:
    """Names the plugins that a recipe need not name: selector, repair, reduction and, for a
    criterion that asks for ``hess``, the Hessian.
    """
    prune = document.values.get("prune")
    if prune is None:
        return document
    wanted: dict[str, Any] = {"selector": "least_salient"}
    if _needs_hessian(prune["criterion"], registry):
        wanted["hessian"] = "fisher_diag"
    wanted = {key: name for key, name in wanted.items() if prune.get(key) is None}
    # `selector: null` asks for the default; that line is then not where the value comes from.
    unset = {("prune", key) for key in wanted}
    marks = {key: mark for key, mark in document.marks.items() if key not in unset}
    reduce = {"members": "sum", **(prune.get("reduce") or {})}
    filled = {"repair": ["norm_gain"], **prune, **wanted, "reduce": reduce}
    return Document({**document.values, "prune": filled}, marks)


def _needs_hessian(criterion: Any, registry: Registry) -> bool:
    name = criterion if isinstance(criterion, str) else criterion["name"]
    return "hess" in registry.get("criterion", name).needs

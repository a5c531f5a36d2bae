"""Loads a recipe: reads it with its includes and ``--set``, validates it, binds plugins, checks."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from effcompress.errors import RecipeError, did_you_mean
from effcompress.recipe.build import Builder
from effcompress.recipe.cross_checks import check_recipe, check_version
from effcompress.recipe.explain import first_error
from effcompress.recipe.json_schema import json_schema
from effcompress.recipe.mapping import Address, document_of
from effcompress.recipe.source_map import Document, Mark, assign, beside, merge, there
from effcompress.recipe.yaml_text import LEVELS, block, kind, parse, read_file
from effcompress.registry import REGISTRY, Registry
from effcompress.spec import InputPath, Recipe

FILES = 100
"""The most files that a recipe includes."""
UNNAMED = Path("recipe.yaml")
"""In place of a file's path where a script gives the recipe as a mapping."""


@dataclass(frozen=True)
class LoadedRecipe:
    """A checked recipe, and where each of its values comes from.

    ``source`` is the text of ``path`` as written (without what it includes). ``origins`` maps
    dotted keys to ``file:line``, ``--set`` or ``default``; of a mapping to its own keys.
    """

    recipe: Recipe
    path: Path
    source: str = field(repr=False)
    origins: Mapping[str, str] = field(repr=False)

    def where(self, key: str) -> str:
        """Returns the line of a key, or of the first one below it; else the file."""
        below = (line for name, line in self.origins.items() if name.startswith(f"{key}."))
        origin = self.origins.get(key) or next(below, str(self.path))
        return f"--set {key}" if origin == "--set" else origin


def load(
    path: Path | str | Mapping[str, Any],
    overrides: Sequence[str] = (),
    registry: Registry = REGISTRY,
) -> LoadedRecipe:
    """Reads a recipe, applies ``overrides`` (``key=value``), and binds its plugins. A mapping with
    the keys of a recipe stands for a file in the current folder.

    Loads no weights and no text; of input files only the existence is checked. Raises RecipeError
    with ``file:line`` (of a mapping with its key; or ``--set ...``) for an invalid recipe, and
    PluginError for a plugin file that cannot be imported.
    """
    given = path if isinstance(path, Mapping) else Path(path)
    source, document = gather(given, overrides)
    return _checked(document, UNNAMED if isinstance(given, Mapping) else given, source, registry)


def load_mapping(
    values: Mapping[str, Any], address: Address, change: Callable[[Recipe], Recipe]
) -> LoadedRecipe:
    """Returns the recipe of ``values`` as ``load`` does; ``address`` says what errors name in place
    of a key, and ``change`` is applied before what no schema says is checked.
    """
    return _checked(document_of(values, address), UNNAMED, "", REGISTRY, change)


def _checked(
    document: Document,
    path: Path,
    source: str,
    registry: Registry,
    change: Callable[[Recipe], Recipe] = lambda recipe: recipe,
) -> LoadedRecipe:
    check_version(document)
    _load_plugin_files(document, registry)
    error = first_error(document, json_schema(registry))
    if error is not None:
        raise error
    document = _fill_defaults(document, registry)
    builder = Builder(document, registry)
    recipe = change(builder.recipe())
    check_recipe(recipe, document)
    return LoadedRecipe(recipe, path, source, builder.origins)


def load_plugins(path: Path, registry: Registry = REGISTRY) -> None:
    """Loads only the plugin files that a recipe names; the rest of it need not be valid."""
    _, document = gather(Path(path), ())
    _load_plugin_files(document, registry)


def _load_plugin_files(document: Document, registry: Registry) -> None:
    written = document.values.get("plugins", [])
    listed = [written] if isinstance(written, str) else written
    if not isinstance(listed, list) or not all(isinstance(name, str) for name in listed):
        return  # the schema reports it
    builder = Builder(document, registry)
    for index, name in enumerate(listed):
        registry.load_file(builder.value(InputPath, name, ("plugins", index), {}))


def _fill_defaults(document: Document, registry: Registry) -> Document:
    """Adds the plugins that a recipe need not name: selector, repair, reduction and, for a
    criterion that takes ``hess``, the Hessian.
    """
    prune = document.values.get("prune")
    if prune is None:
        return document
    wanted: dict[str, Any] = {"selector": "least_salient"}
    criterion = prune.get("criterion")
    if criterion is None:  # of recipes that rotate; `cross_checks` requires one of the others
        return Document({**document.values, "prune": {"repair": [], **prune}}, document.marks)
    name = criterion if isinstance(criterion, str) else criterion["name"]
    if "hess" in registry.get("criterion", name).needs:
        wanted["hessian"] = "fisher_diag"
    wanted = {key: name for key, name in wanted.items() if prune.get(key) is None}
    # `selector: null` asks for the default; the value's origin is then not that line.
    unset = {("prune", key) for key in wanted}
    marks = {key: mark for key, mark in document.marks.items() if key not in unset}
    reduce = {"members": "sum", **(prune.get("reduce") or {})}
    # Under learned gates the cut model computes what the masked one did, as it is.
    repair = [] if prune.get("gates") else ["norm_gain"]
    filled = {"repair": repair, **prune, **wanted, "reduce": reduce}
    return Document({**document.values, "prune": filled}, marks)


def gather(path: Path | Mapping[str, Any], overrides: Sequence[str]) -> tuple[str, Document]:
    """Returns the text of the recipe as written, and its values after includes and ``--set``.

    Included files come first, in order; the including file overrides them, ``--set`` overrides all.
    Raises RecipeError: as ``read_file``, for a missing include and for a cycle of includes.
    """
    if isinstance(path, Mapping):
        document = document_of(path)
        text, path = block(document.values), UNNAMED
    else:
        text, document = read_file(path)
    document = _included(document, path, (path,), [])
    for override in overrides:
        document = _set(document, override)
    return text, document


def _included(
    document: Document, path: Path, chain: tuple[Path, ...], files: list[Path]
) -> Document:
    """``chain``: the files that ``path`` is included by, and itself; ``files``: all read so far."""
    if "include" not in document.values:
        return document
    mark = document.mark(("include",))
    own = {key: value for key, value in document.values.items() if key != "include"}
    marks = {key: m for key, m in document.marks.items() if key[:1] != ("include",)}
    base = Document({}, {(): mark})
    for name in _names(document.values["include"], mark):
        # Normalised, so that messages show a path without `..`.
        file = Path(os.path.normpath(path.parent / name))
        if len(files) >= FILES:
            what, fix = f"include: more than {FILES} files are read", "Include each file once."
            raise RecipeError(what, where=mark.where, fix=fix)
        if there(file) and file.resolve() in [seen.resolve() for seen in chain]:
            circle = " -> ".join(p.name for p in (*chain, file))
            what = f"include: files include each other: {circle}"
            raise RecipeError(what, where=mark.where, fix="Take one of these includes out.")
        if not there(file):
            near = [name for name in beside(file) if name.endswith((".yaml", ".yml"))]
            what = f"include: no file '{name}' (looked in '{file.parent}')"
            fix = did_you_mean(file.name, near) if near else "Paths are relative to this file."
            raise RecipeError(what, where=mark.where, fix=fix)
        files.append(file)
        base = merge(base, _included(read_file(file)[1], file, (*chain, file), files))
    return merge(base, Document(own, marks))


def _names(names: Any, mark: Mark) -> list[str]:
    listed = [names] if isinstance(names, str) else names
    if isinstance(listed, list) and all(isinstance(name, str) for name in listed):
        return listed
    what = f"include is {kind(names)}, but must be a file name or a list of them"
    fix = "E.g. `include: common.yaml`, relative to this file."
    raise RecipeError(what, where=mark.where, fix=fix)


def _set(document: Document, override: str) -> Document:
    key, equals, text = override.partition("=")
    key, where = key.strip(), f"--set {override}"
    if not equals or not all(key.split(".")) or key.count(".") > LEVELS:
        fix = "E.g. --set train.tokens=2M"
        raise RecipeError("--set takes key=value", where=where, fix=fix)
    if key.split(".")[0] == "include":
        raise RecipeError("files are included by the recipe, not by --set", where=where)
    return assign(document, key, parse(text, None, override))

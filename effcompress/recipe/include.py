"""Recipe file, the files it includes and ``--set`` -> one ``Document``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from effcompress.errors import RecipeError, did_you_mean
from effcompress.recipe.source_map import Document, Mark, assign, merge
from effcompress.recipe.yaml_text import kind, parse, read_file


def gather(path: Path, overrides: Sequence[str]) -> tuple[str, Document]:
    """Text of the recipe as written, and its values after includes and ``--set``.

    Included files come first, in order; the including file is laid over them, ``--set`` over all.
    Raises RecipeError: whatever ``read_file`` raises, a missing include, a cycle of includes.
    """
    text, document = read_file(path)
    document = _included(document, path, (path,))
    for override in overrides:
        document = _set(document, override)
    return text, document


def _included(document: Document, path: Path, chain: tuple[Path, ...]) -> Document:
    if "include" not in document.values:
        return document
    names = document.values["include"]
    mark = document.mark(("include",))
    own = {key: value for key, value in document.values.items() if key != "include"}
    marks = {key: m for key, m in document.marks.items() if key[:1] != ("include",)}
    base = Document({}, {(): mark})
    for name in _names(names, mark):
        # As the user would write it from where they stand: no `..` detours in messages.
        file = Path(os.path.normpath(path.parent / name))
        _refuse_cycle(file, chain, mark)
        _refuse_missing(file, name, mark)
        base = merge(base, _included(read_file(file)[1], file, (*chain, file)))
    return merge(base, Document(own, marks))


def _names(names: Any, mark: Mark) -> list[str]:
    listed = [names] if isinstance(names, str) else names
    if isinstance(listed, list) and all(isinstance(name, str) for name in listed):
        return listed
    raise RecipeError(
        f"include is {kind(names)}, but must be a file name or a list of them",
        where=mark.where,
        fix="E.g. `include: common.yaml`, relative to this file.",
    )


def _refuse_cycle(file: Path, chain: tuple[Path, ...], mark: Mark) -> None:
    if file.resolve() in [seen.resolve() for seen in chain]:
        names = " -> ".join(p.name for p in (*chain, file))
        fix = "Take one of these includes out."
        raise RecipeError(f"include: files include each other: {names}", where=mark.where, fix=fix)


def _refuse_missing(file: Path, name: str, mark: Mark) -> None:
    if file.is_file():
        return
    folder = file.parent
    near = [p.name for p in folder.glob("*.y*ml")] if folder.is_dir() else []
    raise RecipeError(
        f"include: no file '{name}' (looked in '{folder}')",
        where=mark.where,
        fix=did_you_mean(file.name, near) if near else "Paths are relative to this file.",
    )


def _set(document: Document, override: str) -> Document:
    key, equals, text = override.partition("=")
    key = key.strip()
    if not equals or not all(key.split(".")):
        raise RecipeError(
            "--set takes key=value", where=f"--set {override}", fix="E.g. --set train.tokens=2M"
        )
    if key.split(".")[0] == "include":
        raise RecipeError(
            "files are included by the recipe, not by --set", where=f"--set {override}"
        )
    return assign(document, key, parse(text, None, override))

"""Recipes that a script writes as a mapping, in place of a file."""

from collections.abc import Callable, Mapping
from os import PathLike, fspath
from typing import Any

from effcompress.errors import RecipeError, short
from effcompress.recipe.source_map import Document, Key, Mark
from effcompress.recipe.yaml_text import LEVELS

Address = Callable[[Key], str]
"""A key -> what an error says in place of file and line."""


def item_of(key: Key) -> str:
    """Returns the address of a key as a script would write it: ``recipe['prune']['space'][0]``."""
    return "recipe" + "".join(f"[{part!r}]" for part in key)


def document_of(values: Mapping[str, Any], address: Address = item_of) -> Document:
    """Returns the document of a mapping; paths become texts, tuples lists.

    Raises RecipeError for a key that is no text, a value that no recipe has (a tensor, a function),
    and for values that are nested too deeply.
    """
    marks: dict[Key, Mark] = {(): Mark(None, address=address(()))}
    return Document(_plain(values, (), marks, address), marks)


def _plain(value: Any, key: Key, marks: dict[Key, Mark], address: Address) -> Any:
    if len(key) > LEVELS:
        what = f"values are nested more than {LEVELS} levels deep"
        fix = "Nest less: no key of a recipe needs it."
        raise RecipeError(what, where=address(key[:3]), fix=fix)
    if isinstance(value, Mapping):
        return {
            _name(name, key, address): _below(inner, (*key, name), marks, address)
            for name, inner in value.items()
        }
    if isinstance(value, list | tuple):
        return [_below(inner, (*key, i), marks, address) for i, inner in enumerate(value)]
    if isinstance(value, PathLike):
        return str(fspath(value))
    if value is None or isinstance(value, str | bool | int | float):
        return value
    raise RecipeError(
        f"{short(repr(value))} is no value of a recipe: its type is {type(value).__name__}",
        where=address(key),
        fix="Give texts, numbers, true or false, lists and mappings; a plugin by its name.",
    )


def _below(value: Any, key: Key, marks: dict[Key, Mark], address: Address) -> Any:
    marks[key] = Mark(None, address=address(key))
    return _plain(value, key, marks, address)


def _name(name: Any, key: Key, address: Address) -> str:
    if isinstance(name, str):
        return name
    raise RecipeError(f"a key is {name!r}, not text", where=address(key), fix="Keys are texts.")

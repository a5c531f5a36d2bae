"""Tracks the source of every value of a recipe through includes, merges and ``--set``.

A ``Document`` is a tree of plain values with a ``Mark`` for each of its keys, so that every later
error can name a file and a line.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from effcompress.errors import RecipeError

Key = tuple[str | int, ...]
"""Path of a value in the tree, e.g. ``("prune", "space", 0, "minimum")``."""


def dotted(key: Key) -> str:
    """Joins a key with dots: ``prune.space.0.minimum``; the empty key is ``the recipe``."""
    return ".".join(str(part) for part in key) or "the recipe"


def there(path: Path, *, folder: bool = False) -> bool:
    """Whether there is a file (or a folder) that a recipe names. Where a name is too long or no
    name at all, there is none.
    """
    try:
        return path.is_dir() if folder else path.is_file()
    except (OSError, ValueError):
        return False


def beside(path: Path) -> list[str]:
    """Returns the names in the folder of ``path``; none where it cannot be listed."""
    try:
        return [file.name for file in path.parent.iterdir()]
    except (OSError, ValueError):
        return []


@dataclass(frozen=True)
class Mark:
    """The line a value was written on; without a file, ``given`` is the text after ``--set``.
    ``written``: a plain value as it stands there. ``address``: what stands for file and line where
    a script gives the value.
    """

    file: Path | None
    line: int = 1
    given: str = ""
    written: str | None = None
    address: str = ""

    @property
    def where(self) -> str:
        """The address for an error message."""
        if self.address:
            return self.address
        return f"--set {self.given}" if self.file is None else f"{self.file}:{self.line}"

    @property
    def origin(self) -> str:
        """The address for the resolved recipe."""
        if self.address:
            return self.address
        return "--set" if self.file is None else f"{self.file}:{self.line}"

    @property
    def folder(self) -> Path:
        """The folder that relative paths start at: the recipe's; else the current one."""
        return Path() if self.file is None else self.file.parent


@dataclass(frozen=True)
class Document:
    """Plain values, and the mark of every key in them (of the document itself under ``()``)."""

    values: Any
    marks: Mapping[Key, Mark]

    def mark(self, key: Key) -> Mark:
        """Returns the mark of a key, or of its nearest written parent."""
        while key not in self.marks:
            key = key[:-1]
        return self.marks[key]


_DOMAINS = ("data", "domains")


def merge(base: Document, over: Document) -> Document:
    """Merges ``over`` into ``base``: mappings key by key, everything else is replaced, and a domain
    of ``base`` that is null in ``over`` is left out.

    A plugin with another ``name`` replaces the whole plugin: the knobs of the former one are not
    its own.
    """
    marks = dict(base.marks)
    values = _merge(base.values, over.values, (), marks)
    return Document(values, {**marks, **over.marks})


def _merge(base: Any, over: Any, at: Key, marks: dict[Key, Mark]) -> Any:
    both = isinstance(base, dict) and isinstance(over, dict)
    if not both or (at and _other_plugin(base, over)):
        _forget(marks, at)
        return over
    merged = dict(base)
    for key, value in over.items():
        merged[key] = _merge(base[key], value, (*at, key), marks) if key in base else value
        if at == _DOMAINS and value is None and base.get(key) is not None:
            del merged[key]
    return merged


def _other_plugin(base: dict[str, Any], over: dict[str, Any]) -> bool:
    old, new = base.get("name"), over.get("name")
    return isinstance(old, str) and isinstance(new, str) and old != new


def _forget(marks: dict[Key, Mark], at: Key) -> None:
    for key in [k for k in marks if k[: len(at)] == at and k]:
        del marks[key]


def assign(document: Document, key: str, new: Document) -> Document:
    """Applies ``--set key=value``: puts ``new`` at the dotted ``key``, marked with what was typed;
    null takes a domain out.

    Raises RecipeError for a list without that element and for a key inside a plain value. Whether
    the key is known is checked by the schema.
    """
    marks = dict(document.marks)
    values, at = _put(document.values, key.split("."), new, (), marks)
    _forget(marks, at)
    marks.update({(*at, *below): mark for below, mark in new.marks.items()})
    return Document(values, marks)


def _put(
    values: Any, keys: list[str], new: Document, at: Key, marks: dict[Key, Mark]
) -> tuple[Any, Key]:
    """The changed ``values``, and the key that ``new`` went to."""
    if not keys:
        return new.values, at
    mark = new.marks[()]
    if isinstance(values, str):
        values = {"name": values}  # a plugin named without knobs gets one
        marks[(*at, "name")], marks[at] = marks[at], mark
    marks.setdefault(at, mark)
    if isinstance(values, list):
        index = _index(values, keys[0], at, mark)
        changed, end = _put(values[index], keys[1:], new, (*at, index), marks)
        return [*values[:index], changed, *values[index + 1 :]], end
    if values is not None and not isinstance(values, dict):
        raise RecipeError(f"{dotted(at)} is {values!r}, it has no keys", where=mark.where)
    here: dict[str, Any] = values or {}
    # Domain names may contain dots: the longest existing key wins.
    lengths = range(len(keys), 0, -1)
    count = next((n for n in lengths if ".".join(keys[:n]) in here), 1)
    name = ".".join(keys[:count])
    changed, end = _put(here.get(name), keys[count:], new, (*at, name), marks)
    if (*at, name) == end and at == _DOMAINS and changed is None and here.get(name) is not None:
        return {key: value for key, value in here.items() if key != name}, end
    return {**here, name: changed}, end


def _index(values: list[Any], key: str, at: Key, mark: Mark) -> int:
    if key.isascii() and key.isdigit() and int(key) < len(values):
        return int(key)
    name = dotted(at)
    fix = f"Its elements are {name}.0 to {name}.{len(values) - 1}." if values else "It is empty."
    raise RecipeError(f"{name} is a list and has no element '{key}'", where=mark.where, fix=fix)

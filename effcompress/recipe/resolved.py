"""The resolved recipe: every value, and at the end of its line the value's origin."""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from effcompress.errors import printable
from effcompress.recipe.load import LoadedRecipe
from effcompress.recipe.source_map import Key, dotted
from effcompress.recipe.yaml_text import read_file, scalar
from effcompress.registry import Bound


def resolved(loaded: LoadedRecipe) -> str:
    """Writes YAML that ``load`` reads back, from any folder, as an equal recipe: defaults and knobs
    are written out and paths are absolute. Each line ends with the origin of its value.
    """
    lines = [f"# {_comment(loaded.path.name)} with every value, and where it comes from"]
    lines += _lines(plain(loaded.recipe), (), loaded.origins, "")
    return "\n".join(lines) + "\n"


def plain(value: Any) -> Any:
    """Converts a recipe, or a part of one, to JSON values; a plugin is ``{name: ..., knobs}``."""
    if isinstance(value, Bound):
        return {"name": value.name, **{k: plain(v) for k, v in value.knobs.items()}}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        held = ((f, plain(getattr(value, f.name))) for f in dataclasses.fields(value))
        pairs = (one if "beside" in f.metadata else {f.name: one} for f, one in held)
        return {name: one for pair in pairs for name, one in pair.items()}
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, tuple | list):
        return [plain(inner) for inner in value]
    return str(value) if isinstance(value, Path) else value


def values(tree: Any) -> dict[str, str]:
    """Returns the values of a resolved recipe, as ``plain`` made them or ``read`` found them: from
    dotted key to value, as text; empty lists and mappings too.
    """
    found: dict[str, str] = {}

    def collect(value: Any, key: Key) -> None:
        if isinstance(value, dict | list) and value:
            pairs = value.items() if isinstance(value, dict) else enumerate(value)
            for name, inner in pairs:
                collect(inner, (*key, name))
        else:
            found[dotted(key)] = scalar(value)

    collect(tree, ())
    return found


def read(path: Path) -> Any:
    """Reads what ``resolved`` wrote, without checking it. Raises RecipeError as ``read_file``."""
    return read_file(path)[1].values


def checked(loaded: LoadedRecipe) -> list[str]:
    """Lists what ``load`` has checked by succeeding, one sentence each."""
    recipe, origins = loaded.recipe, loaded.origins
    written = sum(origin != "default" for origin in origins.values())
    parts = list(_parts(recipe, ""))
    plugins = [f"{key} {part.name}" for key, part in parts if isinstance(part, Bound)]
    files = sum(isinstance(part, Path) for _, part in parts)
    lines = [f"{written} values are known keys, of the right type and in range"]
    if files:
        lines.append(f"{files} input {'file is' if files == 1 else 'files are'} there")
    if plugins:
        lines.append(f"{len(plugins)} plugins and their knobs: {', '.join(plugins)}")
    if recipe.effcompress:
        lines.append(f"the version of effcompress is {recipe.effcompress}")
    return lines


def _lines(value: Any, key: Key, origins: Mapping[str, str], indent: str) -> Iterator[str]:
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    for name, inner in pairs:
        head = f"{indent}{scalar(name)}:" if isinstance(value, dict) else f"{indent}-"
        at = (*key, name)
        if not (isinstance(inner, dict | list) and inner):
            yield f"{head} {scalar(inner)}  # {_comment(origins.get(dotted(at), 'default'))}"
            continue
        below = _lines(inner, at, origins, indent + "  ")
        # The first line of a list element shares the line of its dash.
        yield head if isinstance(value, dict) else f"{head} {next(below).lstrip()}"
        yield from below


def _comment(text: str) -> str:
    """Text on one line: a file's name may hold what YAML takes for the end of one."""
    return printable(text).replace("\n", " ")


def _parts(value: Any, key: str) -> Iterator[tuple[str, object]]:
    """Yields every plugin and every plain value below ``value``, with the name of its field."""
    if isinstance(value, Bound):
        yield key, value
        value = value.knobs
    if dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from _parts(getattr(value, field.name), field.name)
    elif isinstance(value, Mapping | tuple | list):
        for inner in value.values() if isinstance(value, Mapping) else value:
            yield from _parts(inner, key)
    else:
        yield key, value

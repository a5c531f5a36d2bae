"""Where a key belongs that stands where it is not known."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Any

from effcompress.errors import did_you_mean
from effcompress.recipe.source_map import Key

_NAMED = "<name>"


def suggest_key(key: Key, known_here: list[str], schema: dict[str, Any], typed: str) -> str:
    """What to write instead of the unknown ``key``; ``typed`` is the dotted key after ``--set``.

    The same word at another level wins over a similar word at this one; a similar word elsewhere
    comes last.
    """
    word = str(key[-1])
    # Keys as near as each other stay in the order of the sections.
    everywhere = sorted(dict.fromkeys(_all_keys(schema)), key=lambda path: _distance(path, key))
    if typed:
        return _for_typed(typed, everywhere)
    same = [path for path in everywhere if path[-1] == word]
    below = [path for path in same if path[: len(key) - 1] == key[:-1]]
    same = below or same
    if same:
        places = " or ".join(".".join(path) for path in same[:3])
        return f"It belongs at {places}."
    if difflib.get_close_matches(word, known_here, n=1, cutoff=0.55):
        return did_you_mean(word, known_here)
    near = difflib.get_close_matches(word, [path[-1] for path in everywhere], n=1, cutoff=0.75)
    if near:
        place = next(path for path in everywhere if path[-1] == near[0])
        return f"Did you mean {'.'.join(place)}?"
    return did_you_mean(word, known_here)


def _for_typed(typed: str, everywhere: list[tuple[str, ...]]) -> str:
    names = [".".join(path) for path in everywhere]
    word = typed.rpartition(".")[2]
    same = [name for name in names if name.rpartition(".")[2] == word]
    near = difflib.get_close_matches(typed, names, n=1, cutoff=0.7) or same
    return f"Did you mean --set {near[0]}=...?" if near else "`effcompress schema` lists all keys."


def _distance(path: tuple[str, ...], key: Key) -> int:
    """Places below the section in which the key stands are nearer than places elsewhere."""
    shared = 0
    for ours, theirs in zip(path, key[:-1], strict=False):
        if ours not in (str(theirs), _NAMED):
            break
        shared += 1
    return len(path) - 2 * shared


def _all_keys(schema: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    yield from _below(schema, (), schema["$defs"])


def _below(
    schema: dict[str, Any], at: tuple[str, ...], definitions: dict[str, Any]
) -> Iterator[tuple[str, ...]]:
    if "$ref" in schema:
        yield from _below(definitions[schema["$ref"].rpartition("/")[2]], at, definitions)
    for alternative in schema.get("anyOf", ()):
        yield from _below(alternative, at, definitions)
    for name, one in schema.get("properties", {}).items():
        if name == "name" and at:
            continue  # every plugin has a `name`; no misplaced `name` belongs there
        yield (*at, name)
        yield from _below(one, (*at, name), definitions)
    if isinstance(schema.get("additionalProperties"), dict):
        yield from _below(schema["additionalProperties"], (*at, _NAMED), definitions)
    if isinstance(schema.get("items"), dict):
        yield from _below(schema["items"], (*at, "0"), definitions)

"""What the JSON Schema finds wrong, reduced to the one thing the user has to change."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jsonschema
from jsonschema.exceptions import ValidationError

from effcompress.recipe.source_map import Document, Key


@dataclass(frozen=True)
class Violation:
    """``value`` at ``key`` breaks ``rule`` (a JSON Schema keyword) of ``schema``. For a plugin's
    name, ``choices`` is the schema with all plugins of its kind.
    """

    key: Key
    rule: str
    value: Any
    expected: Any
    schema: dict[str, Any]
    choices: dict[str, Any] | None = None


def worst(document: Document, schema: dict[str, Any]) -> Violation | None:
    """The most telling violation, or None.

    An unknown key comes first (a misspelt key is also a missing one), a missing key last; among
    equals, the one written first, ``--set`` before files.
    """
    validator = jsonschema.Draft202012Validator(schema)
    found = [
        violation
        for error in validator.iter_errors(document.values)
        for leaf in _leaves(error)
        for violation in _violations(leaf)
    ]
    return min(found, key=lambda violation: _rank(violation, document), default=None)


def _rank(violation: Violation, document: Document) -> tuple[int, bool, int]:
    order = {"additionalProperties": 0, "required": 2}.get(violation.rule, 1)
    mark = document.mark(violation.key)
    return order, mark.file is not None, mark.line


def _leaves(error: ValidationError) -> Iterator[ValidationError]:
    """Descend into the alternative that was meant: the one whose kind or plugin name fits."""
    branches: dict[Any, list[ValidationError]] = {}
    for inner in error.context or ():
        branches.setdefault(inner.relative_schema_path[0], []).append(inner)
    if error.validator != "anyOf":
        yield error
        return
    meant = [inner for inner in branches.values() if not any(map(_misses, inner))]
    schema: Any = error.schema
    if not meant and "title" in schema:
        yield error  # a plugin that nobody knows
        return
    # An optional section with the wrong type: the section is the first alternative, null the last.
    for inner in (meant or list(branches.values()))[0]:
        yield from _leaves(inner)


def _misses(error: ValidationError) -> bool:
    """Does this error say that its alternative was not the one meant?"""
    instance: Any = error.instance
    schema: Any = error.schema
    if error.validator == "const":
        return True
    if error.relative_path:
        return False
    if error.validator == "required":
        return "name" in schema["properties"] and "name" not in instance
    return error.validator == "type" or (
        error.validator == "enum" and not isinstance(instance, str)
    )


def _violations(leaf: ValidationError) -> Iterator[Violation]:
    at: Key = tuple(leaf.absolute_path)
    rule, expected = str(leaf.validator), leaf.validator_value
    value: Any = leaf.instance
    schema: Any = leaf.schema
    chosen: Any = leaf if rule == "anyOf" else leaf.parent if not leaf.relative_path else None
    choices = chosen.schema if chosen is not None and "title" in chosen.schema else None
    if rule == "additionalProperties":
        for name in value:
            if name not in schema["properties"]:
                yield Violation((*at, name), rule, value, expected, schema)
    elif "propertyNames" in leaf.absolute_schema_path:
        yield Violation((*at, str(value)), rule, value, expected, schema)
    else:
        yield Violation(at, rule, value, expected, schema, choices)

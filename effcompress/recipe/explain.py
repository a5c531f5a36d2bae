"""What the JSON Schema finds wrong, as one error: the key, its line, what to type instead.

A validator reports every alternative that failed. ``first_error`` picks the one thing the user has
to change and says it in words, and ``suggest_key`` finds where a misplaced key belongs.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any

from jsonschema import Draft202012Validator, validators
from jsonschema.exceptions import ValidationError

from effcompress.errors import RecipeError, did_you_mean, short
from effcompress.recipe.json_schema import Schema
from effcompress.recipe.quantities import QUANTITIES
from effcompress.recipe.source_map import Document, Key, dotted
from effcompress.recipe.yaml_text import kind, scalar

Words = tuple[str, str]
"""What is wrong; what to write instead (may be empty)."""

_BY_PATTERN = {quantity.pattern: quantity for quantity in QUANTITIES.values()}
_BOUND_WORDS = {
    "minimum": "at least",
    "maximum": "at most",
    "exclusiveMinimum": "more than",
    "exclusiveMaximum": "less than",
}
_TYPE_WORDS = {
    "string": "text",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "array": "a list",
    "object": "a mapping",
}


def first_error(document: Document, schema: Schema) -> RecipeError | None:
    """Returns the most specific violation of the schema as an error, or None.

    An unknown key comes first (a misspelt key is also a missing one), a missing key last; among
    equals, the one written first, ``--set`` before files.
    """

    def rank(it: Violation) -> tuple[int, bool, int]:
        order = {"additionalProperties": 0, "required": 2}.get(it.rule, 1)
        mark = document.mark(it.key)
        return order, mark.file is not None, mark.line

    errors = _Validator(schema).iter_errors(document.values)
    found = [one for error in errors for leaf in _leaves(error) for one in _violations(leaf)]
    if not found:
        return None
    first = min(found, key=rank)
    first = replace(first, written=document.mark(first.key).written)
    unknown = first.rule == "additionalProperties"
    what, fix = _unknown(first, document, schema) if unknown else _words(first)
    return RecipeError(what, where=document.mark(first.key).where, fix=fix or None)


def _words(it: Violation) -> Words:
    by_rule = {"required": _missing, "anyOf": _choice, "enum": _choice, "pattern": _bad_text}
    by_rule |= dict.fromkeys(_BOUND_WORDS, _out_of_range)
    by_rule |= dict.fromkeys(("minItems", "minProperties", "maxItems"), _wrong_length)
    return by_rule.get(it.rule, _wrong_type)(it)


def _unknown(it: Violation, document: Document, schema: Schema) -> Words:
    word, title = str(it.key[-1]), it.schema.get("title", "")
    known = [name for name in it.schema["properties"] if not (title and name == "name")]
    if title:
        plugin = "{} '{}'".format(*title.split(" ", 1))
        fix = did_you_mean(word, known) if known else "It has no knobs at all."
        return f"{dotted(it.key)}: {plugin} has no knob '{word}'", fix
    mark = document.mark(it.key)
    typed = mark.given.partition("=")[0].strip() if mark.file is None else ""
    if not word:
        return f"a key of {dotted(it.key[:-1])} is empty", suggest_key(it.key, known, schema, typed)
    return f"unknown key {short(typed or dotted(it.key))}", suggest_key(
        it.key, known, schema, typed
    )


def _missing(it: Violation) -> Words:
    lacking = next(key for key in it.expected if key not in it.value)
    said = it.schema["properties"][lacking].get("description", "")
    fix = f"Add `{lacking}:` to {dotted(it.key)}{f': {said}' if said else ''}."
    return f"{dotted((*it.key, lacking))} is missing", fix


def _choice(it: Violation) -> Words:
    if it.choices:
        return _unknown_plugin(it, it.choices)
    known = [v if isinstance(v, str) else scalar(v) for v in it.expected]
    return f"{dotted(it.key)} is {kind(it.value)}", did_you_mean(str(it.value), known)


def _unknown_plugin(it: Violation, choices: Schema) -> Words:
    title, name, value = choices["title"], dotted(it.key), it.value
    plugins = {b["properties"]["name"]["const"]: b for b in choices["anyOf"][1:]}
    if isinstance(value, str) and value in plugins:
        lacking = ", ".join(plugins[value]["required"][1:])
        fix = f"Write {{name: {value}, {lacking}: ...}}."
        return f"{name}: {title} '{value}' needs the knob {lacking}", fix
    given = value.get("name") if isinstance(value, dict) else value
    if isinstance(given, str):
        return f"{name}: no {title} named '{given}'", did_you_mean(given, plugins)
    short = [key for key in plugins if isinstance(value, dict) and key in value]
    example = next(iter(short or plugins), "...")
    has = "has no `name`" if isinstance(value, dict) else f"is {kind(value)}"
    fix = f"Write the name of a {title}, e.g. {example}, or {{name: {example}}} with its knobs."
    return f"{name} {has}", fix


def _out_of_range(it: Violation) -> Words:
    quantity = QUANTITIES["fraction"]
    is_number = it.schema.get("pattern") == quantity.pattern and not isinstance(it.value, str)
    guess = quantity.nearest(it.value) if is_number else None
    what = f"{dotted(it.key)} is {short(str(it.value))}, but must be "
    what += f"{_BOUND_WORDS[it.rule]} {it.expected}"
    bounds = [f"{word} {it.schema[k]}" for k, word in _BOUND_WORDS.items() if k in it.schema]
    within = f"Write a number that is {' and '.join(bounds)}."
    return what, f"Did you mean {guess}?" if guess else it.help or within


def _bad_text(it: Violation) -> Words:
    if quantity := _BY_PATTERN.get(it.expected):
        guess, example = quantity.nearest(it.value), f"E.g. {quantity.example}."
    else:
        # A name: replace the characters that are not allowed by dashes.
        mended = re.sub(r"\.{2,}", ".", re.sub(r"[^A-Za-z0-9._-]+", "-", it.value)).strip(".-")
        mended = mended[:100]
        guess = mended if re.search(it.expected, mended) else None
        example = "E.g. my-run." if "letters" in it.schema["patternErrorMessage"] else it.help
    wanted = it.schema["patternErrorMessage"]
    what = f"{dotted(it.key)} is '{short(it.value)}', but must be {wanted}"
    if it.key[-1] == it.value:
        what = f"{dotted(it.key)}: a name takes {wanted}"
    return what, f"Did you mean {guess}?" if guess else example


def _wrong_length(it: Violation) -> Words:
    least, most = it.schema.get("minItems"), it.schema.get("maxItems")
    wanted = f"exactly {least}" if least == most else f"at least {least or 1}"
    what = f"{dotted(it.key)} has {len(it.value)} elements, but must have {wanted}"
    return what if it.value else f"{dotted(it.key)} is empty", it.help


def _wrong_type(it: Violation) -> Words:
    name, value, wanted = dotted(it.key), it.value, it.schema.get("type", [])
    kinds = [k for k in ([wanted] if isinstance(wanted, str) else wanted) if k != "null"]
    words = it.schema.get("patternErrorMessage") or " or ".join(_TYPE_WORDS[k] for k in kinds)
    has = "has no value" if value is None else f"is {kind(value)}"
    what = f"{name} {has}, but must be {words}"
    flat = value is not None and not isinstance(value, dict | list)
    if "object" in kinds and "properties" in it.schema:
        return what, f"Its keys: {', '.join(it.schema['properties'])}."
    if kinds == ["array"] and flat:
        return what, f"Write [{scalar(value)}]."
    if kinds == ["string"] and flat:
        return what, f"Put it in quotes: '{short(it.written or str(value))}'."
    padded = isinstance(value, str) and re.fullmatch(r"0+([1-9][0-9]{,17})", value)
    return what, f"Did you mean {padded[1]}?" if padded else it.help or f"Write {words}."


def _with_quantities(rule: str) -> Callable[..., Iterator[ValidationError]]:
    """The JSON Schema keyword ``rule``, which compares numbers, also for ``0k`` and ``0%``."""
    compare = Draft202012Validator.VALIDATORS[rule]

    def check(
        validator: Any, bound: float, value: Any, schema: Schema
    ) -> Iterator[ValidationError]:
        quantity = _BY_PATTERN.get(schema.get("pattern", ""))
        if quantity and isinstance(value, str):
            try:
                value = quantity.read(value)
            except ValueError:
                return  # the pattern reports it
        yield from compare(validator, bound, value, schema)

    return check


_Validator = validators.extend(
    Draft202012Validator, {rule: _with_quantities(rule) for rule in _BOUND_WORDS}
)


@dataclass(frozen=True)
class Violation:
    """``value`` at ``key`` violates ``rule`` (a JSON Schema keyword) of ``schema``. For a plugin's
    name, ``choices`` is the schema with all plugins of its kind. ``written``: a plain value as it
    stands in the recipe.
    """

    key: Key
    rule: str
    value: Any
    expected: Any
    schema: Schema
    choices: Schema | None = None
    written: str | None = None

    @property
    def help(self) -> str:
        """The key and its help text; empty where the schema has none."""
        said = self.schema.get("description", "")
        return f"{dotted(self.key)}: {said}." if said else ""


def _leaves(error: ValidationError) -> Iterator[ValidationError]:
    """Yields the errors of the alternative that was meant: whose type or plugin name fits."""
    branches: dict[Any, list[ValidationError]] = {}
    for inner in error.context or ():
        branches.setdefault(inner.relative_schema_path[0], []).append(inner)
    if error.validator != "anyOf":
        yield error
        return
    meant = [inner for inner in branches.values() if not any(map(_misses, inner))]
    schema: Any = error.schema
    if not meant and "title" in schema:
        yield error  # an unknown plugin
        return
    # An optional section with the wrong type: the section is the first alternative, null the last.
    for inner in (meant or list(branches.values()))[0]:
        yield from _leaves(inner)


def _misses(error: ValidationError) -> bool:
    """Whether this error shows that its alternative was not the one meant."""
    instance: Any = error.instance
    schema: Any = error.schema
    if error.validator == "const" or error.relative_path:
        return error.validator == "const"
    if error.validator == "required":
        return "name" in schema["properties"] and "name" not in instance
    if error.validator == "enum":
        return not isinstance(instance, str)
    return error.validator == "type"


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


_NAMED = "<name>"


def suggest_key(key: Key, known_here: list[str], schema: Schema, typed: str) -> str:
    """Suggests what to write instead of the unknown ``key``; ``typed`` is the dotted key after
    ``--set``, or empty.

    The same word at another level wins over a similar word at this level; a similar word elsewhere
    comes last.
    """
    word = str(key[-1])
    # The sort is stable: keys at the same distance stay in the order of the sections.
    keys = dict.fromkeys(_below(schema, (), schema["$defs"]))
    everywhere = sorted(keys, key=lambda path: _distance(path, key))
    if typed:
        names = [".".join(path) for path in everywhere]
        same = [name for name in names if name.rpartition(".")[2] == typed.rpartition(".")[2]]
        near = difflib.get_close_matches(typed, names, n=1, cutoff=0.7) or same
        unknown = "`effcompress schema` lists all keys."
        return f"Did you mean --set {near[0]}=...?" if near else unknown
    same = [path for path in everywhere if path[-1] == word]
    below = [path for path in same if path[: len(key) - 1] == key[:-1]]
    if same := below or same:
        places = " or ".join(".".join(path) for path in same[:3])
        return f"It belongs at {places}."
    here = difflib.get_close_matches(word, known_here, n=1, cutoff=0.55)
    near = difflib.get_close_matches(word, [path[-1] for path in everywhere], n=1, cutoff=0.75)
    if near and not here:
        place = next(path for path in everywhere if path[-1] == near[0])
        return f"Did you mean {'.'.join(place)}?"
    return did_you_mean(word, known_here)


def _distance(path: tuple[str, ...], key: Key) -> int:
    """Steps between two keys in the tree of sections."""
    pairs = zip(path, key[:-1], strict=False)
    common = list(takewhile(lambda pair: pair[0] in (str(pair[1]), _NAMED), pairs))
    return len(path) - 2 * len(common)


def _below(schema: Schema, at: tuple[str, ...], definitions: Schema) -> Iterator[tuple[str, ...]]:
    if "$ref" in schema:
        yield from _below(definitions[schema["$ref"].rpartition("/")[2]], at, definitions)
    for alternative in schema.get("anyOf", ()):
        yield from _below(alternative, at, definitions)
    for name, one in schema.get("properties", {}).items():
        if name == "name" and at:
            continue  # every plugin has a `name`; no misplaced `name` belongs there
        yield (*at, name)
        yield from _below(one, (*at, name), definitions)
    for keyword, name in (("additionalProperties", _NAMED), ("items", "0")):
        if isinstance(schema.get(keyword), dict):
            yield from _below(schema[keyword], (*at, name), definitions)

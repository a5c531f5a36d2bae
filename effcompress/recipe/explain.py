"""A violation of the schema in our words: the key, its line, what to type instead."""

from __future__ import annotations

import re
from typing import Any

from effcompress.errors import RecipeError, did_you_mean
from effcompress.recipe.key_suggestions import suggest_key
from effcompress.recipe.quantities import COUNT_PATTERN, SHARE_PATTERN, nearest_count, nearest_share
from effcompress.recipe.source_map import Document, dotted
from effcompress.recipe.violations import Violation, worst
from effcompress.recipe.yaml_text import kind, scalar

Words = tuple[str, str]
"""What is wrong; what to write instead (may be empty)."""

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


def first_error(document: Document, schema: dict[str, Any]) -> RecipeError | None:
    """The most telling thing that the schema finds wrong, or None."""
    violation = worst(document, schema)
    if violation is None:
        return None
    if violation.rule == "additionalProperties":
        what, fix = _unknown(violation, document, schema)
    else:
        what, fix = _words(violation)
    return RecipeError(what, where=document.mark(violation.key).where, fix=fix or None)


def _words(it: Violation) -> Words:
    if it.rule == "required":
        return _missing(it)
    if it.rule in {"anyOf", "enum"}:
        return _unknown_plugin(it, it.choices) if it.choices else _choice(it)
    if it.rule in _BOUND_WORDS:
        return _out_of_range(it)
    if it.rule == "pattern":
        return _bad_text(it)
    if it.rule in {"minItems", "minProperties", "maxItems"}:
        return _wrong_length(it)
    return _wrong_type(it)


def _unknown(it: Violation, document: Document, schema: dict[str, Any]) -> Words:
    word, title = str(it.key[-1]), it.schema.get("title", "")
    known = [name for name in it.schema["properties"] if not (title and name == "name")]
    if title:
        plugin = "{} '{}'".format(*title.split(" ", 1))
        fix = did_you_mean(word, known) if known else "It has no knobs at all."
        return f"{dotted(it.key)}: {plugin} has no knob '{word}'", fix
    mark = document.mark(it.key)
    typed = mark.given.partition("=")[0].strip() if mark.file is None else ""
    return f"unknown key {typed or dotted(it.key)}", suggest_key(it.key, known, schema, typed)


def _missing(it: Violation) -> Words:
    lacking = next(key for key in it.expected if key not in it.value)
    said = it.schema["properties"][lacking].get("description", "")
    fix = f"Add `{lacking}:` to {dotted(it.key)}{f': {said}' if said else ''}."
    return f"{dotted((*it.key, lacking))} is missing", fix


def _choice(it: Violation) -> Words:
    known = [v if isinstance(v, str) else scalar(v) for v in it.expected]
    return f"{dotted(it.key)} is {kind(it.value)}", did_you_mean(str(it.value), known)


def _unknown_plugin(it: Violation, choices: dict[str, Any]) -> Words:
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
    guess = nearest_share(it.value) if it.schema.get("pattern") == SHARE_PATTERN else None
    said = it.schema.get("description", "")
    fix = f"{dotted(it.key)}: {said}." if said else ""
    what = f"{dotted(it.key)} is {it.value}, but must be {_BOUND_WORDS[it.rule]} {it.expected}"
    return what, f"Did you mean {guess}?" if guess else fix


def _bad_text(it: Violation) -> Words:
    guess, pattern = None, it.expected
    example = {COUNT_PATTERN: "E.g. 469M.", SHARE_PATTERN: "E.g. 85% or 0.85."}.get(pattern, "")
    if pattern == COUNT_PATTERN:
        guess = nearest_count(it.value)
    elif pattern == SHARE_PATTERN:
        guess = nearest_share(it.value)
    else:
        # Names: what is left when the signs that are not allowed become dashes.
        mended = re.sub(r"\.{2,}", ".", re.sub(r"[^A-Za-z0-9._-]+", "-", it.value)).strip(".-")
        guess = mended if re.search(pattern, mended) else None
    what = f"{dotted(it.key)} is {it.value!r}, but must be {it.schema['patternErrorMessage']}"
    if it.key[-1] == it.value:
        what = f"{dotted(it.key)}: a name takes {it.schema['patternErrorMessage']}"
    return what, f"Did you mean {guess}?" if guess else example


def _wrong_length(it: Violation) -> Words:
    least, most = it.schema.get("minItems"), it.schema.get("maxItems")
    wanted = f"exactly {least}" if least == most else f"at least {least or 1}"
    what = f"{dotted(it.key)} has {len(it.value)} elements, but must have {wanted}"
    said = it.schema.get("description", "")
    fix = f"{dotted(it.key)}: {said}." if said else ""
    return (what, fix) if it.value else (f"{dotted(it.key)} is empty", fix)


def _wrong_type(it: Violation) -> Words:
    name, value, wanted = dotted(it.key), it.value, it.schema.get("type", [])
    kinds = [k for k in ([wanted] if isinstance(wanted, str) else wanted) if k != "null"]
    words = it.schema.get("patternErrorMessage") or " or ".join(_TYPE_WORDS[k] for k in kinds)
    has = "has no value" if value is None else f"is {kind(value)}"
    what, said = f"{name} {has}, but must be {words}", it.schema.get("description", "")
    flat = value is not None and not isinstance(value, dict | list)
    if "object" in kinds and "properties" in it.schema:
        return what, f"Its keys: {', '.join(it.schema['properties'])}."
    if kinds == ["array"] and flat:
        return what, f"Write [{scalar(value)}]."
    if kinds == ["string"] and flat:
        return what, f"Put it in quotes: '{value}'."
    return what, f"{name}: {said}." if said else ""

"""The recipe's JSON Schema, from the dataclasses of ``spec.py`` and the registered plugins.

Alternatives (``anyOf``) are used only where a ``type`` list will not do, so that editors give short
messages and ``explain.py`` can find the one thing that is wrong.
"""

import dataclasses
import functools
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, cast

from effcompress.injectable import INPUTS
from effcompress.recipe.quantities import QUANTITIES
from effcompress.registry import REGISTRY, Bound, Plugin, Registry
from effcompress.spec import Recipe

Schema = dict[str, Any]

LARGEST = 10**9
"""Bounds a number whose field or tag says nothing narrower."""
_SCALARS: Mapping[type, Schema] = {
    bool: {"type": "boolean"},
    int: {"type": "integer", "minimum": -LARGEST, "maximum": LARGEST},
    float: {"type": "number", "minimum": -LARGEST, "maximum": LARGEST},
    str: {"type": "string"},
    Path: {"type": "string"},
}
_TAGS: Mapping[str, Schema] = {
    "count": {"type": ["integer", "string"], "minimum": 0, "maximum": 10**15},
    "bytes": {"type": ["integer", "string"], "minimum": 0, "maximum": 10**15},
    "fraction": {"type": ["number", "string"], "minimum": 0, "maximum": 1},
    "positive": {"type": "integer", "minimum": 1, "maximum": LARGEST},
    "number from 0": {"type": "number", "minimum": 0, "maximum": LARGEST},
    "number from 0, or auto": {"type": ["number", "string"], "minimum": 0, "maximum": LARGEST},
    "losses by domain": {
        "type": ["string", "object"],
        "additionalProperties": {"type": "number", "minimum": 0, "maximum": LARGEST},
    },
}
# Metadata of a field -> JSON Schema.
_TEXT = {"pattern": "pattern", "words": "patternErrorMessage"}
_BOUNDS = {
    "minimum": "minimum",
    "maximum": "maximum",
    "above": "exclusiveMinimum",
    "below": "exclusiveMaximum",
    **_TEXT,
}
_LENGTHS = {"least": "minItems", "most": "maxItems"}


def json_schema(registry: Registry = REGISTRY) -> Schema:
    """Returns the JSON Schema (2020-12) of recipes with the plugins of ``registry``."""
    # No recipe names a family: its model does.
    kinds = [kind for kind in INPUTS if kind != "family"]
    definitions: Schema = {kind: _plugin_schema(kind, registry) for kind in kinds}
    schema = _dataclass_schema(Recipe, definitions)
    schema["properties"]["include"] = {
        "type": ["string", "array"],
        "items": {"type": "string"},
        "description": "recipe file(s) to start from, relative to this one; this one wins",
    }
    schema["$defs"] = dict(sorted(definitions.items()))
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


@functools.cache
def hints(cls: type) -> Mapping[str, Any]:
    """Returns field name -> evaluated annotation, ``Annotated`` included."""
    return typing.get_type_hints(cls, include_extras=True)


def unwrap(annotation: Any) -> tuple[Any, str, bool]:
    """Splits an annotation into the inner type, its tag (count, fraction, path or empty), and
    whether it is optional.
    """
    optional = False
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        rest = [a for a in typing.get_args(annotation) if a is not type(None)]
        optional = len(rest) < len(typing.get_args(annotation))
        annotation = rest[0] if len(rest) == 1 else Any
    if typing.get_origin(annotation) is typing.Annotated:
        inner, *tags = typing.get_args(annotation)
        words = [tag for tag in tags if isinstance(tag, str)]
        return inner, words[0] if words else "", optional
    return annotation, "", optional


def type_words(annotation: Any) -> str:
    """Describes an annotation in the words of the docs: ``l1 | l2``, ``fraction or null``."""
    inner, tag, optional = unwrap(annotation)
    if typing.get_origin(inner) is Literal:
        words = " | ".join(str(value) for value in typing.get_args(inner))
    elif is_sequence(inner):
        words = f"list of {type_words(typing.get_args(inner)[0])}"
    else:
        words = tag or getattr(inner, "__name__", str(inner))
    return f"{words} or null" if optional else words


def is_sequence(inner: Any) -> bool:
    """Whether it is ``tuple[T, ...]`` or ``list[T]``."""
    return typing.get_origin(inner) in (tuple, list)


def is_mapping(inner: Any) -> bool:
    """Whether it is ``Mapping[str, T]``."""
    origin = typing.get_origin(inner)
    return isinstance(origin, type) and issubclass(origin, Mapping)


def _dataclass_schema(cls: type, definitions: Schema) -> Schema:
    properties: Schema = {}
    for field in dataclasses.fields(cls):
        one = _schema(hints(cls)[field.name], field.metadata, definitions)
        one = {"description": field.metadata.get("help", ""), **one}
        properties[field.name] = _with_default(one, field.default)
    required = [f.name for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING]
    return _object(" ".join((cls.__doc__ or "").split()), properties, required)


def _object(description: str, properties: Schema, required: list[str]) -> Schema:
    return {
        "type": "object",
        "description": description,
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


def _schema(annotation: Any, metadata: Mapping[str, Any], definitions: Schema) -> Schema:
    inner, tag, optional = unwrap(annotation)
    schema = _inner_schema(inner, tag, metadata, definitions)
    if not optional:
        return schema
    if "$ref" in schema:
        return {"anyOf": [schema, {"type": "null"}]}
    if "enum" in schema:
        return {**schema, "enum": [*schema["enum"], None]}
    if "type" not in schema:
        return schema
    kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    return {**schema, "type": [*kinds, "null"]}


def _inner_schema(inner: Any, tag: str, metadata: Mapping[str, Any], definitions: Schema) -> Schema:
    if inner is Bound:
        return {"$ref": f"#/$defs/{metadata['plugin']}"}
    if dataclasses.is_dataclass(inner) and isinstance(inner, type):
        return _section(inner, definitions)
    if is_sequence(inner):
        item = typing.get_args(inner)[0]
        kinds = ["string", "array"] if unwrap(item)[1] == "path" else "array"
        items = _schema(item, metadata, definitions)
        return {"type": kinds, "items": items, **_renamed(metadata, _LENGTHS)}
    if is_mapping(inner):
        items = _schema(typing.get_args(inner)[1], {}, definitions)
        schema: Schema = {"type": "object", "additionalProperties": items}
        schema |= _renamed(metadata, {"least": "minProperties"})
        names = _renamed(metadata, _TEXT)
        return {**schema, "propertyNames": names} if names else schema
    if typing.get_origin(inner) is Literal:
        return {"enum": list(typing.get_args(inner))}
    if inner not in _SCALARS and tag not in _TAGS:
        # Of a model's configuration, say: whatever else it is, a number is bounded.
        return {"minimum": -LARGEST, "maximum": LARGEST} if inner is Any else {}
    schema = _TAGS[tag] if tag in _TAGS else _SCALARS[cast(type, inner)]
    written = QUANTITIES[tag]._asdict() if tag in QUANTITIES else {}
    own = _renamed(written, _TEXT) | _renamed(metadata, _BOUNDS)
    for bound, exclusive in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
        if exclusive in own:
            schema = {key: value for key, value in schema.items() if key != bound}
    return {**schema, **own}


def _section(cls: type, definitions: Schema) -> Schema:
    """Adds a section to the definitions; where its keys stand beside a plugin's knobs, to every
    plugin of that kind.
    """
    name = cls.__name__
    if name not in definitions:
        definitions[name] = _dataclass_schema(cls, definitions)
    plugin = next((f for f in dataclasses.fields(cls) if "beside" in f.metadata), None)
    if plugin is not None:
        own = definitions.pop(name)["properties"]
        own.pop(plugin.name)
        name = plugin.metadata["plugin"]
        for alternative in definitions[name]["anyOf"][1:]:
            alternative["properties"] |= own
    return {"$ref": f"#/$defs/{name}"}


def _renamed(metadata: Mapping[str, Any], names: Mapping[str, str]) -> Schema:
    return {names[key]: metadata[key] for key in names if key in metadata}


def _plugin_schema(kind: str, registry: Registry) -> Schema:
    plugins = registry.all(kind)
    bare = [p.name for p in plugins if all(k.default is not k.empty for k in p.knobs.values())]
    by_name = {"enum": bare, "description": f"a {kind} by its name, with default knobs"}
    return {"title": kind, "anyOf": [by_name, *map(_knobs_schema, plugins)]}


def _knobs_schema(plugin: Plugin) -> Schema:
    knobs = {
        name: _with_default(_schema(knob.annotation, {}, {}), knob.default)
        for name, knob in plugin.knobs.items()
    }
    properties = {"name": {"const": plugin.name}, **knobs}
    required = ["name", *(k.name for k in plugin.knobs.values() if k.default is k.empty)]
    title = f"{plugin.kind} {plugin.name}"
    return {"title": title, **_object(plugin.summary, properties, required)}


def _with_default(schema: Schema, default: Any) -> Schema:
    plain = isinstance(default, bool | int | float | str)
    return {**schema, "default": default} if plain else schema

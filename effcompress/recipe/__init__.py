"""Reads recipes: from YAML, or a mapping, to frozen dataclasses with bound plugins."""

from effcompress.recipe.json_schema import json_schema, type_words
from effcompress.recipe.load import LoadedRecipe, load, load_mapping, load_plugins
from effcompress.recipe.reference import injected, reference
from effcompress.recipe.resolved import checked, plain, read, resolved, values

__all__ = [
    "LoadedRecipe",
    "checked",
    "injected",
    "json_schema",
    "load",
    "load_mapping",
    "load_plugins",
    "plain",
    "read",
    "reference",
    "resolved",
    "type_words",
    "values",
]

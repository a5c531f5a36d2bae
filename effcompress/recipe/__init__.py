"""Recipes: YAML in, frozen dataclasses with bound plugins out. Dicts stop here."""

from effcompress.recipe.installed import require_trackers
from effcompress.recipe.json_schema import json_schema, type_words
from effcompress.recipe.load import LoadedRecipe, load, load_plugins
from effcompress.recipe.reference import reference
from effcompress.recipe.resolved import checked, plain, resolved

__all__ = [
    "LoadedRecipe",
    "checked",
    "json_schema",
    "load",
    "load_plugins",
    "plain",
    "reference",
    "require_trackers",
    "resolved",
    "type_words",
]

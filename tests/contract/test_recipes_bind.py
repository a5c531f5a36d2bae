"""Every shipped recipe checks without a warning, in words a user can follow."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

from effcompress import load_recipe
from effcompress.estimate.check import check

FOLDER = Path(__file__).parents[2] / "recipes"
RECIPES = sorted(p for p in FOLDER.rglob("*.yaml") if p.parent.name != "parts")


def test_there_are_recipes() -> None:
    assert {"quickstart", "efficientllm_469m", "wanda_2_4"} <= {r.stem for r in RECIPES}


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_recipe_binds_and_its_target_is_in_reach(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        recipe = load_recipe(path)
        found = check(recipe)
    if recipe.recipe.prune and recipe.recipe.prune.target.sized:
        assert found.data["ends_at"] == pytest.approx(found.data["target_params"], rel=0.005)
    if recipe.recipe.sparsify:
        assert 0.3 * found.data["params"] < found.data["zeroed"] < 0.5 * found.data["params"]

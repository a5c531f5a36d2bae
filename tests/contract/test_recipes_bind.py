"""Every shipped recipe checks without a warning, in words a user can follow."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

from effcompress import load_recipe
from effcompress.runner.price import price

FOLDER = Path(__file__).parents[2] / "recipes"
RECIPES = sorted(p for p in FOLDER.rglob("*.yaml") if p.parent.name != "parts")


def test_there_are_recipes() -> None:
    assert {"quickstart", "efficientllm_469m"} <= {r.stem for r in RECIPES}


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_recipe_binds_and_its_target_is_in_reach(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = price(load_recipe(path))
    assert found.data["ends_at"] == pytest.approx(found.data["target_params"], rel=0.005)

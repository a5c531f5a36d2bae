"""Criteria of what layers read, on what pruned layers hand on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from effcompress import load_recipe
from effcompress.errors import RecipeError
from tests.runner.test_baselines import (
    DEFAULTS,
    LAYERS,
    LOCAL,
    QUERIES,
    RECIPE,
    WIDE,
    kept,
    least,
    wanda,
    write_model,
    writers,
)
from tests.runner.toys import texts

AT_ONCE, HANDED_ON = "sequences: 5}", "sequences: 5, propagate: true}"


def test_wanda_sp_is_handed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Layer by layer in fp64: score, zero the columns, and only then look at the next one."""
    text = RECIPE.replace(AT_ONCE, HANDED_ON)
    monkeypatch.setattr("tests.runner.test_baselines.RECIPE", text)
    plan, model, ids = kept(tmp_path, criterion="wanda")
    at_once = least(wanda(model, ids), LOCAL)
    wanted: dict[str, list[int]] = {}
    for i in range(LAYERS):
        now = least(wanda(model, ids), LOCAL)
        for name, weight in writers(model, i).items():
            wanted[name] = now[name]
            block = QUERIES * WIDE if name.startswith("attention") else 1
            weight[:, torch.arange(weight.shape[1]).view(-1, block)[now[name]].flatten()] = 0.0
    assert plan == wanted
    assert plan != at_once, "this test shows nothing if both ways choose the same"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"criterion": "taylor"}, "prune.measure.propagate: 'taylor' does not score by what"),
        ({"space": "[ffn, hidden]"}, "what goes of 'hidden' does not lie within a layer"),
        ({"space": "[layer, ffn]"}, "what goes of 'layer' does not lie within a layer"),
        ({"criterion": "magnitude", "handed": "propagate: true}"}, "none is read"),
    ],
)
def test_where_nothing_is_handed_on(changes: dict[str, str], said: str, tmp_path: Path) -> None:
    texts(tmp_path)
    write_model(tmp_path)
    path = tmp_path / "toy.yaml"
    handed = changes.pop("handed", f"source: calibration, {HANDED_ON}")
    text = RECIPE.format(**{**DEFAULTS, "criterion": "wanda", **changes})
    path.write_text(text.replace(f"source: calibration, {AT_ONCE}", handed))
    with pytest.raises(RecipeError, match=r"toy\.yaml:\d+:") as caught:
        load_recipe(path)
    assert said in str(caught.value)

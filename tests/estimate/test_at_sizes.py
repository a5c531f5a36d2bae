"""Sizes that a run passes, by arithmetic: what is refused, when each is passed, its shape."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from effcompress import load_recipe
from effcompress.errors import RecipeError
from effcompress.estimate.check import check
from effcompress.estimate.feasibility import SizedModel, sized_model
from effcompress.estimate.forecast import plan
from effcompress.estimate.schedule import play
from effcompress.network.shapes import living_widths
from effcompress.record.readable import short_count
from tests.runner.toys import recipe

ONCE = ["train=null", "prune.schedule={name: once, at: 0}"]
CALIBRATED = "prune.measure={source: calibration, sequences: 4}"


@pytest.mark.parametrize(
    ("sets", "said"),
    [
        (["export.at=[24k, 30k]"], "export.at.1: 30,000 parameters are not between the source"),
        (["export.at=[15k]"], "export.at.0: 15,000 parameters are not between .* and the target's"),
        (
            ["prune.space=[{name: attention, minimum: 1}]", "prune.target={keep: 88.6%}",
             "export.at=[25.6k]"],
            "export.at.0: 25,600 parameters lie between two sizes",
        ),
        (
            [*ONCE, CALIBRATED, "prune.search={grid: {hidden: 16, ffn: 32, attention: 1}}",
             "export.at=[24k]", "prune.target={params: 16k}", "prune.search.max_width=0.55"],
            "",
        ),
    ],
)  # fmt: skip
def test_sizes_out_of_reach(tmp_path: Path, sets: list[str], said: str) -> None:
    loaded = load_recipe(recipe(tmp_path), sets)
    if not said:
        assert "export.at: a model of 24k parameters" in "\n".join(check(loaded).lines)
        return
    with pytest.raises(RecipeError, match=said) as error:
        check(loaded)
    assert error.value.where and error.value.fix
    assert str(error.value).startswith("--set export.at")


def test_the_target_among_the_sizes_is_the_model_of_the_run(tmp_path: Path) -> None:
    sets = ["prune.target={params: 19k}", "export.at=[24k, 19k]", "export.continued=1k"]
    lines = check(load_recipe(recipe(tmp_path), sets)).lines
    assert (
        "export.at: a model of 24k parameters, each trained on for 1,000 tokens, and that of the "
        "target" in lines
    )


def test_when_a_size_is_passed_and_its_shape(tmp_path: Path) -> None:
    """The cut that passes is the schedule's; widths are those that have this size."""
    loaded = load_recipe(recipe(tmp_path))
    found = sized_model(loaded)
    assert found is not None
    points = play(loaded.recipe, found).points
    data = plan(loaded, sizes=[21_000, 24_000]).data
    rows = data["sizes"]
    assert [row["asked"] for row in rows] == [24_000, 21_000]
    for row in rows:
        first = next(p for p in points if p.params <= row["asked"])
        assert (row["step"], row["tokens"]) == (first.step, first.tokens)
        assert row["params"] == pytest.approx(row["asked"], rel=0.005)
        # Counted by hand: embeddings, two layers of attention and FFN, norms.
        d, m = row["shape"]["hidden_size"], row["shape"]["intermediate_size"]
        q, kv = (row["shape"][f"num_{name}_heads"] for name in ("attention", "key_value"))
        assert row["params"] == 258 * d + 2 * (16 * d * (q + kv) + 3 * d * m + 2 * d) + d
    assert rows[0]["shape"]["hidden_size"] >= rows[1]["shape"]["hidden_size"]
    assert max(living_widths(found.axes, points[-1].widths, "hidden")) < 32


def test_the_sizes_of_the_recipe_are_planned(tmp_path: Path) -> None:
    answer = plan(load_recipe(recipe(tmp_path), ["export.at=[24k]"]))
    assert [row["asked"] for row in answer.data["sizes"]] == [24_000]
    (table,) = [sheet for sheet in answer.sheets if sheet.title.startswith("Sizes on the way")]
    assert table.rows[0][0] == "24k"
    assert "sizes" not in plan(load_recipe(recipe(tmp_path))).data


def test_what_sizes_cost(tmp_path: Path) -> None:
    """Models of sizes are trained on beside the run: both are counted, and every size once."""
    at = ["export.at=[24k, 21k]", "export.continued=500"]
    loaded = load_recipe(recipe(tmp_path), at)
    found = sized_model(loaded)
    assert found is not None
    alone = plan(load_recipe(recipe(tmp_path))).data
    data = plan(loaded).data
    # Whole steps of 128 tokens.
    each = [flops_at(found, row) for row in data["sizes"]]
    assert data["flops_of_sizes"] == pytest.approx(512 * sum(each), rel=0.01)
    assert data["flops"] == alone["flops"] and "flops_of_sizes" not in alone
    more = data["h100_hours"] / alone["h100_hours"]
    assert more == pytest.approx(1 + data["flops_of_sizes"] / alone["flops"])
    answer = plan(loaded)
    (cost,) = [sheet for sheet in answer.sheets if sheet.title == "Cost"]
    assert any("export.continued" in row[1] for row in cost.rows)

    held, params = data["memory_bytes"]["sizes"], data["params"]
    largest = data["sizes"][0]["params"]
    # The run in front of the cut, and the model of the larger size in the backward of a step.
    assert 4 * 2 * largest < held["weights"] <= 4 * (params + largest)
    assert held["moments"] == 2 * held["weights"]
    assert held["logits"] == data["memory_bytes"]["backward"]["logits"] > 0
    assert "sizes" not in alone["memory_bytes"]


def flops_at(found: SizedModel, row: dict[str, Any]) -> float:
    shape, length = row["shape"], 32
    d, m = shape["hidden_size"], shape["intermediate_size"]
    q, kv = (8 * shape[f"num_{name}_heads"] for name in ("attention", "key_value"))
    products = 2 * (2 * d * (q + kv) + 3 * d * m) + 258 * d
    return 3 * (2 * products + 2 * 2 * q * length)


def test_sizes_that_are_not_trained_on(tmp_path: Path) -> None:
    """A second model is there all the same. The target is the run's own; options cost nothing."""
    data = plan(load_recipe(recipe(tmp_path), ["export.at=[24k]"])).data
    assert "flops_of_sizes" not in data and data["memory_bytes"]["sizes"]["weights"] > 0
    asked = plan(load_recipe(recipe(tmp_path)), sizes=[24_000]).data
    assert "sizes" not in asked["memory_bytes"]
    own = ["prune.target={params: 19k}", "export.at=[19k]", "export.continued=1k"]
    data = plan(load_recipe(recipe(tmp_path), own)).data
    assert "flops_of_sizes" not in data and "sizes" not in data["memory_bytes"]


def test_continued_with_a_teacher_and_low_rank_updates(tmp_path: Path) -> None:
    """As the run's own training: two thirds of the operations, and the teacher's forward passes."""
    once = [*ONCE, CALIBRATED, "export.at=[24k]", "export.continued=1k"]
    recover = "recover={{method: {}, tokens: 1k, batch_size: 4}}"
    whole, low = (
        plan(load_recipe(recipe(tmp_path), [*once, recover.format(method)])).data
        for method in ("full", "lora")
    )
    for key in ("flops", "flops_of_sizes"):
        assert low[key] == pytest.approx(2 / 3 * whole[key])
    taught = plan(load_recipe(recipe(tmp_path), [*once, recover.format("distill")])).data
    forward = taught["flops_if_not_pruned"] / 3
    assert taught["flops_of_sizes"] == pytest.approx(whole["flops_of_sizes"] + forward)


def test_sizes_of_a_sliced_stream(tmp_path: Path) -> None:
    sets = [*ONCE, CALIBRATED, "prune.criterion=null", "prune.selector=null", "prune.repair=[]"]
    sets += ["prune.rotate=slicegpt", "prune.space=[hidden]", "prune.target={params: 22k}"]
    (row,) = plan(load_recipe(recipe(tmp_path), sets), sizes=[25_000]).data["sizes"]
    assert row["tokens"] == 0 and 22_000 < row["params"] <= 25_000


def test_a_plan_refuses_sizes_that_the_run_does_not_pass(tmp_path: Path) -> None:
    loaded = load_recipe(recipe(tmp_path))
    with pytest.raises(RecipeError, match="--params 30k: 30,000 parameters are not between"):
        plan(loaded, sizes=[30_000])
    with pytest.raises(RecipeError, match="prunes to no size"):
        plan(load_recipe(recipe(tmp_path), ["prune=null"]), sizes=[20_000])


@pytest.mark.parametrize(
    ("value", "said"),
    [(469_000_000, "469M"), (1_100_000_000, "1.1B"), (134_515_008, "134.515008M"), (7, "7"),
     (1000, "1k"), (999, "999"), (120_000, "120k")],
)  # fmt: skip
def test_sizes_are_named_as_recipes_write_them(value: int, said: str) -> None:
    assert short_count(value) == said

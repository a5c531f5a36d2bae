"""Sizes that a run passes, by arithmetic: what is refused, when each is passed, its shape."""

from __future__ import annotations

from pathlib import Path

import pytest

from effcompress import load_recipe
from effcompress.errors import RecipeError
from effcompress.estimate.check import check
from effcompress.estimate.feasibility import sized_model
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

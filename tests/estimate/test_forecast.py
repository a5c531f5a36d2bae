"""Plans and prices, from configurations alone."""

from __future__ import annotations

import itertools
import subprocess
import sys
import time
from pathlib import Path

import pytest

from effcompress import load_recipe
from effcompress.errors import RecipeError
from effcompress.estimate.check import check
from effcompress.estimate.communication import shard_elements
from effcompress.estimate.feasibility import sized_model
from effcompress.estimate.flops import flops_per_token
from effcompress.estimate.forecast import plan
from effcompress.estimate.schedule import play
from tests.clock import computed_by_children
from tests.runner.toys import recipe

ROOT = Path(__file__).parents[2]


def test_the_469m_plan() -> None:
    loaded = load_recipe(ROOT / "recipes" / "efficientllm_469m.yaml")
    started = time.process_time()
    data = plan(loaded).data
    assert time.process_time() - started < 20
    assert data["params"] == 1_711_376_384
    assert data["timeline"][-1]["params"] == pytest.approx(469e6, rel=0.005)
    assert data["final"]["head_dim"] == 64 and data["final"]["num_hidden_layers"] == 24
    assert data["tokens"] == pytest.approx(122.6e9, rel=1e-3)
    # 6 N T of the source model, attention included, bounds the shrinking model's cost from above.
    assert 0.3 * data["flops_if_not_pruned"] < data["flops"] < data["flops_if_not_pruned"]
    assert data["flops_if_not_pruned"] == pytest.approx(6 * 1.711e9 * 122.6e9, rel=0.25)
    update = data["memory_bytes"]["update"]
    assert update["weights"] == update["gradients"] == 4 * 1_711_376_384
    assert update["moments"] == 2 * update["weights"] and update["buckets"] == 0


def test_flops_by_hand(tmp_path: Path) -> None:
    loaded = load_recipe(recipe(tmp_path))
    data = plan(loaded).data
    d, m, v, layers, length = 32, 64, 258, 2, 32
    matrices = layers * (d * 32 * 2 + d * 16 * 2 + 3 * d * m) + v * d
    attention = layers * 2 * 2 * 32 * length / 2
    assert data["flops_if_not_pruned"] == 3 * (2 * matrices + attention) * data["tokens"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("prune.target={params: 1B}", "but the model has only"),
        ("prune.target={params: 300}", "cannot be reached by cutting"),
        ("prune.space=[attention]", "cannot be reached by cutting attention"),
        ("prune.schedule.every=500", "too few mini-groups within the tokens"),
    ],
)
def test_targets_out_of_reach(tmp_path: Path, change: str, message: str) -> None:
    loaded = load_recipe(recipe(tmp_path), [change])
    with pytest.raises(RecipeError, match=message) as error:
        check(loaded)
    assert error.value.where and error.value.fix
    assert len(str(error.value).splitlines()) <= 3


def test_a_target_between_two_sizes_names_both(tmp_path: Path) -> None:
    space = "prune.space=[{name: attention, minimum: 1}]"
    loaded = load_recipe(recipe(tmp_path), [space, "prune.target={keep: 94%}"])
    with pytest.raises(RecipeError, match="between two sizes") as error:
        check(loaded)
    assert "nearest sizes are" in str(error.value.fix)


def test_the_schedule_is_followed_to_the_step(tmp_path: Path) -> None:
    loaded = load_recipe(recipe(tmp_path))
    found = sized_model(loaded)
    assert found is not None
    points = play(loaded.recipe, found).points
    cuts = [p.step for p in points[1:-1]]
    assert cuts == list(range(2, 2 + len(cuts)))  # every step from 256 tokens (step 2) on


def test_an_unreachable_target_exits_2_in_three_seconds(tmp_path: Path) -> None:
    path = recipe(tmp_path)
    command = [sys.executable, "-m", "effcompress", "run", str(path), "--set"]
    command += ["prune.target={params: 300}", "--output", str(tmp_path / "out")]
    started = computed_by_children()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds = computed_by_children() - started
    assert done.returncode == 2 and "always remain" in done.stderr
    assert "Traceback" not in done.stderr and len(done.stderr.splitlines()) <= 3
    assert not (tmp_path / "out").exists()
    assert seconds < 3


def test_training_ends_with_a_whole_step(tmp_path: Path) -> None:
    """2561 tokens in steps of 128: the 21st begins, so it is read to its end."""
    data = plan(load_recipe(recipe(tmp_path, tokens=2561))).data
    assert data["tokens"] == 21 * 128


@pytest.mark.parametrize(("criterion", "first"), [("taylor", 1), ("magnitude", 0)])
def test_nothing_is_cut_before_it_was_measured(tmp_path: Path, criterion: str, first: int) -> None:
    schedule = "{name: continuous, groups: 3}"
    loaded = load_recipe(recipe(tmp_path, schedule=schedule, criterion=criterion))
    found = sized_model(loaded)
    assert found is not None
    assert play(loaded.recipe, found).points[1].step == first


def test_an_embedding_is_only_looked_up(tmp_path: Path) -> None:
    """A separate output matrix multiplies; the table of the inputs does not."""
    both = [plan(load_recipe(recipe(tmp_path, tied=tied))).data for tied in ("true", "false")]
    assert both[1]["params"] == both[0]["params"] + 258 * 32
    assert both[0]["flops_if_not_pruned"] == both[1]["flops_if_not_pruned"]


def test_every_step_costs_what_the_model_is_then(tmp_path: Path) -> None:
    """Until the next cut, a step's operations are those of the sizes behind the last one."""
    loaded = load_recipe(recipe(tmp_path))
    found = sized_model(loaded)
    assert found is not None
    points = play(loaded.recipe, found).points
    spent = sum(
        flops_per_token(found.axes, found.config, here.widths, 32) * (there.tokens - here.tokens)
        for here, there in itertools.pairwise(points)
    )
    assert plan(loaded).data["flops"] == pytest.approx(spent, rel=1e-9)


def test_a_shard_is_as_long_as_the_longest(tmp_path: Path) -> None:
    """A process sends as many rows as the first has: 258 rows on 4 processes are 65 each."""
    found = sized_model(load_recipe(recipe(tmp_path)))
    assert found is not None
    names = {"model.embed_tokens.weight"}
    assert shard_elements(found.axes, {}, 4, names) == 65 * 32
    assert shard_elements(found.axes, {}, 1, names) == 258 * 32

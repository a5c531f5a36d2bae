"""What two processes send each other is what `plan` says, to the byte."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from effcompress import load_recipe
from effcompress.estimate.communication import (
    Message,
    losing,
    per_commit,
    per_cut,
    per_step,
    shard_elements,
)
from effcompress.estimate.feasibility import sized_model
from effcompress.estimate.memory import trained
from effcompress.recipe import LoadedRecipe
from tests import warm
from tests.distributed import counting
from tests.runner.toys import recipe

WIDE = "[{name: attention}, {name: ffn}, hidden]"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EFFCOMPRESS_CACHE", str(tmp_path / "cache"))


def by_collective(said: list[Message]) -> dict[str, int]:
    found: dict[str, int] = {}
    for m in said:
        if m.what != "decision":
            found[m.collective] = found.get(m.collective, 0) + m.bytes
    return found


def counted(
    tmp_path: Path, criterion: str, space: str, sets: Sequence[str] = (), processes: int = 2
) -> tuple[LoadedRecipe, list[dict]]:
    """The recipe, and what ``counting.py`` said of every process."""
    path = recipe(tmp_path, criterion=criterion)
    text = path.read_text()
    start = text.index("  space: ")
    space_line = text[start : text.index("\n", start)]
    text = text.replace(space_line, f"  space: {space}\n  repair: [norm_gain, obs_update]")
    path.write_text(text.replace("commit_every: 5", "commit_every: 1000"))
    output = tmp_path / "said.json"
    how = {"folder": tmp_path, "processes": processes}
    code, said = warm.together(counting.main, path, output, sets, **how)
    assert code == 0, said
    return load_recipe(path, sets), json.loads(output.read_text())


@pytest.mark.parametrize(
    ("criterion", "space"),
    [("taylor", WIDE), ("mask_fisher", WIDE.replace(", hidden", ""))],
)
def test_bytes_of_a_step_a_cut_and_a_commit(tmp_path: Path, criterion: str, space: str) -> None:
    loaded, (said, _) = counted(tmp_path, criterion, space)
    found, prune = sized_model(loaded), loaded.recipe.prune
    assert found is not None and prune is not None
    assert said["step"] == by_collective(per_step(found, loaded.recipe, {}, 2, found.start))
    cut = per_cut(found, prune, {}, said["groups"], said["touched"])
    decided = said["cut"].pop("decision")
    assert said["touched"] and said["cut"] == by_collective(cut)
    guess = next(m.bytes for m in cut if m.what == "decision")
    assert guess / 3 < decided < guess * 3  # an estimate: names and numbers, pickled
    assert said["surgery"] == {}
    assert said["commit"] == {"broadcast": 4 * said["params"] + said["buffers"]}
    every = by_collective(per_cut(found, prune, {}, said["groups"]))
    assert every["all_reduce"] >= said["cut"]["all_reduce"]
    assert [m.bytes for m in per_commit(found, {})] == [4 * found.start]


SHARD = ["distributed.mode=shard"]
PASSES = [*SHARD, "train.batch_size=8", "train.micro_batch_size=1"]
HALF = [*PASSES, "train.precision=bf16", "distributed.gather=bf16"]


@pytest.mark.parametrize(
    ("sets", "processes"),
    [
        (SHARD, 2),
        ([*PASSES, "prune.measure.gram_tokens=9", "train.recompute=true"], 2),
        ([*HALF, "distributed.accumulate=unsharded"], 2),
        ([*PASSES, "distributed.replicas=2", "prune.measure.gram_tokens=9"], 4),
        ([*HALF, "distributed.replicas=2", "distributed.accumulate=unsharded"], 4),
    ],
    ids=["plain", "passes", "bf16", "replicas", "all"],
)
def test_bytes_where_parameters_are_sharded(
    tmp_path: Path, sets: list[str], processes: int
) -> None:
    loaded, every = counted(tmp_path, "taylor", WIDE, sets, processes)
    found, prune = sized_model(loaded), loaded.recipe.prune
    assert found is not None and prune is not None
    shards = loaded.recipe.distributed.shards(processes)
    largest = 4 * max(found.axes.numel(p, found.axes.widths) for p in found.axes.shapes)
    step = by_collective(per_step(found, loaded.recipe, {}, processes, found.start))
    for rank, said in enumerate(every):
        assert said["shared"]
        assert {*said["checkpoint"]} <= {"all_reduce"}  # means of inputs, no weight and no matrix
        assert said["whole model"]["whole"] >= largest  # the counter can tell
        assert said["step"] == step
        said["cut"].pop("decision")
        assert "whole" not in said["cut"]
        touched, of = said["touched"], (found, prune, {}, 1)
        cut = per_cut(*of, touched, shards, processes, rank)
        assert said["cut"] == by_collective(cut), rank
    busiest = max(said["cut"]["all_to_all"] for said in every)
    planned = by_collective(per_cut(*of, touched, shards, processes))
    assert planned["all_to_all"] == busiest
    said = every[0]
    assert said["params"] / shards <= said["own"] < said["params"] / shards * 1.02
    before = shard_elements(found.axes, {}, shards)
    rows = shard_elements(found.axes, {}, shards, losing(found, touched, 0))
    proof = before + said["own"]  # as it was before, and as it is then
    assert said["surgery"].pop("whole") <= largest  # no process ever holds more than one weight
    assert said["surgery"] == {"all_gather": 4 * (3 * rows + proof)}
    planned = by_collective(per_commit(found, {}, touched, shards=shards))["all_gather"]
    assert planned == 4 * (3 * rows + 2 * before)


RECOVER = "{tokens: 512, batch_size: 4, micro_batch_size: 1, "
TAUGHT = {
    "low rank, taught in bf16": "method: lora, lora: {rank: 3, dropout: 0}, distill: {}}",
    "taught in fp32": "method: distill, distill: {teacher: fp32, hidden_weight: 0.1}}",
}


@pytest.mark.parametrize("method", TAUGHT)
def test_bytes_of_a_recovery(tmp_path: Path, method: str) -> None:
    """Updates, and a teacher, are sharded as the model is."""
    path = recipe(tmp_path, "distributed: {mode: shard}\n", criterion="magnitude")
    text = path.read_text().replace("commit_every: 5", "schedule: {name: once, at: 0}")
    start, end = text.index("train:\n"), text.index("evaluate:")
    lines = [line for line in text[:start].splitlines() if "schedule: {name: cont" not in line]
    text = "\n".join([*lines, f"recover: {RECOVER}{TAUGHT[method]}", text[end:]])
    path.write_text(text)
    output = tmp_path / "said.json"
    code, errors = warm.together(counting.recovering, path, output, folder=tmp_path)
    assert code == 0, errors
    said, loaded = json.loads(output.read_text()), load_recipe(path)
    found = sized_model(loaded)
    assert found is not None
    count = trained(found, loaded.recipe, said["widths"])
    assert (count < found.start) and said["teacher"] == found.start
    assert said["own"] < said["teacher"] * 0.51
    planned = per_step(found, loaded.recipe, said["widths"], 2, count)
    assert "teacher's weights" in {m.what for m in planned}
    assert said["step"] == by_collective(planned)

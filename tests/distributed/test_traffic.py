"""What two processes send each other is what `plan` says, to the byte."""

from __future__ import annotations

import json
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


def counted(tmp_path: Path, criterion: str, space: str, more: str = "") -> tuple[Path, dict]:
    """The recipe, and what ``counting.py`` said."""
    path = recipe(tmp_path, more, criterion=criterion)
    text = path.read_text()
    start = text.index("  space: ")
    space_line = text[start : text.index("\n", start)]
    text = text.replace(space_line, f"  space: {space}\n  repair: [norm_gain, obs_update]")
    path.write_text(text.replace("commit_every: 5", "commit_every: 1000"))
    output = tmp_path / "said.json"
    code, said = warm.together(counting.main, path, output, folder=tmp_path)
    assert code == 0, said
    return path, json.loads(output.read_text())


@pytest.mark.parametrize(
    ("criterion", "space"),
    [("taylor", WIDE), ("mask_fisher", WIDE.replace(", hidden", ""))],
)
def test_bytes_of_a_step_a_cut_and_a_commit(tmp_path: Path, criterion: str, space: str) -> None:
    path, said = counted(tmp_path, criterion, space)
    loaded = load_recipe(path)
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


def test_bytes_where_parameters_are_shared_out(tmp_path: Path) -> None:
    path, said = counted(tmp_path, "taylor", WIDE, "distributed: {mode: shard}\n")
    loaded = load_recipe(path)
    found, prune = sized_model(loaded), loaded.recipe.prune
    assert found is not None and prune is not None
    assert said["shared"]
    largest = 4 * max(found.axes.numel(p, found.axes.widths) for p in found.axes.shapes)
    assert {*said["checkpoint"]} <= {"all_reduce"}  # what layers read, never a weight
    assert said["whole model"]["whole"] >= largest  # the counter can tell
    assert said["params"] / 2 <= said["own"] < said["params"] * 0.51
    assert said["step"] == by_collective(per_step(found, loaded.recipe, {}, 2, found.start))
    said["cut"].pop("decision")
    assert 0 < said["cut"].pop("whole") <= largest
    touched = said["touched"]
    assert said["cut"] == by_collective(per_cut(found, prune, {}, 1, touched, shards=2))
    before = shard_elements(found.axes, {}, 2)
    rows = shard_elements(found.axes, {}, 2, losing(found, touched, 0))
    proof = before + said["own"]  # as it was before, and as it is then
    assert said["surgery"].pop("whole") <= largest  # nobody ever holds more than one weight
    assert said["surgery"] == {"all_gather": 4 * (3 * rows + proof)}
    planned = by_collective(per_commit(found, {}, touched, shards=2))["all_gather"]
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

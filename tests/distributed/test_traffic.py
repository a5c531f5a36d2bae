"""What two processes send each other is what `plan` says, to the byte."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from effcompress import load_recipe
from effcompress.estimate.calibration import (
    per_calibration,
    per_refit,
    per_rotation,
    per_sparsify,
)
from effcompress.estimate.communication import (
    Message,
    losing,
    per_commit,
    per_cut,
    per_step,
    shard_elements,
)
from effcompress.estimate.feasibility import sized_model
from effcompress.estimate.memory import layer_sizes, trained
from effcompress.recipe import LoadedRecipe
from tests import warm
from tests.distributed import counting
from tests.distributed.test_two_processes import MIXTURE
from tests.runner.toys import recipe

WIDE = "[{name: attention}, {name: ffn}, hidden]"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EFFCOMPRESS_CACHE", str(tmp_path / "cache"))


def by_collective(said: list[Message]) -> dict[str, int]:
    found: dict[str, int] = {}
    for m in said:
        if m.what not in ("decision", "fitted weights", "rotations"):  # estimates
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


ONCE = ["distributed.mode=shard", "train=null", "prune.schedule={name: once, at: 0}"]
HELD = ["prune.space=[{name: attention}, {name: ffn}]", "prune.repair=[]"]
ROTATE = [
    *(*ONCE, "prune.space=[hidden]", "prune.criterion=null", "prune.selector=null"),
    *("prune.repair=[]", "prune.target={shape: {hidden: 24}}", "export.form=exact"),
    "prune.measure={source: calibration, sequences: 5, refit_sequences: 9}",
]
CASES = {
    "taylor": [
        *(*ONCE, "prune.measure={source: calibration, sequences: 5, refit_sequences: 8}"),
        *("prune.repair=[]", "prune.refit=least_squares"),
        "sparsify={method: wanda, sparsity: 50%, sequences: 3}",
    ],
    "mask_fisher": [
        *(*ONCE, *HELD, "prune.measure={source: calibration, sequences: 5, refit_sequences: 9}"),
        *("prune.refit={name: least_squares, damp: 0.1}", "data.documents={isolate: true}"),
        "sparsify={method: magnitude, sparsity: 50%, skip_layers: [0]}",
    ],
    "wanda": [
        *(*ONCE, *HELD, "prune.measure={source: calibration, sequences: 3, propagate: true}"),
        "sparsify={method: sparsegpt, sparsity: 50%, sequences: 3, skip_layers: [-1]}",
    ],
    "taylor_mixed": [
        *(*ONCE, *HELD, "prune.measure={source: calibration, sequences: 3}"),
        "prune.hessian=fisher_diag",
    ],
    "two_ssp": [
        *(*ONCE[:2], "prune.space=[ffn, attention_block]", "prune.selector=width_first"),
        *("prune.target={shape: {ffn: 48, attention_block: 1}}", "prune.schedule=two_stages"),
        "prune.measure={source: calibration, sequences: 3, ablation_sequences: 2}",
        *("prune.repair=[]", "export.form=exact"),
    ],
    "kept": [*ROTATE, "prune.rotate=slicegpt"],
    "split": [*ROTATE, "prune.rotate={name: slicegpt, tie: split}", "prune.refit=least_squares"],
    "frequency": [  # with the means of what experts return
        *(*ONCE, MIXTURE, "prune.space=[expert]", "prune.target={shape: {expert: 3}}"),
        *("prune.repair=[novice]", "export.form=exact"),
        "prune.measure={source: calibration, sequences: 3}",
    ],
}


def test_bytes_and_peaks_where_calibration_text_is_read(tmp_path: Path) -> None:
    """What a sharded model gathers for scores, a refit and zeros is what `plan` says; and where
    layers are taken one at a time, never more than one of a model is whole.
    """
    path = recipe(tmp_path)
    cases = {name: [f"prune.criterion={name}", *sets] for name, sets in CASES.items()}
    cases |= {name: CASES[name] for name in ("kept", "split")}  # rotations, without a criterion
    output = tmp_path / "said.json"
    code, said = warm.together(counting.calibrating, path, cases, output, folder=tmp_path)
    assert code == 0, said
    for name, told in json.loads(output.read_text()).items():
        loaded = load_recipe(path, cases[name])
        found, run = sized_model(loaded), loaded.recipe
        assert found is not None and run.prune is not None
        widths = told.pop("widths")
        axes = found.axes if found.source is None else found.source.axes
        (outside, large), (_, small) = (layer_sizes(axes, w) for w in ({}, widths))
        layer, weights = 4 * max(large), found.axes.shapes
        largest = 4 * max(found.axes.numel(p, found.axes.widths) for p in weights)
        # Untied, the output matrix is beside the embedding.
        head = found.axes.numel("lm_head.weight", found.axes.widths) if name == "split" else 0
        most = {
            **{"calibration": largest, "propagated": 4 * outside + layer},
            # When the source model begins, the first layer of the other has its turn.
            "refit": 4 * outside + layer + 4 * max(small),
            "rotation": 4 * outside + layer + 4 * head,
            "zeros": 4 * max(small) if name == "mask_fisher" else 4 * outside + layer,
        }
        planned: dict[str, list[Message]]
        if run.prune.rotate:
            planned = {"rotation": per_rotation(found, run, 2)}
        else:
            every, turns = per_calibration(found, run, {}, 2), "layers, one at a time"
            planned = {
                "calibration": [m for m in every if m.what != turns],
                "propagated": [m for m in every if m.what == turns],
            }
        if run.prune.refit and not run.prune.rotate:
            planned["refit"] = per_refit(found, run, widths, 2)
        if run.sparsify:
            planned["zeros"] = per_sparsify(found, run, widths, 2)
        assert told.keys() == planned.keys()
        for what, messages in planned.items():
            whole, sent = told[what].pop("whole", 0), told[what]
            assert whole <= most[what], (name, what)
            assert whole or what == "calibration" or not messages
            expected = by_collective(messages)
            few = sent.pop("all_reduce", 0) - expected.pop("all_reduce", 0)
            assert 0 <= few < 400, (name, what)  # numbers of tokens, sums of losses
            assert sent == expected, (name, what)

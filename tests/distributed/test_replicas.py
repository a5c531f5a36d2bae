"""Replicas of a sharded model (HSDP), two times two processes: the run that one process makes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from effcompress import load_recipe, run
from effcompress.checkpoint.save import Stored
from effcompress.errors import RecipeError
from effcompress.estimate.communication import unequal
from effcompress.estimate.forecast import Launch, plan
from effcompress.spec import DistributedSpec
from tests.distributed.test_two_processes import (
    MIXTURE,
    OBS,
    ONCE,
    assert_same_weights,
    logits,
    losses,
    together,
)
from tests.runner.toys import events, plans, recipe, repeatable, weight_files

pytestmark = pytest.mark.timeout(900)  # a machine may be busy with more than this

SHARD = ["distributed.mode=shard"]
REPLICAS = [*SHARD, "distributed.replicas=2"]
PASSES = ["train.batch_size=8", "train.micro_batch_size=1"]
"""Two micro-batches on each of four processes."""


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EFFCOMPRESS_CACHE", str(tmp_path_factory.mktemp("cache")))
    torch.set_num_threads(1)


def test_two_times_two_processes_do_what_one_does(tmp_path: Path) -> None:
    """Variant B with accumulation; resumed by four bit for bit, by two and by one within
    rounding. Gradients may stay unsharded between micro-batches.
    """
    path = recipe(tmp_path, tokens=5120)
    common = [*OBS, *PASSES, "save={every: 5, keep: 50, keep_after: 50}"]
    run(load_recipe(path, common), output=tmp_path / "one")
    four, whole = [*common, *REPLICAS], tmp_path / "four"
    unsharded = {"set": [*four, "distributed.accumulate=unsharded"], "bare": True}
    jobs = [
        {"recipe": path, "output": whole, "set": four},
        {"recipe": path, "output": tmp_path / "unsharded", **unsharded},
    ]
    code, said = together(jobs, tmp_path, processes=4)
    assert code == 0, said
    assert len(losses(whole)) == 20 and len(events(whole, "commit")) > 1
    kinds = {key.split(".")[0] for line in plans(whole) for key in line["plan"]}
    assert kinds == {"attention", "ffn", "hidden"}
    for name in ("four", "unsharded"):
        assert plans(tmp_path / name) == plans(tmp_path / "one"), name
        assert losses(tmp_path / name) == pytest.approx(losses(tmp_path / "one"), abs=1e-4), name
        lowest = [[e["saliency"] for e in events(tmp_path / n, "cut")] for n in ("one", name)]
        for alone, shared in zip(*lowest, strict=True):
            assert shared == pytest.approx(alone, rel=1e-2), name
        norms = [[e["grad_norm"] for e in events(tmp_path / n, "step")] for n in ("one", name)]
        assert norms[1] == pytest.approx(norms[0], rel=1e-3)
    torch.testing.assert_close(logits(tmp_path / "one"), logits(whole), atol=1e-3, rtol=0)
    held = whole / "checkpoints/step-00000010"
    files = {file.name: set(Stored([file])) for file in held.glob("*.safetensors")}
    weights = {name: {n for n in keys if n.startswith("model/")} for name, keys in files.items()}
    assert sorted(name for name, keys in weights.items() if keys) == [
        "rows-00000-of-00004.safetensors",
        "rows-00001-of-00004.safetensors",
    ]
    grams = [n for keys in files.values() for n in keys if n.startswith("inputs/gram/")]
    assert len(grams) == len({*grams}) == 8  # four for each layer, each in one file
    for name in ("by_four", "by_two", "by_one"):
        folder = tmp_path / name
        folder.mkdir()
        for file in ("recipe.yaml", "recipe.resolved.yaml", "metrics.jsonl", "plans.jsonl"):
            shutil.copy(whole / file, folder / file)
        shutil.copytree(held, folder / "checkpoints/step-00000010")
    for name, sets, processes in (("by_four", four, 4), ("by_two", [*common, *SHARD], 2)):
        job = {"recipe": path, "output": tmp_path / name, "set": sets, "resume": True}
        code, said = together([job], tmp_path, processes=processes)
        assert code == 0, said
    run(load_recipe(path, [*common, *SHARD]), output=tmp_path / "by_one", resume=True)
    for file in (*weight_files(whole), "plans.jsonl", "config.json"):
        assert (whole / file).read_bytes() == (tmp_path / "by_four" / file).read_bytes(), file
    for kind in ("step", "cut", "commit", "evaluation"):
        assert repeatable(events(whole, kind)) == repeatable(events(tmp_path / "by_four", kind))
    for name in ("by_two", "by_one"):
        assert plans(whole) == plans(tmp_path / name), name
        assert losses(tmp_path / name) == pytest.approx(losses(whole), abs=1e-4), name


def test_layers_gathered_in_bf16(tmp_path: Path) -> None:
    """Not less exact than autocast alone; evaluations and commits gather fp32."""
    path = recipe(tmp_path, tokens=1280, schedule="{name: continuous, every: 1, groups: 2}")
    common = ["prune.commit_every=4", "train.precision=bf16", "export.form=exact"]
    half = [*common, *SHARD, "distributed.gather=bf16"]
    run(load_recipe(path, [*common, "train.precision=fp32"]), output=tmp_path / "fp32")
    run(load_recipe(path, common), output=tmp_path / "autocast")
    jobs = [{"recipe": path, "output": tmp_path / "half", "set": half}]
    code, said = together(jobs, tmp_path)
    assert code == 0, said
    assert len(events(tmp_path / "half", "commit")) > 1
    exact = losses(tmp_path / "fp32")
    assert losses(tmp_path / "half") == pytest.approx(losses(tmp_path / "autocast"), abs=5e-3)
    assert losses(tmp_path / "half") != pytest.approx(exact, abs=1e-5)
    before = [events(tmp_path / name, "evaluation")[0]["domains"] for name in ("fp32", "half")]
    for domain, found in before[0].items():
        assert before[1][domain]["loss"] == pytest.approx(found["loss"], abs=1e-5)


@pytest.mark.parametrize(
    ("replicas", "processes", "says", "fix"),
    [
        (2, 6, "", ""),
        (3, 8, "8 processes cannot be 3 replicas", "`replicas: 2`, or start 9 processes"),
        (4, 4, "4 processes cannot be 4 replicas", "`replicas: 2`, or start 8 processes"),
        (2, 3, "3 processes cannot be 2 replicas", "`replicas: 1`, or start 4 processes"),
    ],
)
def test_replicas_are_of_equal_size(replicas: int, processes: int, says: str, fix: str) -> None:
    found = unequal(DistributedSpec(mode="shard", replicas=replicas), processes)
    assert (found is None) == (not says)
    assert found is None or (found[0].startswith(says) and fix in found[1])


def test_the_launcher_must_start_a_multiple(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = recipe(tmp_path)
    for name, value in {"RANK": "0", "WORLD_SIZE": "4", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    sets = [*SHARD, "distributed.replicas=3"]
    with pytest.raises(RecipeError, match="4 processes cannot be 3 replicas") as caught:
        run(load_recipe(path, sets), output=tmp_path / "out")
    assert "replicas: 2" in (caught.value.fix or "")
    assert not (tmp_path / "out").exists()
    with pytest.raises(RecipeError, match="8 processes cannot be 3 replicas"):
        plan(load_recipe(path, [*sets, "train.batch_size=8"]), Launch(8))


def test_plan_counts_what_they_hold(tmp_path: Path) -> None:
    path = recipe(tmp_path, tokens=7680)
    base = [*OBS, *PASSES, *SHARD]
    alone, sharded, replicas, unsharded, half = (
        plan(load_recipe(path, sets), Launch(processes)).data["memory_bytes"]
        for sets, processes in (
            (base, 1),
            (base, 4),
            ([*base, "distributed.replicas=2"], 4),
            ([*base, "distributed.accumulate=unsharded"], 4),
            ([*base, "train.precision=bf16", "distributed.gather=bf16"], 4),
        )
    )
    assert replicas["update"]["weights"] == 2 * sharded["update"]["weights"]
    means = 4 * 2 * (3 * 32 + 64)  # of each layer: four inputs
    matrices = alone["update"]["grams"] - means
    largest = 4 * 64**2
    for found in (sharded, replicas):  # over all processes, whatever the replicas
        mine = found["update"]["grams"] - means
        assert matrices / 4 <= mine <= matrices / 4 + largest
    kept = [found["backward"]["gradients"] for found in (sharded, unsharded)]
    assert kept[1] >= 4 * kept[0] > 0
    assert half["backward"]["gathered"] < sharded["backward"]["gathered"]
    assert half["evaluation"] == sharded["evaluation"]


INNER = "prune.space=[{name: attention}, {name: ffn}]"
ALONE = [*ONCE, "train=null", "prune.repair=[]", "export.form=exact"]
FOURS = {
    "refit": [
        *(*ONCE, "prune.criterion=taylor", "prune.refit=least_squares", "train.tokens=640"),
        *("prune.measure.refit_sequences=10", "export.form=exact"),
    ],
    # Three processes are one short; two have none.
    "masks": [*ALONE, "prune.criterion=mask_fisher", INNER, "prune.measure.sequences=5"],
    "few": [
        *(*ALONE, "prune.criterion=block_influence", "prune.space=[layer]"),
        *("prune.target={shape: {layer: 1}}", "prune.measure.sequences=2"),
    ],
    "inputs": [
        *(*ALONE, "prune.criterion=wanda", INNER, "prune.measure.propagate=true"),
        "sparsify={method: sparsegpt, sparsity: 50%, sequences: 3}",
    ],
    "experts": [
        *(*ALONE, MIXTURE, "prune.space=[expert]", "prune.target={shape: {expert: 3}}"),
        *("prune.criterion=ean", "prune.repair=[novice]", "prune.measure.sequences=5"),
    ],
}


def test_calibration_by_four(tmp_path: Path) -> None:
    """Sums over sequences are over all processes, sums over rows within a replica. As one process:
    two replicas of two shards, and four shards.
    """
    path, jobs = recipe(tmp_path), []
    for name, sets in FOURS.items():
        run(load_recipe(path, sets), output=tmp_path / f"one_{name}")
        for mode, how in {"replicas": REPLICAS, "shards": SHARD}.items():
            job = {"recipe": path, "output": tmp_path / f"{mode}_{name}", "set": [*sets, *how]}
            if mode == "replicas" or name in ("masks", "experts"):
                jobs.append({**job, "bare": name != "refit"})
    code, said = together(jobs, tmp_path, processes=4)
    assert code == 0, said
    for job in jobs:
        four = job["output"]
        one = tmp_path / f"one_{four.name.partition('_')[2]}"
        assert plans(one) == plans(four) != [], four.name
        assert losses(four) == pytest.approx(losses(one), abs=1e-4), four.name
        assert_same_weights(one, four)

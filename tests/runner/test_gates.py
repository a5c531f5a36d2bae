"""Runs that learn masks: to a shape and to a size, resumed, recomputed, on two processes."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from effcompress import load_recipe, run, train
from effcompress.errors import CoverageError, RecipeError
from effcompress.estimate.feasibility import require_reachable
from effcompress.runner import run as story
from tests import warm
from tests.distributed import worker
from tests.runner.toys import events, plans, recipe, repeatable

SHAPE = {"hidden": 24, "attention": 1, "ffn": 40, "layer": 3}
SHEARED = (
    "model.shape.num_hidden_layers=4",
    "prune.criterion=learned_gates",
    "prune.schedule=at_end",
    "prune.gates={gate: hard_concrete, constraint: lagrangian}",
    "prune.space=[hidden, layer, attention, ffn]",
    f"prune.target={{shape: {json.dumps(SHAPE)}}}",
    "train.tokens=null",
    "train.stages={warmup: 256, pruning: 1536, continued: 512}",
    "train.micro_batch_size=2",
)
COFI = (
    "model.shape.num_hidden_layers=4",
    "prune.criterion=common_offset",
    "prune.selector={name: least_salient, normalise: raw}",
    "prune.schedule=at_end",
    "prune.gates={gate: hard_concrete, constraint: lagrangian, starts: {ffn: 0}}",
    "prune.space=[{name: attention, scope: per_layer}, attention_block, "
    "{name: ffn, scope: per_layer}, mlp_block]",
    "prune.target={params: 32k}",
    "train.tokens=1536",
    "export.form=exact",
)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gates")
    run(load_recipe(recipe(folder), SHEARED), output=folder / "out")
    return folder


def test_the_shape_is_the_one_asked_for(done: Path) -> None:
    out = done / "out"
    model = AutoModelForCausalLM.from_pretrained(out)
    config = model.config
    assert (config.hidden_size, config.num_key_value_heads) == (24, 1)
    assert (config.intermediate_size, config.num_hidden_layers) == (40, 3)
    (end,) = events(out, "end")
    assert sum(p.numel() for p in model.parameters()) == end["params"]


def test_the_record_says_how_the_gates_went(done: Path) -> None:
    out = done / "out"
    learned = events(out, "gates")
    assert [e["step"] for e in learned] == list(range(3, 15)), "gates in the pruning stage alone"
    assert set(learned[0]["families"]) == set(SHAPE)
    asked = {"hidden": 1 - 24 / 32, "attention": 0.5, "ffn": 1 - 40 / 64, "layer": 0.25}
    for name, target in asked.items():
        course = [e["families"][name]["target"] for e in learned]
        # From 0 over a fifth of the stage (2.4 of its 12 steps), then constant.
        assert course == pytest.approx([target * min(1, k / 2.4) for k in range(12)])
    (absorbed,) = events(out, "absorbed")
    assert absorbed["step"] == 14
    assert absorbed["loss_masked"] == pytest.approx(absorbed["loss_cut"], abs=1e-5)
    assert absorbed["max_logit_difference"] < 1e-5
    assert absorbed["loss_open"] != pytest.approx(absorbed["loss_masked"], abs=1e-3)
    assert 0 <= absorbed["low"] <= absorbed["kept"]
    report = (out / "report.html").read_text()
    for title in ("Learned gates", "Multipliers", "Undecided gates", "Gates kept below 0.1"):
        assert title in report


def test_what_goes_has_the_lowest_logits(tmp_path: Path) -> None:
    """Of the gates in the last checkpoint in front of the cut; ties aside."""
    sets = [*SHEARED, "save.every=1", "save.keep=100", "save.keep_after=100"]
    run(load_recipe(recipe(tmp_path), sets), output=tmp_path / "out")
    from safetensors.torch import load_file

    last = tmp_path / "out/checkpoints/step-00000013"
    tensors: dict[str, torch.Tensor] = {}
    for file in last.glob("*.safetensors"):
        tensors |= load_file(file)
    logit_N = tensors["gates/logit"]
    (cut,) = plans(tmp_path / "out")
    hidden = logit_N[:32]
    gone = cut["plan"]["hidden"]
    kept = [c for c in range(32) if c not in gone]
    # One step lies between; it moves a logit by 1 at most.
    assert float(hidden[gone].max()) <= float(hidden[kept].min()) + 2.0
    assert len(gone) == 8


def test_a_size_is_met_by_a_common_offset(tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(load_recipe(recipe(tmp_path), COFI), output=out)
    (end,) = events(out, "end")
    assert end["params"] == pytest.approx(32_000, rel=0.005)
    learned = events(out, "gates")
    assert set(learned[0]["families"]) == {"size"}
    # FFN gates begin at P = .8318, so the first step is sparse already.
    assert 0.05 < learned[0]["families"]["size"]["expected"] < 0.2
    (line,) = (out / "plans.jsonl").read_text().splitlines()
    scores = json.loads(line)["scores"]
    last = [max(taken) for name, taken in scores.items() if name.startswith("ffn")]
    # One offset for all rows of many gates: where it stopped is close to the same in each.
    assert len(last) == 3 and max(last) - min(last) < 0.2


MODES = ("replicate", "shard")
LOSSES = (("step", "loss"), ("absorbed", "loss_masked"), ("absorbed", "loss_cut"))


@pytest.mark.timeout(900)  # a machine may be busy with more than this
def test_any_number_of_processes_learns_the_same_masks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of equal micro-batches each draws its own gates, wherever it is computed. With weights of
    domains that follow losses under these gates (arXiv:2310.06694, both parts).
    """
    monkeypatch.setattr(story, "export_and_prove", lambda *_: None)
    torch.set_num_threads(1)
    path = recipe(tmp_path)
    dynamic = "data.mixture={name: dynamic, every: 5, eta: 2, floor: 1%, sequences: 2}"
    cases = {"sheared": [*SHEARED, dynamic], "cofi": [*COFI, "train.micro_batch_size=2"]}
    for name, sets in cases.items():
        run(load_recipe(path, sets), output=tmp_path / f"one_{name}")
    jobs = [
        {
            **{"recipe": path, "output": tmp_path / f"{mode}_{name}", "bare": True},
            "set": [*sets, f"distributed.mode={mode}"],
        }
        for name, sets in cases.items()
        for mode in MODES
    ]
    listed = tmp_path / "jobs.json"
    listed.write_text(json.dumps(jobs, default=str))
    code, said = warm.together(worker.main, listed, folder=tmp_path, processes=2)
    assert code == 0, said
    for name, mode in itertools.product(cases, MODES):
        one, two = tmp_path / f"one_{name}", tmp_path / f"{mode}_{name}"
        assert plans(one) == plans(two), (name, mode)
        assert events(one, "end")[0]["widths"] == events(two, "end")[0]["widths"]
        for alone, shared in zip(events(one, "gates"), events(two, "gates"), strict=True):
            for family, found in alone["families"].items():
                assert shared["families"][family] == pytest.approx(found, abs=1e-4), (name, mode)
        for kind, value in LOSSES:
            alone, shared = ([e[value] for e in events(out, kind)] for out in (one, two))
            assert shared == pytest.approx(alone, abs=1e-4), (name, mode, kind)
        mixed = [[e["weights"] for e in events(out, "mixture")] for out in (one, two)]
        assert len(mixed[0]) == len(mixed[1]) == (4 if name == "sheared" else 0)
        for alone, shared in zip(*mixed, strict=True):
            assert shared == pytest.approx(alone, abs=1e-4), (name, mode)


def test_recomputed_layers_see_the_same_gates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(story, "export_and_prove", lambda *_: None)
    path = recipe(tmp_path)
    for name, sets in {"plain": [], "again": ["train.recompute=true"]}.items():
        run(load_recipe(path, [*SHEARED, *sets]), output=tmp_path / name)
    one, two = tmp_path / "plain", tmp_path / "again"
    assert (one / "plans.jsonl").read_bytes() == (two / "plans.jsonl").read_bytes()
    for kind in ("step", "gates", "absorbed", "evaluation"):
        assert repeatable(events(one, kind)) == repeatable(events(two, kind)), kind


@pytest.mark.parametrize("behind", [4, 8, 16])
def test_resumed_anywhere_it_is_the_same(tmp_path: Path, behind: int) -> None:
    """Among the masked steps, and behind the cut."""
    first = tmp_path / "first"
    sets = [*SHEARED, "save.every=4", "save.keep=9", "save.keep_after=9"]
    run(load_recipe(recipe(tmp_path), sets), output=first)
    out = tmp_path / "out"
    shutil.copytree(first, out)
    for folder in (out / "checkpoints").glob("step-*"):
        if int(folder.name.removeprefix("step-")) > behind:
            shutil.rmtree(folder)
    for name in ("config.json", "model.safetensors"):
        (out / name).unlink()
    run(load_recipe(recipe(tmp_path), sets), output=out, resume=True)
    assert (out / "model.safetensors").read_bytes() == (first / "model.safetensors").read_bytes()
    for kind in ("step", "gates", "absorbed", "cut"):
        assert repeatable(events(out, kind)) == repeatable(events(first, kind)), kind


def test_a_continued_stage_of_its_own(tmp_path: Path) -> None:
    """Fresh moments, twice the batch, its own warm-up: the rate begins near 0 again."""
    own = "{batch_size: 8, learning_rate: {peak: 2e-3, warmup: 50%, schedule: cosine}}"
    sets = [*SHEARED, f"train.continued={own}"]
    sets[sets.index("train.stages={warmup: 256, pruning: 1536, continued: 512}")] = (
        "train.stages={warmup: 256, pruning: 1537, continued: 1024}"
    )
    out = tmp_path / "out"
    run(load_recipe(recipe(tmp_path), sets), output=out)
    steps = events(out, "step")
    # 1,793 tokens are 15 whole steps of 128; then 4 of 256.
    assert [e["tokens"] for e in steps][-5:] == [1920, 2176, 2432, 2688, 2944]
    assert len(steps) == 19
    rates = [e["learning_rate"] for e in steps][-4:]
    assert rates[0] == pytest.approx(1e-3) and rates[1] == pytest.approx(2e-3)
    assert rates[3] < rates[2] <= 2e-3


def test_the_penalty_follows_the_rising_target(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the first step the target is 0, so the linear multiplier rises; later it falls."""
    monkeypatch.setattr(story, "export_and_prove", lambda *_: None)
    run(load_recipe(recipe(tmp_path), SHEARED), output=tmp_path / "out")
    linear = [e["families"]["ffn"]["linear"] for e in events(tmp_path / "out", "gates")]
    assert linear[0] == 0.0 < linear[1] and linear[-1] < 0.0


def test_moments_begin_anew_with_a_training_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(story, "export_and_prove", lambda *_: None)
    steps: list[float] = []
    update = train.update

    def noted(module: Any, optimizer: Any, *more: Any) -> float:
        norm = update(module, optimizer, *more)
        steps.append(max(float(held["step"]) for held in optimizer.state.values()))
        return norm

    monkeypatch.setattr(train, "update", noted)
    sets = [*SHEARED, "train.continued={batch_size: 4}"]
    run(load_recipe(recipe(tmp_path), sets), output=tmp_path / "out")
    assert steps == [*range(1, 15), 1, 2, 3, 4]


REFUSED = {
    "learned_gates' ranks by learned gates, and there are none": ["prune.gates=null"],
    "'taylor' does not rank by learned gates": ["prune.criterion=taylor"],
    "no repair is needed": ["prune.repair=[norm_gain]"],
    "does not cut everything at once": ["prune.schedule={name: continuous, every: 1}"],
    "'once' does not cut everything at once": [
        "prune.schedule={name: once, at: 0}",
        "train.stages={pruning: 1536, continued: 512}",
    ],
    "there is no continued stage": [
        "train.stages=null",
        "train.tokens=2k",
        "train.continued={batch_size: 8}",
    ],
    "starts names 'heads'": ["prune.gates.starts={heads: 1}"],
    "of 'ffn' are to go": ["prune.target.shape.ffn=2"],
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_cannot_be_learned_is_refused_before_anything_is_loaded(
    tmp_path: Path, words: str
) -> None:
    with pytest.raises((RecipeError, CoverageError)) as caught:
        require_reachable(load_recipe(recipe(tmp_path), [*SHEARED, *REFUSED[words]]))
    assert words in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 3

"""Recovery after a cut at once: all weights, low-rank updates, a teacher."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from effcompress import load_recipe, run
from effcompress.errors import EffcompressError, RecipeError, RunError
from effcompress.estimate.forecast import plan
from effcompress.runner import recovery, source_model
from effcompress.runner import run as story
from tests.runner.toys import events, recipe

RECOVER = """\
recover: {{method: {method}, tokens: 1536, batch_size: 4, learning_rate: {{peak: 3e-3}}{more}}}
"""
METHODS = {
    "full": "",
    "lora": ", lora: {rank: 4, alpha: 8, dropout: 0.1}",
    "distill": ", distill: {temperature: 2, text_weight: 0.5, hidden_weight: 0.1, teacher: fp32}",
    "lora, taught": ", distill: {}",
}


def written(folder: Path, method: str, more: str = "") -> Path:
    folder.mkdir(exist_ok=True)
    path = recipe(
        folder,
        schedule="{name: once, at: 0}",
        measure="{source: calibration, sequences: 4}",
    )
    text = path.read_text()
    before, _, after = text.partition("train:\n")
    rest = after[after.index("evaluate:") :]
    more = METHODS[method] + more
    path.write_text(before + RECOVER.format(method=method.split(",")[0], more=more) + rest)
    return path


@pytest.mark.parametrize("method", METHODS)
def test_it_recovers_and_goes_on_where_it_stopped(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tmp_path / "whole"
    path = written(tmp_path, method)
    run(load_recipe(path), output=whole)
    trained = [e.get("objective", e["loss"]) for e in events(whole, "step")]
    assert trained[-1] < trained[0] - (0.2 * trained[0] if "taught" in method else 0.01)
    params = {e["params"] for e in events(whole, "step")}
    assert len(params) == 1 and params == {events(whole, "end")[-1]["params"]}
    assert ("objective" in events(whole, "step")[0]) == (method in ("distill", "lora, taught"))
    names = load_file(whole / "model.safetensors")
    assert not [name for name in names if "lora" in name or "base_layer" in name]

    stopped, step = tmp_path / "stopped", story.train_step

    def dies(state: object, *rest: object) -> bool:
        if state.step == 6:  # type: ignore[attr-defined]
            raise RunError("the power fails")
        return step(state, *rest)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(story, "train_step", dies)
        with pytest.raises(RunError, match="power"):
            run(load_recipe(path), output=stopped)
    run(load_recipe(path), output=stopped, resume=True)
    again = load_file(stopped / "model.safetensors")
    assert all(torch.equal(value, again[name]) for name, value in names.items())


def test_low_rank_updates_change_matrices_in_layers_alone(tmp_path: Path) -> None:
    from effcompress.checkpoint import newest

    path = written(tmp_path, "lora")
    run(load_recipe(path), output=tmp_path / "out")
    merged = load_file(tmp_path / "out" / "model.safetensors")
    run(load_recipe(path, ["recover.learning_rate.peak=1e-30"]), output=tmp_path / "still")
    before = load_file(tmp_path / "still" / "model.safetensors")
    changed = {name for name in before if not torch.equal(before[name], merged[name])}
    assert changed == {n for n in before if "layers" in n and before[n].dim() == 2}
    for name in changed:
        rank = torch.linalg.matrix_rank((merged[name] - before[name]).double(), rtol=1e-4)
        assert int(rank) <= 4, name
    assert newest(tmp_path / "out" / "checkpoints", print) is not None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["prune.schedule={name: continuous}"], "cuts later"),
        (["train={tokens: 1k}"], "train and recover"),
        (["recover.method=full"], "means nothing to method full"),
        (["recover.micro_batch_size=3"], "does not divide"),
        (["recover.learning_rate={warmup: 60%, decay: 60%}"], "warmup and decay together"),
    ],
)
def test_contradictions(changes: list[str], said: str, tmp_path: Path) -> None:
    path = written(tmp_path, "lora")
    with pytest.raises(RecipeError, match=said):
        load_recipe(path, changes)


def test_a_missing_peft_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(EffcompressError, match=r"recover\.method: peft is not installed"):
        run(load_recipe(written(tmp_path, "lora")), output=tmp_path / "out")


def test_the_teacher_is_told_which_of_its_layers_are_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its numbers, not those that the student's layers have now; and loading it draws no numbers
    from the run's generator.
    """
    states: list[torch.Tensor] = []
    told: list[tuple[int, ...]] = []
    load, distil = source_model.read_source, recovery.Distillation

    def loaded(*given: object, **more: object) -> object:
        states.append(torch.get_rng_state())
        torch.rand(7)
        return load(*given, **more)  # type: ignore[arg-type]

    def taught(teacher: object, spec: object, layers: tuple[int, ...], channels: object) -> object:
        states.append(torch.get_rng_state())
        told.append(layers)
        return distil(teacher, spec, layers, channels)  # type: ignore[arg-type]

    monkeypatch.setattr(source_model, "read_source", loaded)
    monkeypatch.setattr(recovery, "Distillation", taught)
    changes = [
        "model.shape.num_hidden_layers=4",
        "prune.space=[layer]",
        "prune.target={keep: null, shape: {layer: 3}}",
        "prune.criterion={name: depth_order, keep: last}",
        "recover.tokens=128",
    ]
    run(load_recipe(written(tmp_path, "distill"), changes), output=tmp_path / "out")
    assert told == [(1, 2, 3)]
    assert torch.equal(*states)


def test_a_teacher_while_layers_shrink(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All steps are distilled, saliency with them, and a stopped run goes on as if it had not."""
    path = recipe(tmp_path, tokens=1536, schedule="{name: continuous, every: 2, groups: 6}")
    sets = ["prune.space=[attention, ffn]", "train.distill={text_weight: 0.5, teacher: fp32}"]
    whole, plain, stopped = (tmp_path / name for name in ("whole", "plain", "stopped"))
    run(load_recipe(path, sets), output=whole)
    run(load_recipe(path, sets[:1]), output=plain)
    steps, alone = events(whole, "step"), events(plain, "step")
    assert all("objective" in e for e in steps) and not any("objective" in e for e in alone)
    # KL to itself is 0 at first, so half of the text's loss is left.
    assert steps[0]["objective"] == pytest.approx(0.5 * steps[0]["loss"], rel=1e-4)
    assert steps[0]["flops"] == pytest.approx(4 / 3 * alone[0]["flops"])
    cuts = events(whole, "cut")
    assert len(cuts) > 2 and cuts[0]["saliency"] != events(plain, "cut")[0]["saliency"]
    step = story.train_step

    def dies(state: object, *rest: object) -> bool:
        if state.step == 6:  # type: ignore[attr-defined]
            raise RunError("the power fails")
        return step(state, *rest)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(story, "train_step", dies)
        with pytest.raises(RunError, match="power"):
            run(load_recipe(path, sets), output=stopped)
    run(load_recipe(path, sets), output=stopped, resume=True)
    again = load_file(stopped / "model.safetensors")
    assert all(torch.equal(v, again[n]) for n, v in load_file(whole / "model.safetensors").items())


def test_the_forecast_counts_the_teacher(tmp_path: Path) -> None:
    path = recipe(tmp_path, tokens=1536)
    alone, taught = (plan(load_recipe(path, s)).data for s in ([], ["train.distill={}"]))
    forward = alone["flops_if_not_pruned"] / 3
    assert taught["flops_of_teacher"] == pytest.approx(forward) and "flops_of_teacher" not in alone
    assert taught["h100_hours"] / alone["h100_hours"] == pytest.approx(1 + forward / alone["flops"])
    memory = [d["memory_bytes"]["backward"]["teacher"] for d in (alone, taught)]
    assert memory == [0, 2 * alone["params"]]

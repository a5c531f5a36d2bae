"""Checkpoints that are written while training goes on."""

from __future__ import annotations

import json
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from effcompress import fault, load_recipe, run, train
from effcompress.checkpoint import newest
from effcompress.commands.export import export
from effcompress.errors import RecipeError, RunError
from effcompress.estimate.forecast import plan
from effcompress.registry import REGISTRY
from effcompress.runner import checkpoints as keep
from effcompress.runner import run as story
from effcompress.runner import source_model
from effcompress.runner.folder import RESOLVED
from effcompress.runner.source_model import named_alike
from tests.runner.toys import events, recipe

SETS = ["save.background=true", "save.every=2"]


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Writing that waits until it may."""
    may, real = threading.Event(), keep.checkpoint.begin

    def begin(*given: Any) -> Any:
        writing = real(*given)

        def written() -> Any:
            if threading.current_thread() is not threading.main_thread():
                assert may.wait(60)
            return writing.written()

        return keep.replace(writing, written=written)

    monkeypatch.setattr(keep.checkpoint, "begin", begin)
    return may


def test_training_goes_on_meanwhile(
    tmp_path: Path, slow: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(story, "export_and_prove", lambda *_: None)
    _at_step(monkeypatch, 4, slow.set)
    run(load_recipe(recipe(tmp_path), SETS), output=tmp_path / "run")
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    order = [e["event"] for e in map(json.loads, lines) if e["event"] in ("step", "checkpoint")]
    assert order.index("checkpoint") > 3, "the first one was waited for"
    steps = [e["step"] for e in events(tmp_path / "run", "checkpoint")]
    assert steps == sorted(steps) and steps[0] == 2
    saved = newest(tmp_path / "run" / "checkpoints", _no_warning)
    assert saved is not None and saved.values["tokens"] == 2560


def test_a_run_that_fails_leaves_the_one_under_way(
    tmp_path: Path, slow: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails() -> None:
        slow.set()
        raise RunError("on purpose")

    _at_step(monkeypatch, 4, fails)
    with pytest.raises(RunError, match="on purpose"):
        run(load_recipe(recipe(tmp_path), SETS), output=tmp_path / "run")
    saved = newest(tmp_path / "run" / "checkpoints", _no_warning)
    assert saved is not None and saved.values["step"] == 2


def test_what_cannot_be_written_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EFFCOMPRESS_FAULT", "save.tensors:2:disk_full")
    monkeypatch.setattr(fault, "_seen", Counter())
    path = recipe(tmp_path)
    with pytest.raises(RunError, match=r"checkpoint of step 4 cannot be written.*No space"):
        run(load_recipe(path, SETS), output=tmp_path / "run")
    assert [p.name for p in (tmp_path / "run" / "checkpoints").glob("*-*")] == ["step-00000002"]
    monkeypatch.delenv("EFFCOMPRESS_FAULT")
    run(load_recipe(path, SETS[1:]), output=tmp_path / "run", resume=True)
    assert events(tmp_path / "run", "end")[-1]["status"] == "success"


def test_the_copy_is_in_the_plan(tmp_path: Path) -> None:
    path = recipe(tmp_path)
    plain, aside = (plan(load_recipe(path, s)).data["memory_bytes"] for s in ([], SETS))
    for phase in ("backward", "update", "cut", "checkpoint"):
        held = plain[phase]
        wanted = held["weights"] + held["moments"] + held["grams"] + held["saliency"]
        assert aside[phase]["saving"] == wanted > 0, phase
    assert aside["loading"]["saving"] == aside["evaluation"]["saving"] == 0


def _at_step(monkeypatch: pytest.MonkeyPatch, step: int, act: Any) -> None:
    real, calls = train.update, [0]

    def update(*given: Any) -> float:
        calls[0] += 1
        if calls[0] == step:
            act()
        return real(*given)

    monkeypatch.setattr(train, "update", update)


def _no_warning(text: str) -> None:
    raise AssertionError(text)


def test_a_checkpoint_holds_every_counter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a resumed run goes on counting: left out of a checkpoint, it would begin at zero."""
    monkeypatch.setattr(story, "export_and_prove", lambda *_: None)
    out = tmp_path / "run"
    run(load_recipe(recipe(tmp_path), ["save.every=2"]), output=out)
    saved = newest(out / "checkpoints", _no_warning)
    assert saved is not None
    values, cuts = saved.values, events(out, "cut")
    assert values["groups_cut"] == sum(sum(cut["removed"].values()) for cut in cuts) > 0
    assert values["removed"] == {
        kind: sum(cut["removed"].get(kind, 0) for cut in cuts) for kind in values["removed"]
    }
    assert (values["left_out"], values["sparse"]) == (0, [])
    assert values["target_reached"] in (True, False) and values["since_commit"] == 0
    assert values["step"] == events(out, "step")[-1]["step"] and values["seconds"] > 0


def test_other_text_is_refused_on_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, out = recipe(tmp_path), tmp_path / "run"
    with monkeypatch.context() as patch:
        _at_step(patch, 6, _fails)
        with pytest.raises(RunError, match="gone wrong"):
            run(load_recipe(path, ["save.every=2"]), output=out)
    letters = tmp_path / "letters.jsonl"
    letters.write_text(letters.read_text().replace("alpha", "omega"))
    with pytest.raises(RunError, match="letters: the training text is not the one this run began"):
        run(load_recipe(path, ["save.every=2"]), output=out, resume=True)


def _fails() -> None:
    raise RunError("gone wrong")


PLUGIN = """\
from effcompress import criterion
@criterion("mine")
def mine(weight):
    \"\"\"Magnitude.\"\"\"
    return weight.abs()
"""


def model_folder(folder: Path) -> Path:
    """A tiny Llama with a generation config, in ``folder/model``; returns a recipe of it."""
    config = LlamaConfig(
        vocab_size=258,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
    )
    model: Any = LlamaForCausalLM(config)
    model.generation_config.repetition_penalty = 1.5
    model.save_pretrained(folder / "model")
    (folder / "mine.py").write_text(PLUGIN)
    path = recipe(folder, extra="plugins: [mine.py]\n", criterion="mine")
    after = path.read_text().partition("data:")[2]
    head = "name: toy\nmodel: {folder: model, tokenizer: bytes}\ndata:"
    path.write_text(head + after)
    return path


def died(path: Path, out: Path, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that failed before this step ended, with a checkpoint every second step."""
    with monkeypatch.context() as patch:
        _at_step(patch, step, _fails)
        with pytest.raises(RunError, match="gone wrong"):
            run(load_recipe(path, ["save.every=2"]), output=out)


def _other_weights(folder: Path) -> None:
    path = folder / "model" / "model.safetensors"
    tensors = load_file(path)
    tensors["model.norm.weight"] = tensors["model.norm.weight"] * 1.5
    save_file(tensors, path, metadata={"format": "pt"})


def _edited(name: str, **change: object) -> Any:
    def edit(folder: Path) -> None:
        path = folder / "model" / name
        path.write_text(json.dumps({**json.loads(path.read_text()), **change}))

    return edit


def _other_plugin(folder: Path) -> None:
    (folder / "mine.py").write_text(PLUGIN.replace("abs()", "square()"))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_other_weights, "model: weights: this changed"),
        (
            _edited("config.json", rms_norm_eps=1e-3),
            "configuration: rms_norm_eps: .* 0.001",
        ),
        (
            _edited("generation_config.json", repetition_penalty=1.25),
            r"generation config: repetition_penalty: .* was 1.5, is 1.25",
        ),
        (_other_plugin, r"plugins.0: mine.py: this changed since the run began: was"),
    ],
)
def test_other_inputs_are_refused_on_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Any, says: str
) -> None:
    path, out = model_folder(tmp_path), tmp_path / "run"
    died(path, out, 4, monkeypatch)
    kept = {p.name: p.read_bytes() for p in (tmp_path / "model").iterdir()}
    change(tmp_path)
    with pytest.raises(RunError, match=says):
        run(load_recipe(path, ["save.every=2"]), output=out, resume=True)
    if change is not _other_plugin:
        if change is not _other_weights:
            with pytest.raises(RunError, match=says):
                export(out, "uniform")
        for name, content in kept.items():
            (tmp_path / "model" / name).write_bytes(content)
    else:
        (tmp_path / "mine.py").write_text(PLUGIN)
    monkeypatch.setattr(story, "export_and_prove", lambda *_: None)
    run(load_recipe(path, ["save.every=2"]), output=out, resume=True)


def _other_text(folder: Path) -> None:
    path = folder / "letters.jsonl"
    path.write_text(path.read_text().replace("alpha", "omega"))


def test_a_project_that_was_moved_is_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its files are found in the new place, and held against their hashes."""
    project, moved = tmp_path / "here", tmp_path / "there it is"
    project.mkdir()
    died(model_folder(project), project / "run", 4, monkeypatch)
    project.rename(moved)
    del REGISTRY._plugins["criterion"]["mine"]  # as in a new process
    names = ("model/model.safetensors", "mine.py", "letters.jsonl")
    kept = {moved / name: (moved / name).read_bytes() for name in names}
    for change, says in (
        (_other_weights, "model: weights: this changed"),
        (_other_plugin, r"plugins.0: mine.py: this changed"),
        (_other_text, "the training text is not the one"),
    ):
        change(moved)
        with pytest.raises(RunError, match=says):
            run(
                load_recipe(moved / "toy.yaml", ["save.every=2"]), output=moved / "run", resume=True
            )
        for file, content in kept.items():
            file.write_bytes(content)
    run(load_recipe(moved / "toy.yaml", ["save.every=2"]), output=moved / "run", resume=True)
    # Commands that read the run's own recipe find the files, too.
    again = load_recipe(moved / "run" / RESOLVED).recipe
    assert again.model.folder == moved / "model" and again.plugins == (moved / "mine.py",)


def test_plugins_that_an_earlier_version_named_by_their_paths() -> None:
    before = {"plugins: /old/mine.py": "1", "model: weights": "2"}
    assert named_alike(before) == {"plugins.0: mine.py": "1", "model: weights": "2"}


def test_a_teacher_that_changed_meanwhile_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is read again after the cut, from the same folder."""
    path = model_folder(tmp_path)
    text, real = path.read_text(), source_model.read_source
    before, _, after = text.replace("tokens: 2560", "tokens: 512").partition("train:")
    once = before.replace("{name: continuous, every: 1, start: 256, groups: 1}", "once")
    once = once.replace("{source: training, decay: 0.9}", "{source: calibration, sequences: 4}")
    path.write_text(once + "recover:\n  method: distill" + after)

    def load(*given: Any, **how: Any) -> Any:
        _other_weights(tmp_path)
        return real(*given, **how)

    monkeypatch.setattr(source_model, "read_source", load)
    with pytest.raises(RunError, match="model: weights: this changed since the run began"):
        run(load_recipe(path), output=tmp_path / "run")


@pytest.mark.parametrize("hashed", [True, False])
def test_a_state_that_was_changed_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hashed: bool
) -> None:
    """The run goes on from the checkpoint before, to the weights of one that was not touched."""
    monkeypatch.setattr(story, "export_and_prove", lambda *_: None)
    path, out, whole = recipe(tmp_path), tmp_path / "run", tmp_path / "whole"
    run(load_recipe(path, ["save.every=2"]), output=whole)
    died(path, out, 6, monkeypatch)
    last = max((out / "checkpoints").iterdir())
    values = json.loads((last / "state.json").read_text())
    if hashed:
        values["tokens"] += 1
    else:  # as earlier versions wrote it, and of another structure
        del values["state_sha256"], values["stream"]
        values["format"] = 2
    (last / "state.json").write_text(json.dumps(values))
    run(load_recipe(path, ["save.every=2"]), output=out, resume=True)
    (said,) = (e["text"] for e in events(out, "warning") if "damaged" in e["text"])
    assert last.name in said and "trying the one before" in said
    one, other = (newest(folder / "checkpoints", _no_warning) for folder in (whole, out))
    assert one is not None and other is not None and one.values["tokens"] == other.values["tokens"]
    for name, tensor in one.part("model/").items():
        assert torch.equal(tensor, other.part("model/")[name]), name


def test_a_checkpoint_of_before_resumes_and_what_does_not_fit_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out = recipe(tmp_path), tmp_path / "run"
    died(path, out, 6, monkeypatch)
    last = max((out / "checkpoints").iterdir())
    values = json.loads((last / "state.json").read_text())
    del values["state_sha256"], values["provenance"]
    values["format"] = 2
    (last / "state.json").write_text(json.dumps({**values, "epsilons": [1e-5]}))
    with pytest.raises(RunError, match="the checkpoint of step 4 does not fit this model"):
        run(load_recipe(path, ["save.every=2"]), output=out, resume=True)
    (last / "state.json").write_text(json.dumps(values))
    monkeypatch.setattr(story, "export_and_prove", lambda *_: None)
    run(load_recipe(path, ["save.every=2"]), output=out, resume=True)
    assert events(out, "end")[-1]["status"] == "success"


@pytest.mark.parametrize(("keep_after", "left"), [(2, 2), (1, 1), (0, 0)])
def test_a_finished_run_keeps_as_many_as_asked(
    tmp_path: Path, keep_after: int, left: int, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    run(load_recipe(recipe(tmp_path), [f"save.keep_after={keep_after}"]), output=folder)
    steps = sorted(p.name for p in (folder / "checkpoints").glob("step-*"))
    assert len(steps) == left and all(name > "step-00000012" for name in steps)
    assert (folder / "checkpoints").exists() == bool(left)
    assert (folder / "metrics.jsonl").is_file() and (folder / "plans.jsonl").is_file()
    assert "save.keep_after: 0" in capsys.readouterr().err


def test_a_run_that_fails_keeps_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise RunError("no")

    monkeypatch.setattr(story, "export_and_prove", refused)
    with pytest.raises(RunError):
        run(load_recipe(recipe(tmp_path), ["save.keep_after=0"]), output=tmp_path / "run")
    assert len([*(tmp_path / "run" / "checkpoints").glob("step-*")]) == 3


def test_without_a_checkpoint_the_model_itself_is_exported(tmp_path: Path) -> None:
    loaded = load_recipe(recipe(tmp_path), ["save.keep_after=0", "export.form=exact"])
    run(loaded, output=tmp_path / "run")
    with pytest.raises(RecipeError, match="finished, and kept no checkpoint"):
        run(loaded, output=tmp_path / "run", resume=True)
    made = export(tmp_path / "run", "exact", output=tmp_path / "exact")
    before, after = (load_file(tmp_path / f / "model.safetensors") for f in ("run", "exact"))
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert made.data["form"] == "exact"

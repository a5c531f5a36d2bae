"""Runs that take out layers and blocks: recorded, resumed, exported in every form."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from effcompress import load_recipe, run
from effcompress.commands.evaluate import evaluate
from effcompress.commands.export import As, export
from effcompress.errors import RunError, SourceError
from effcompress.estimate.inspect import inspect
from tests.proving import fresh_process
from tests.runner.toys import events, recipe

SPACE = "[{name: ffn, scope: global}, {name: layer, minimum: 2}, attention_block, hidden]"
CHANGES = (
    f"prune.space={SPACE}",
    "prune.target={keep: 60%}",
    "model.shape.num_hidden_layers=5",
    "prune.selector=in_turns",
    "prune.schedule={name: continuous, every: 1, start: 256, groups: 4}",
    "export.form=exact",
)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("depth")
    with fresh_process():  # the folder brings a class of its own
        run(load_recipe(recipe(folder), CHANGES), output=folder / "out")
    return folder


def test_layers_and_blocks_go_and_the_record_says_so(done: Path) -> None:
    out = done / "out"
    (begin,), (end,), (made,) = (events(out, k) for k in ("run", "end", "export"))
    assert end["status"] == "success"
    assert end["params"] == pytest.approx(0.6 * begin["params"], rel=0.005)
    plans = [json.loads(line)["plan"] for line in (out / "plans.jsonl").read_text().splitlines()]
    gone = {name for plan in plans for name in plan if name.startswith(("layer", "attention_b"))}
    assert gone, "the toy should lose layers; the test says nothing otherwise"
    for name in gone:
        assert begin["widths"][name] == 1 and end["widths"][name] == 0
    for name in (n for n in gone if n.startswith("layer.")):
        assert end["widths"][name.replace("layer", "ffn")] == 0
    assert made["form"] == "exact" and made["parameters"] == end["params"]
    report = (out / "report.html").read_text()
    assert "trust_remote_code=True" in report and "Layers" in report
    assert "loads in transformers with the class that it brings" in report
    assert "in plain transformers, which was proven" not in report


def test_the_folder_is_loaded_by_transformers_and_by_us(done: Path) -> None:
    out = done / "out"
    theirs = AutoModelForCausalLM.from_pretrained(out, trust_remote_code=True)
    (end,) = events(out, "end")
    assert sum(p.numel() for p in theirs.parameters()) == end["params"]
    answer = evaluate(out)
    after = events(out, "evaluation")[1]
    for name, domain in answer.data["domains"].items():
        assert domain["loss"] == pytest.approx(after["domains"][name]["loss"], rel=1e-5)
    seen = inspect(out).data
    assert seen["params"] == end["params"] and seen["family"] == "llama"


def test_resumed_in_the_middle_it_is_the_same(done: Path, tmp_path: Path) -> None:
    # One checkpoint of each state of depth is kept; go back behind the newest ones.
    shutil.copytree(done / "out", tmp_path / "out")
    out, kept = tmp_path / "out", sorted((tmp_path / "out/checkpoints").glob("step-*"))
    for newer in kept[1:]:
        shutil.rmtree(newer)
    for name in ("config.json", "model.safetensors"):
        (out / name).unlink()
    layers = json.loads((kept[0] / "state.json").read_text())["depth"]["layers"]
    assert len(layers) <= 5
    run(load_recipe(recipe(done), CHANGES), output=out, resume=True)
    for name in ("model.safetensors", "plans.jsonl", "config.json"):
        assert (out / name).read_bytes() == (done / "out" / name).read_bytes(), name


@pytest.mark.parametrize("form", ["padded", "exact"])
def test_other_forms_after_the_fact(done: Path, tmp_path: Path, form: As) -> None:
    answer = export(done / "out", form, output=tmp_path / form)
    assert answer.data["max_logit_difference"] <= 1e-5
    exact = AutoModelForCausalLM.from_pretrained(done / "out", trust_remote_code=True)
    other = AutoModelForCausalLM.from_pretrained(tmp_path / form, trust_remote_code=form == "exact")
    ids = torch.arange(24).view(2, 12)
    with torch.no_grad():
        torch.testing.assert_close(exact(ids).logits, other(ids).logits, rtol=0, atol=1e-5)
    if form == "padded":
        assert answer.data["parameters"] > sum(p.numel() for p in exact.parameters())
    with pytest.raises(SourceError, match="exists already"):
        export(done / "out", form, output=tmp_path / form)


def test_what_cannot_be_exported_is_said(done: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="layers differ"):
        export(done / "out", "uniform", output=tmp_path / "uniform")
    with pytest.raises(SourceError, match="holds no run"):
        export(tmp_path, "padded")
    assert not (tmp_path / "uniform").exists()


def test_gguf_is_written(done: Path, tmp_path: Path) -> None:
    answer = export(done / "out", "gguf", output=tmp_path / "m.gguf", dtype="F16")
    file = tmp_path / "m.gguf"
    assert file.read_bytes()[:4] == b"GGUF" and answer.data["bytes"] == file.stat().st_size


def test_a_pruned_folder_is_pruned_further(done: Path, tmp_path: Path) -> None:
    again = [c for c in CHANGES if not c.startswith("model.shape")]
    again += [f"model={{folder: {done / 'out'}}}", "prune.target={keep: 90%}"]
    path = recipe(tmp_path)
    found = run(load_recipe(path, again), output=tmp_path / "out")
    (end,) = events(done / "out", "end")
    assert found.params == pytest.approx(0.9 * end["params"], rel=0.005)


def test_an_approximate_removal_says_by_how_much(tmp_path: Path) -> None:
    path = recipe(tmp_path, tokens=512)
    changes = ["model.shape.model_type=olmo2", "prune.space=[attention, ffn]"]
    changes += ["prune.target={keep: 80%}", "prune.schedule={name: once, at: 256}"]
    run(load_recipe(path, changes), output=tmp_path / "out")
    found = events(tmp_path / "out", "approximate")
    assert found and all(e["max_logit_difference"] > 1e-4 for e in found)
    assert found[0]["sets"][0].startswith("attention.")
    assert "a norm across all heads" in " ".join(inspect(tmp_path / "out").notes)

"""Runs that slice the residual stream: checked, exported, loaded again, trained on, resumed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from effcompress import RecipeError, RunError, SourceError, fault, load_recipe, run
from effcompress.commands import bench as bench_room
from effcompress.commands.evaluate import evaluate
from effcompress.commands.export import export
from effcompress.errors import Stopped
from effcompress.report.comparison.facts import read
from effcompress.stopping import Stopping
from tests.runner.toys import events, texts

RECIPE = """\
name: toy
model:
  random: true
  shape:
    {{model_type: {model}, vocab_size: 259, hidden_size: 32, intermediate_size: 64,
     num_hidden_layers: 2, num_attention_heads: 4, num_key_value_heads: 2, head_dim: 8,
     tie_word_embeddings: true, max_position_embeddings: 128}}
  tokenizer: bytes
data:
  sequence_length: 32
  domains:
    letters: {{jsonl: letters.jsonl, holdout: 20%}}
    numbers: {{jsonl: numbers.jsonl, holdout: 20%}}
prune:
  target: {{shape: {{hidden: 24}}}}
  space: [hidden]
  rotate: {rotate}
  measure: {{source: calibration, sequences: 6}}
  schedule: {{name: once, at: 0}}
evaluate: {{sequences: 2, new_tokens: 4}}
save: {{every: 2}}
export: {{form: exact}}
{more}
"""
TRAIN = """\
train: {tokens: 512, batch_size: 4, learning_rate: {peak: 1e-2, schedule: constant, warmup: 0%}}
"""
DISTILL = """\
recover: {tokens: 512, batch_size: 4, method: distill,
  learning_rate: {peak: 1e-2, schedule: constant, warmup: 0%}}
"""
SPARSIFY = """\
sparsify: {method: wanda, sparsity: 30%, sequences: 4}
train: {tokens: 512, batch_size: 4, learning_rate: {peak: 1e-2, schedule: constant, warmup: 0%}}
"""
LORA = """\
recover:
  {tokens: 512, batch_size: 4, method: lora, lora: {rank: 4, alpha: 8},
   learning_rate: {peak: 1e-2, schedule: constant, warmup: 0%}}
"""


def written(
    folder: Path, *, model: str = "llama", rotate: str = "slicegpt", more: str = ""
) -> Path:
    texts(folder)
    path = folder / "recipe.yaml"
    path.write_text(RECIPE.format(model=model, rotate=rotate, more=more))
    return path


def done(path: Path, folder: Path, *sets: str, **how: Any) -> Any:
    return run(load_recipe(path, sets), output=folder, **how)


@pytest.mark.parametrize("rotate", ["slicegpt", "{name: slicegpt, tie: split, orientation: pca}"])
@pytest.mark.fresh_process
def test_a_sliced_model_runs_through(tmp_path: Path, rotate: str) -> None:
    report = done(written(tmp_path, rotate=rotate), tmp_path / "run")
    (made,) = events(tmp_path / "run", "rotated")
    assert (made["channels"], made["width"], len(made["places"])) == (32, 24, 5)
    assert made["tied"] == ("split" not in rotate)
    assert all(0.5 < place["energy"] <= 1 for place in made["places"])
    assert made["params"] == report.params
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["pruned"]["stream"]["channels"] == 32
    (proof,) = events(tmp_path / "run", "proof")
    assert proof["tokens_equal"] and proof["cache_equal"]
    lines = (tmp_path / "run" / "pictures" / "energy.csv").read_text().splitlines()
    assert len(lines) == 1 + 3  # two layers, and the stream behind them
    page = (tmp_path / "run" / "report.html").read_text()
    assert "32 \u2192 24 channels" in page and "Energy that stays, at least" in page


def weights(folder: Path) -> dict[str, torch.Tensor]:
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    return {name: p.detach() for name, p in model.named_parameters()}


def test_rotations_need_no_luck(tmp_path: Path) -> None:
    """The orientation of the kept directions changes no logit, and the same seed gives the same
    weights.
    """
    path, loss = written(tmp_path), dict[str, float]()
    for name, sets in {
        "one": (),
        "again": (),
        "pca": ("prune.rotate.orientation=pca",),
        "split": ("prune.rotate.tie=split",),
    }.items():
        done(path, tmp_path / name, *sets)
        after = events(tmp_path / name, "evaluation")[-1]
        loss[name] = after["domains"]["letters"]["loss"]
    assert max(abs(value - loss["one"]) for value in loss.values()) < 1e-4
    one, again = weights(tmp_path / "one"), weights(tmp_path / "again")
    assert all(torch.equal(value, again[name]) for name, value in one.items())
    assert not torch.equal(
        one["model.layers.1.attention_shortcut.weight"],
        weights(tmp_path / "pca")["model.layers.1.attention_shortcut.weight"],
    )


@pytest.mark.parametrize(
    "more", [LORA, TRAIN, DISTILL, SPARSIFY], ids=["lora", "train", "distill", "sparsify"]
)
def test_a_sliced_model_learns_on(tmp_path: Path, more: str) -> None:
    path = written(tmp_path, more=more)
    done(path, tmp_path / "run")
    steps = events(tmp_path / "run", "step")
    losses = [step.get("objective") or step["loss"] for step in steps]
    # The slice of a random model is all but its source: there is nothing to learn from that.
    assert losses[-1] < losses[0] or more == DISTILL
    held = weights(tmp_path / "run")
    before = weights_of_slice(tmp_path)
    assert any(not torch.equal(value, before[name]) for name, value in held.items())
    moved = "model.layers.0.mlp_shortcut.weight"
    assert not torch.equal(held[moved], before[moved])  # shortcuts are trained, too


def weights_of_slice(folder: Path) -> dict[str, torch.Tensor]:
    """Those of the same recipe without training."""
    path = folder / "recipe.yaml"
    path.write_text(RECIPE.format(model="llama", rotate="slicegpt", more=""))
    done(path, folder / "untrained")
    return weights(folder / "untrained")


def test_a_stopped_run_resumes_bit_for_bit(tmp_path: Path) -> None:
    path = written(tmp_path, more=TRAIN)
    done(path, tmp_path / "whole")
    stopping, halted = Stopping(), dict[str, int]()

    def stop_at_two(name: str) -> None:
        halted[name] = halted.get(name, 0) + 1
        if halted.get("step") == 2:
            stopping.asked = "SIGTERM"

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fault, "point", stop_at_two)
        with pytest.raises(Stopped):
            done(path, tmp_path / "halves", stopping=stopping)
    done(path, tmp_path / "halves", resume=True)
    one, other = weights(tmp_path / "whole"), weights(tmp_path / "halves")
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_a_sliced_folder_is_a_source(tmp_path: Path) -> None:
    """Its feed-forward channels can be cut like any model's; its layers and stream cannot."""
    done(written(tmp_path), tmp_path / "run")
    path = tmp_path / "again.yaml"
    text = RECIPE.format(model="llama", rotate="slicegpt", more="")
    begin, end = text.index("model:"), text.index("data:")
    text = text[:begin] + "model: {folder: run}\n" + text[end:]
    cut = text.replace("hidden: 24", "ffn: 40").replace("space: [hidden]", "space: [ffn]")
    path.write_text(cut.replace("rotate: slicegpt", "criterion: magnitude"))
    done(path, tmp_path / "cut")
    held = weights(tmp_path / "cut")
    assert held["model.layers.0.mlp.down_proj.weight"].shape == (24, 40)
    assert held["model.layers.1.mlp.down_proj.weight"].shape == (32, 40)
    path.write_text(text)
    with pytest.raises(RecipeError, match="rotated already"):
        done(path, tmp_path / "twice")


def test_forms_of_stock_classes_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path)
    with pytest.raises(RecipeError, match="no stock class"):
        done(path, tmp_path / "run", "export.form=padded")
    done(path, tmp_path / "run")
    for form in ("uniform", "padded", "gguf"):
        with pytest.raises((RunError, SourceError), match="changes the basis of its stream"):
            export(tmp_path / "run", form, output=tmp_path / f"as_{form}")
    export(tmp_path / "run", "exact", output=tmp_path / "as_exact")
    one, other = weights(tmp_path / "run"), weights(tmp_path / "as_exact")
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_a_sliced_folder_is_measured_as_any_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`eval` finds the perplexity of the run, `bench` its size, `compare` its row."""
    monkeypatch.setattr(bench_room, "footprint", lambda job: dict.fromkeys(job.batches))
    report = done(written(tmp_path), tmp_path / "run")
    after = events(tmp_path / "run", "evaluation")[-1]["domains"]
    again = evaluate(tmp_path / "run").data["domains"]
    for name, found in after.items():
        assert again[name]["perplexity"] == pytest.approx(found["perplexity"], rel=1e-5)
    work = bench_room.Workload(batches=(1,), prompt=4, new=2, repeats=1)
    sides = bench_room.bench(tmp_path / "run", work).data["sides"]
    assert sides["pruned"]["params"] == report.params
    facts = read(tmp_path / "run", seed=0, shown="sliced").facts
    assert facts is not None and facts.params == report.params
    assert facts.after == {name: found["perplexity"] for name, found in after.items()}

"""Runs that take experts out of mixtures: exactly those that routing and experts computed by hand,
in fp64, say are least; and what happens to the rest of the run.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from effcompress import load_recipe, run
from effcompress.errors import RecipeError
from effcompress.estimate.check import check
from effcompress.model.load import load as load_model
from effcompress.runner.start import corpus_of
from tests.conftest import MIXTURES, shape
from tests.contract.by_hand import LiveRouter
from tests.contract.zoo import config_of
from tests.measure.experts_by_hand import by_hand, read, router_of
from tests.runner.test_baselines import SEQUENCES
from tests.runner.toys import events, texts

RECIPE = """\
name: toy
model: {{folder: model, tokenizer: bytes}}
data:
  sequence_length: 24
  domains:
    letters: {{jsonl: letters.jsonl, holdout: 20%}}
    numbers: {{jsonl: numbers.jsonl, holdout: 20%}}
prune:
  target: {{{target}}}
  space: {space}
  criterion: {criterion}
  measure: {{source: calibration, sequences: 5{more}}}
  schedule: {schedule}
evaluate: {{sequences: 2, new_tokens: 4}}
"""
DEFAULTS = {"target": "shape: {expert: 3}", "space": "[expert]", "criterion": "reap", "more": ""}
DEFAULTS |= {"schedule": "{name: once, at: 0}"}


GROUPED = ("glm4_moe", "deepseek_v3")
"""Families whose router chooses one of two groups of experts here."""


def write_model(folder: Path, model_type: str) -> None:
    more = {"moe_intermediate_size": 32} if model_type in ("qwen3_moe", "glm4_moe") else {}
    if model_type in MIXTURES:
        fields = shape("gqa_untied", model_type=model_type, vocab_size=258, **more)
    else:
        fields = config_of(model_type)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**fields))
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(1.0 if p.dim() == 1 else 0.0, 0.3)
        for name, b in model.named_buffers():
            if "correction_bias" in name:
                b.uniform_(-0.1, 0.1)
    model.save_pretrained(folder / "model")


def recipe(folder: Path, model_type: str, extra: str = "", **changes: str) -> Any:
    texts(folder)
    if not (folder / "model").exists():
        write_model(folder, model_type)
    path = folder / "toy.yaml"
    path.write_text(RECIPE.format(**{**DEFAULTS, **changes}) + extra)
    return load_recipe(path)


def removed(out: Path) -> dict[str, list[int]]:
    plan: dict[str, list[int]] = {}
    for line in (out / "plans.jsonl").read_text().splitlines():
        for name, units in json.loads(line)["plan"].items():
            plan[name] = sorted({*plan.get(name, []), *units})
    return plan


def exact(folder: Path, loaded: Any) -> tuple[Any, Tensor]:
    """The model before the run in fp64, and the tokens it is measured on."""
    source = load_model(loaded.recipe.model, seed=0, offline=True, progress=print)
    corpus = corpus_of(loaded.recipe, source.tokenizer, offline=True, say=print, notice=print)
    model: Any = AutoModelForCausalLM.from_pretrained(folder / "model").double()
    model.set_experts_implementation("eager")  # grouped kernels know no fp64
    return model, corpus.calibration(SEQUENCES, 0)


def least(score_E: Tensor, model_type: str, count: int = 2) -> list[int]:
    """The lowest; of a router's two groups the lowest of each."""
    if model_type not in GROUPED:
        return sorted(score_E.argsort()[:count].tolist())
    groups = score_E.view(2, -1)
    return sorted(g * groups.shape[1] + int(groups[g].argmin()) for g in range(2))


@pytest.mark.parametrize("model_type", [*MIXTURES, "deepseek_v3"])
def test_the_least_of_every_layer_go(model_type: str, tmp_path: Path) -> None:
    target = "shape: {expert: 6}" if model_type in GROUPED else "shape: {expert: 3}"
    loaded = recipe(tmp_path, model_type, target=target)
    run(loaded, output=tmp_path / "out")
    model, ids = exact(tmp_path, loaded)
    scores = {
        i: by_hand(model.model.layers[i].mlp, x_TD)["reap"] for i, x_TD in read(model, ids).items()
    }
    wanted = {f"expert.{i}": least(score, model_type) for i, score in scores.items()}
    assert removed(tmp_path / "out") == wanted
    (made,) = events(tmp_path / "out", "export")
    assert made["form"] == "uniform"
    # The folder is a stock class of fewer experts, with the biases of those that stayed.
    small: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    for i, score in scores.items():
        stays = [e for e in range(len(score)) if e not in wanted[f"expert.{i}"]]
        here, there = (router_of(m.model.layers[i].mlp) for m in (small, model))
        torch.testing.assert_close(here.weight, there.weight[stays].float())
        for name, buffer in there.named_buffers():
            assert torch.equal(here.get_buffer(name), buffer[stays].float()), name


@pytest.mark.parametrize("criterion", ["man", "msan", "ean", "frequency"])
def test_other_criteria(criterion: str, tmp_path: Path) -> None:
    loaded = recipe(tmp_path, "qwen3_moe", criterion=criterion)
    run(loaded, output=tmp_path / "out")
    model, ids = exact(tmp_path, loaded)
    wanted = {
        f"expert.{i}": least(by_hand(model.model.layers[i].mlp, x_TD)[criterion], "qwen3_moe")
        for i, x_TD in read(model, ids).items()
    }
    assert removed(tmp_path / "out") == wanted


@pytest.mark.parametrize("model_type", ["qwen3_moe", "glm4_moe"])
def test_layer_by_layer(model_type: str, tmp_path: Path) -> None:
    """A layer is scored on what layers without their experts hand on to it."""
    target = "shape: {expert: 4}" if model_type == "glm4_moe" else "shape: {expert: 2}"
    loaded = recipe(tmp_path, model_type, more=", propagate: true", target=target)
    run(loaded, output=tmp_path / "out")
    model, ids = exact(tmp_path, loaded)
    wanted: dict[str, list[int]] = {}
    for i in MIXTURES[model_type]:
        mlp = model.model.layers[i].mlp
        score_E = by_hand(mlp, read(model, ids)[i])["reap"]
        gone = least(score_E, model_type, 3)
        if model_type == "glm4_moe":  # two of each group of four
            groups = score_E.view(2, -1).argsort(1)[:, :2]
            gone = sorted((groups + torch.tensor([[0], [4]])).flatten().tolist())
        wanted[f"expert.{i}"] = gone
        name = "router" if hasattr(mlp, "router") else "gate"
        setattr(mlp, name, LiveRouter(router_of(mlp), gone))
    assert removed(tmp_path / "out") == wanted


def test_resumed_it_is_the_same(tmp_path: Path) -> None:
    """Cut while training: checkpoints of masked and of shortened experts, selection biases too."""
    train = "train: {tokens: 960, batch_size: 4, learning_rate: {peak: 1e-3}}\n"
    train += "save: {every: 2, keep: 9, keep_after: 9}\n"
    changes = {"schedule": "{name: continuous, every: 2, groups: 1}"}
    loaded = recipe(tmp_path, "glm4_moe", train, target="shape: {expert: 4}", **changes)
    run(loaded, output=tmp_path / "out")
    shutil.copytree(tmp_path / "out", tmp_path / "again")
    kept = sorted((tmp_path / "again/checkpoints").glob("step-*"))
    assert len(kept) > 2, "there should be one between the cuts"
    for newer in kept[2:]:
        shutil.rmtree(newer)
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "again" / name).unlink()
    run(loaded, output=tmp_path / "again", resume=True)
    assert removed(tmp_path / "again") == removed(tmp_path / "out")
    one, two = (load_file(tmp_path / x / "model.safetensors") for x in ("out", "again"))
    assert one.keys() == two.keys()
    for name, value in one.items():
        assert torch.equal(value, two[name]), name


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"space": "[expert, ffn]", "target": "keep: 80%"},
            "'reap' says nothing of 'ffn.1': it is one",
        ),
        ({"criterion": "wanda"}, "'wanda' says nothing of 'expert.0': it is one of inputs"),
        ({"target": "keep: 10%"}, "always remain"),
    ],
)
def test_what_check_refuses(changes: dict[str, str], said: str, tmp_path: Path) -> None:
    loaded = recipe(tmp_path, "qwen3_moe", **changes)
    with pytest.raises(RecipeError, match=r"toy\.yaml:\d+:") as caught:
        check(loaded)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("model_type", "experts", "said"),
    [
        # Each of GLM's two groups loses as many as the other; one of them is chosen, which has to
        # hold the two experts of a token.
        ("glm4_moe", 5, "Name 4 to 8, in steps of 2"),
        ("glm4_moe", 2, "Name 4 to 8, in steps of 2"),
        ("qwen3_moe", 1, "Name 2 to 5"),
    ],
)
def test_a_token_goes_to_experts_that_are_there(
    model_type: str, experts: int, said: str, tmp_path: Path
) -> None:
    loaded = recipe(tmp_path, model_type, target=f"shape: {{expert: {experts}}}")
    with pytest.raises(RecipeError, match=f"{experts} units of 'expert'") as caught:
        check(loaded)
    assert said in str(caught.value)


@pytest.mark.parametrize("model_type", ["gpt_oss", "glm4_moe", "deepseek_v3", "qwen3_5_moe_text"])
def test_masks_and_inputs_rank_experts_and_their_channels(model_type: str, tmp_path: Path) -> None:
    """To the end, with gradients of masks and then with the fluctuation of inputs."""
    channels = {"space": "[{name: ffn, scope: global}]", "target": "keep: 95%"}
    grouped = model_type in GROUPED
    cases: dict[str, tuple[str, dict[str, str]]] = {
        "experts": ("mask_fisher", {"target": f"shape: {{expert: {6 if grouped else 3}}}"}),
        "channels": ("mask_fisher", channels),
        "inputs": ("flap", channels),
    }
    for name, (criterion, changes) in cases.items():
        loaded = recipe(tmp_path, model_type, criterion=criterion, **changes)
        assert check(loaded).data["target_params"]
        run(loaded, output=tmp_path / name)
        (end,) = events(tmp_path / name, "end")
        assert end["status"] == "success"
        gone = {axis.partition(".")[0] for axis, units in removed(tmp_path / name).items() if units}
        assert ("expert_ffn" if changes is channels else "expert") in gone


def test_what_cannot_rank_channels_of_experts_is_said_before(tmp_path: Path) -> None:
    changes = {"space": "[ffn]", "target": "keep: 90%"}
    loaded = recipe(tmp_path, "gpt_oss", criterion="flap", more=", propagate: true", **changes)
    with pytest.raises(RecipeError, match=r"propagate: 'expert_ffn\.0' are channels of all"):
        check(loaded)
    loaded = recipe(tmp_path, "gpt_oss", criterion="ziplm", **changes)
    with pytest.raises(RecipeError, match=r"second moments, and 'expert_ffn\.0'"):
        check(loaded)

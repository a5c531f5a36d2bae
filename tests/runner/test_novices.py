"""Experts that become constants: masked, cut and stored they are the same function, which by hand
is the model with the mean of what they returned in their place.
"""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from effcompress import load_recipe, run
from effcompress.commands.evaluate import evaluate
from effcompress.errors import CoverageError, EffcompressError
from effcompress.estimate.check import check
from effcompress.model.novices import add_novices, novel
from effcompress.network.axis_map import family_for
from effcompress.network.pruned_model import PrunedModel
from effcompress.registry import REGISTRY, Bound
from tests.conftest import MIXTURES, tiny, tokens, unrounded, with_exact_norms
from tests.contract.test_more_families import tiny as zoo_tiny
from tests.contract.zoo import config_of
from tests.measure.experts_by_hand import read, returned, router_of
from tests.proving import fresh_process
from tests.runner.test_experts import exact, least, recipe, removed
from tests.runner.toys import events
from tests.runner.toys import recipe as toy

NOVICE = Bound(REGISTRY.get("repair", "novice"))
EXTRA = "export: {form: exact}\n"
SECTION = {"criterion": "mone\n  repair: [novice]"}


def made(model_type: str) -> PrunedModel:
    if model_type in MIXTURES:
        model = tiny(dtype=torch.float64, model_type=model_type)
        model.set_experts_implementation("eager")  # grouped kernels know no fp64
    else:
        model = zoo_tiny(model_type)
    config = novel(family_for(model.config.to_dict()), model.config.to_dict())
    assert add_novices(model, family_for(config)) == 48 * sum(
        len(router_of(m).weight) for m in model.modules() if hasattr(m, "experts")
    )
    with_exact_norms(model)
    return PrunedModel(model, config, [Bound(REGISTRY.get("space", "expert"))])


def with_constants(model: Any, gone: dict[int, dict[int, Tensor]]) -> Any:
    """A copy in which experts (layer -> expert -> constant) return what is given for them."""
    model = copy.deepcopy(model)
    for i, constants in gone.items():
        experts = model.model.layers[i].mlp.experts

        def forward(
            x_TD: Tensor,
            index_TK: Tensor,
            weight_TK: Tensor,
            experts: Any = experts,
            constants: dict[int, Tensor] = constants,
        ) -> Tensor:
            out_TD = torch.zeros_like(x_TD)
            for t, k in torch.cartesian_prod(*map(torch.arange, index_TK.shape)).tolist():
                e = int(index_TK[t, k])
                f = constants[e] if e in constants else returned(experts, e, x_TD[t : t + 1])[0]
                out_TD[t] += weight_TK[t, k] * f
            return out_TD

        experts.forward = forward
    return model


@torch.no_grad()
def logits(model: Any, ids: Tensor) -> Tensor:
    return model(input_ids=ids, use_cache=False).logits


@pytest.mark.parametrize("model_type", [*MIXTURES, "ernie4_5_moe", "deepseek_v2"])
def test_masked_cut_and_by_hand(model_type: str, monkeypatch: pytest.MonkeyPatch) -> None:
    unrounded(monkeypatch)
    pruned, ids = made(model_type), tokens()
    before = logits(pruned.module, ids)
    draw = torch.Generator().manual_seed(2)
    # Unevenly: every group of a router keeps all of its rows.
    plan = {s.name: [0, 1, 4] if s.layer == 2 else [2] for s in pruned.sets}
    means = {
        s.name: torch.randn(s.size, 48, generator=draw, dtype=torch.float64) for s in pruned.sets
    }
    gone = {s.layer or 0: {u: means[s.name][u] for u in plan[s.name]} for s in pruned.sets}
    wanted = logits(with_constants(pruned.module, gone), ids)
    assert float((wanted - before).abs().max()) > 1e-3
    pruned.mask(plan, repairs=[NOVICE], outputs=means)
    torch.testing.assert_close(logits(pruned.module, ids), wanted, rtol=0, atol=1e-9)
    start = pruned.params
    pruned.commit()
    torch.testing.assert_close(logits(pruned.module, ids), wanted, rtol=0, atol=1e-9)
    assert sum(p.numel() for p in pruned.module.parameters()) == pruned.params == start
    # Once more, of those that are left, by their numbers in the parent.
    left = [e for e in range(len(means["expert.2"])) if e not in gone[2]]
    again = 2.0 * means["expert.2"][left]  # by place, as what was measured is
    pruned.mask({"expert.2": [3]}, repairs=[NOVICE], outputs={"expert.2": again})
    gone[2] |= {3: 2.0 * means["expert.2"][3]}
    original = made(model_type)
    wanted = logits(with_constants(original.module, gone), ids)
    torch.testing.assert_close(logits(pruned.module, ids), wanted, rtol=0, atol=1e-9)
    pruned.commit()
    torch.testing.assert_close(logits(pruned.module, ids), wanted, rtol=0, atol=1e-9)
    pruned.module(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    novices = pruned.module.get_submodule("model.layers.2.mlp.experts").novices
    assert novices.grad is not None
    # Constants of experts that are there are no part of the model, and are not trained.
    stays = [e for e in range(len(novices)) if e not in gone[2]]
    assert not novices.grad[stays].any() and novices.grad[[0, 1, 3, 4]].any()


def test_experts_whose_output_is_constant_are_replaced_exactly() -> None:
    pruned, ids = made("gpt_oss"), tokens()
    with torch.no_grad():
        for i in MIXTURES["gpt_oss"]:
            pruned.module.get_submodule(f"model.layers.{i}.mlp.experts").down_proj[[1, 3]] = 0.0
    before = logits(pruned.module, ids)
    means = {
        s.name: pruned.module.get_submodule(f"model.layers.{s.layer}.mlp.experts").down_proj_bias
        for s in pruned.sets
    }
    plan = {s.name: [1, 3] for s in pruned.sets}
    pruned.mask(plan, repairs=[NOVICE], outputs={n: m.detach().clone() for n, m in means.items()})
    pruned.commit()
    torch.testing.assert_close(logits(pruned.module, ids), before, rtol=0, atol=1e-12)


@pytest.mark.parametrize("model_type", ["qwen3_moe", "gpt_oss", "glm4_moe"])
def test_a_run(model_type: str, tmp_path: Path) -> None:
    target = "shape: {expert: 5}" if model_type == "glm4_moe" else "shape: {expert: 3}"
    loaded = recipe(tmp_path, model_type, EXTRA, target=target, **SECTION)
    check(loaded)
    with fresh_process():  # the folder brings a class of its own
        run(loaded, output=tmp_path / "out")
    plan = removed(tmp_path / "out")
    model, ids = exact(tmp_path, loaded)
    weights = load_file(tmp_path / "out" / "model.safetensors")
    for p in model.parameters():
        p.requires_grad_(False)
    for i, x_TD in read(model, ids).items():
        mlp = model.model.layers[i].mlp
        _, gate_TK, index_TK = router_of(mlp)(x_TD)
        scores, means = [], []
        for e in range(len(router_of(mlp).weight)):
            token, slot = (index_TK == e).nonzero(as_tuple=True)
            f = returned(mlp.experts, e, x_TD[token])
            spread = f.std(0, unbiased=True).norm() if len(f) > 1 else torch.zeros(())
            scores.append(float(spread * gate_TK[token, slot].sum()))
            means.append(f.mean(0) if len(f) else torch.zeros(48).double())
        count = len(plan[f"expert.{i}"])
        assert plan[f"expert.{i}"] == least(torch.tensor(scores), "", count)
        held = weights[f"model.layers.{i}.mlp.experts.novices"]
        for e, mean in enumerate(means):
            wanted = mean.float() if e in plan[f"expert.{i}"] else torch.zeros(48)
            torch.testing.assert_close(held[e], wanted, rtol=1e-3, atol=1e-4)
        router = "router" if model_type == "gpt_oss" else "gate"
        assert len(weights[f"model.layers.{i}.mlp.{router}.weight"]) == len(scores)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out", trust_remote_code=True)
    (end,) = events(tmp_path / "out", "end")
    assert sum(p.numel() for p in theirs.parameters()) == end["params"]
    after = events(tmp_path / "out", "evaluation")[1]
    for name, domain in evaluate(tmp_path / "out").data["domains"].items():
        assert domain["loss"] == pytest.approx(after["domains"][name]["loss"], rel=1e-5)


def test_resumed_it_is_the_same(tmp_path: Path) -> None:
    train = "train: {tokens: 960, batch_size: 4, learning_rate: {peak: 1e-3}}\n"
    train += "save: {every: 2, keep: 9, keep_after: 9}\n" + EXTRA
    changes = {"schedule": "{name: continuous, every: 2, groups: 1}", **SECTION}
    loaded = recipe(tmp_path, "glm4_moe", train, target="shape: {expert: 5}", **changes)
    run(loaded, output=tmp_path / "out")
    shutil.copytree(tmp_path / "out", tmp_path / "again")
    kept = sorted((tmp_path / "again/checkpoints").glob("step-*"))
    for newer in kept[2:]:
        shutil.rmtree(newer)
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "again" / name).unlink()
    run(loaded, output=tmp_path / "again", resume=True)
    assert removed(tmp_path / "again") == removed(tmp_path / "out")
    one, two = (load_file(tmp_path / x / "model.safetensors") for x in ("out", "again"))
    for name, value in one.items():
        assert torch.equal(value, two[name]), name


@pytest.mark.parametrize(
    ("extra", "changes", "said"),
    [
        ("export: {form: uniform}\n", {}, "uniform cannot hold the result: constants"),
        (EXTRA, {"more": ", propagate: true"}, "without `propagate`"),
        (
            EXTRA,
            {"criterion": "magnitude\n  repair: [novice]", "source": "training"},
            "calibration",
        ),
    ],
)
def test_what_is_refused(extra: str, changes: dict[str, str], said: str, tmp_path: Path) -> None:
    source = changes.pop("source", None)
    with pytest.raises(EffcompressError) as caught:
        loaded = recipe(tmp_path, "qwen3_moe", extra, **{**SECTION, **changes})
        if source:
            load_recipe(tmp_path / "toy.yaml", [f"prune.measure.source={source}"])
        check(loaded)
    assert said in str(caught.value)


def test_a_model_without_experts_has_no_place_for_them(tmp_path: Path) -> None:
    once = {"measure": "{source: calibration}", "schedule": "{name: once, at: 0}"}
    path = toy(tmp_path, **once)
    with pytest.raises(CoverageError, match="'llama' has no experts"):
        check(load_recipe(path, ["prune.repair=[novice]"]))
    config = config_of("llama4_text")
    with pytest.raises(CoverageError, match="'llama4_text' all read every token"):
        novel(family_for(config), config)

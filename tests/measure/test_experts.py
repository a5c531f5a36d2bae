"""Statistics of experts against routing and experts computed by hand, for every family."""

from __future__ import annotations

import copy

import pytest
import torch

from effcompress.measure.experts import ExpertStatistics
from effcompress.network.pruned_model import PrunedModel
from effcompress.registry import REGISTRY, Bound, Plugin
from effcompress.saliency.inputs import score_inputs
from tests.conftest import MIXTURES, shape, tiny, tokens, unrounded
from tests.contract.test_more_families import exact as exact  # a fixture
from tests.contract.test_more_families import tiny as zoo_tiny
from tests.measure.experts_by_hand import by_hand, of_routing, read, router_of, routings
from tests.plugins.test_reap import Nothing

CRITERIA = ("reap", "man", "msan", "ean", "frequency")


def criterion(name: str, **knobs: object) -> Bound:
    plugin = REGISTRY.get("criterion", name)
    return Bound(plugin, {n: k.default for n, k in plugin.knobs.items()} | knobs)


def every_statistic() -> dict[str, Plugin]:
    return {n: s for name in CRITERIA for n, s in criterion(name).plugin.of_experts.items()}


def made(model_type: str) -> PrunedModel:
    model = tiny(model_type=model_type)
    space = [Bound(REGISTRY.get("space", "expert"))]
    return PrunedModel(model, shape("gqa_tied", model_type=model_type), space)


def measured(pruned: PrunedModel, ids: torch.Tensor) -> dict[str, dict[str, torch.Tensor]]:
    names = [s.name for s in pruned.sets]
    stats = ExpertStatistics(pruned.module, pruned.axes, names, every_statistic())
    with stats.listening(), torch.no_grad():
        for row in ids:
            pruned.module(input_ids=row[None], use_cache=False)
    stats.close()
    return stats.read()


@pytest.mark.parametrize("model_type", MIXTURES)
def test_five_criteria_of_every_family(model_type: str, monkeypatch: pytest.MonkeyPatch) -> None:
    unrounded(monkeypatch)
    pruned, ids = made(model_type), tokens(5, 16)
    exact = copy.deepcopy(pruned.module).double()
    exact.set_experts_implementation("eager")  # grouped kernels know no fp64
    wanted = read(exact, ids)
    assert tuple(wanted) == MIXTURES[model_type]
    found = measured(pruned, ids)
    for i, x_TD in wanted.items():
        by = by_hand(exact.model.layers[i].mlp, x_TD)
        assert found[f"expert.{i}"]["routed"].sum() == len(x_TD) * 2, "two experts a token"
        scores = {name: criterion(name) for name in CRITERIA}
        scores["as the model weighs"] = criterion("reap", renormalise=False)
        for name, bound in scores.items():
            sets = [s for s in pruned.sets if s.layer == i]
            score = score_inputs(sets, bound, Nothing(), {}, found)
            got = score[f"expert.{i}"].double()
            torch.testing.assert_close(got, by[name], rtol=2e-4, atol=1e-6, msg=f"{name} of {i}")


@pytest.mark.parametrize(
    "model_type", ["deepseek_v2", "ernie4_5_moe", "minimax_m2", "granitemoeshared", "llama4_text"]
)
def test_five_criteria_with_what_the_router_said(model_type: str, exact: None) -> None:
    """Where a mixture lies, and what its router is passed, differ; what is measured does not. An
    expert's output by hand is what the model's own mixture returns for its tokens alone.
    """
    model = zoo_tiny(model_type)
    space = [Bound(REGISTRY.get("space", "expert"))]
    pruned = PrunedModel(model, model.config.to_dict(), space)
    said, ids = routings(pruned), tokens(5, 16)
    found = measured(pruned, ids)
    assert len(said) == len(pruned.sets) > 1
    for s in pruned.sets:
        j = pruned.depth.layers.index(s.layer or 0)
        experts = model.get_submodule(pruned.family.experts.replace("{i}", str(j)))
        by = of_routing(experts, said[s.name], s.size)
        scores = {name: criterion(name) for name in CRITERIA}
        scores["as the model weighs"] = criterion("reap", renormalise=False)
        for name, bound in scores.items():
            got = score_inputs([s], bound, Nothing(), {}, found)[s.name].double()
            torch.testing.assert_close(
                got, by[name], rtol=1e-6, atol=1e-9, msg=f"{name} of {s.name}"
            )
        assert found[s.name]["routed"].sum() == 5 * 16 * 2


def test_masked_experts_are_sent_nothing() -> None:
    """Nor is the pass of the model any other for being listened to."""
    pruned, ids = made("qwen3_moe"), tokens(4, 16)
    pruned.mask({"expert.0": [1, 3]})
    with torch.no_grad():
        before = pruned.module(input_ids=ids, use_cache=False).logits
        found = measured(pruned, ids)
        torch.testing.assert_close(pruned.module(input_ids=ids, use_cache=False).logits, before)
    routed_E = found["expert.0"]["routed"]
    assert (routed_E == 0).nonzero().flatten().tolist() == [1, 3]
    exact = copy.deepcopy(pruned.module).double()
    exact.set_experts_implementation("eager")
    by = by_hand(exact.model.layers[0].mlp, read(exact, ids)[0], [1, 3])
    torch.testing.assert_close(routed_E.double(), by["frequency"])


def test_an_expert_that_no_token_goes_to_counts_as_nothing() -> None:
    pruned = made("qwen3_moe")
    mlp = pruned.module.get_submodule("model.layers.2.mlp")
    with torch.no_grad():  # tokens have a large first channel, and this row a large weight on it
        pruned.module.get_submodule("model.embed_tokens").weight[:, 0] = 5.0
        router_of(mlp).weight[:, 0] = torch.tensor([0.0, 0.0, 0.0, 0.0, -50.0])
    found = measured(pruned, tokens(2, 16))["expert.2"]
    assert found["routed"][4] == 0 and found["routed"][:4].sum() == 64
    for name in every_statistic():
        assert found[name][4] == 0 and (found[name][:4] > 0).any()

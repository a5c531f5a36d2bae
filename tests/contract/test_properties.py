"""Random shapes, random cuts: they compose, their plans replay on a model without weights, and the
number of parameters is always the predicted one.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from effcompress.network.pruned_model import PrunedModel
from effcompress.registry import REGISTRY, Bound
from effcompress.types import DEPTH, Plan
from tests.conftest import FAMILIES, MIXTURES, PLAIN, shape

SPACES = ("ffn", "attention", "hidden", "layer", "attention_block", "mlp_block")
ROUNDS = 3


@st.composite
def configs(draw: Any) -> dict[str, Any]:
    """A small model of any family, every size drawn."""
    model_type = draw(st.sampled_from(FAMILIES))
    head, kv = draw(st.sampled_from([4, 8])), draw(st.integers(1, 3))
    heads = kv if model_type in PLAIN else kv * draw(st.integers(1, 3))
    hidden = heads * head if model_type in PLAIN else heads * draw(st.integers(2, 5))
    ffn, layers = draw(st.integers(3, 20)), draw(st.integers(2, 4))
    sizes: dict[str, Any] = {
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "intermediate_size": ffn,
    }
    if model_type == "gpt2":
        sizes = {"n_embd": hidden, "n_head": heads, "n_layer": layers, "n_inner": ffn}
    elif model_type == "opt":
        sizes = {**sizes, "ffn_dim": sizes.pop("intermediate_size"), "word_embed_proj_dim": hidden}
    elif model_type not in PLAIN:
        sizes |= {"num_key_value_heads": kv, "head_dim": head}
    if model_type in ("qwen3_moe", "glm4_moe"):
        sizes |= {"moe_intermediate_size": draw(st.integers(3, 12))}
    if model_type == "gpt_oss":
        kinds = ("sliding_attention", "full_attention")
        sizes |= {"layer_types": [kinds[i % 2] for i in range(layers)]}
    tied = draw(st.sampled_from(["gqa_tied", "gqa_untied"]))
    return shape(tied, model_type=model_type, **sizes)


def build(config: dict[str, Any], device: str) -> PrunedModel:
    with torch.random.fork_rng(), torch.device(device):
        torch.manual_seed(0)
        model: nn.Module = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))
    there = [*SPACES, "expert"] if config["model_type"] in MIXTURES else SPACES
    return PrunedModel(model, config, [Bound(REGISTRY.get("space", name)) for name in there])


def draw_plan(data: Any, pruned: PrunedModel) -> Plan:
    """Some living units of some sets, never below a minimum, always a layer left (one without
    both of its blocks is none).
    """
    plan: Plan = {}
    for s in pruned.sets:
        if s.kind in DEPTH:
            left = pruned.depth.without([*plan, s.name]).layers
            if left and data.draw(st.integers(0, 5)) == 0:
                plan[s.name] = [0]
            continue
        most = min(3, s.size - s.minimum)
        count = data.draw(st.integers(0, most)) if most > 0 else 0
        units = pruned.ledger.original[s.name].tolist()
        each = len(units) // s.parts
        groups = [units[p * each : (p + 1) * each] for p in range(s.parts)]
        if count >= s.parts:  # equally many of each group of experts
            drawn = [data.draw(st.permutations(g))[: count // s.parts] for g in groups]
            plan[s.name] = sorted(u for group in drawn for u in group)
    return plan


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(config=configs(), data=st.data())
def test_cuts_compose_and_replay(config: dict[str, Any], data: Any) -> None:
    pruned, meta = build(config, "cpu"), build(config, "meta")
    for _ in range(ROUNDS):
        plan = draw_plan(data, pruned)
        predicted = pruned.parent.count(
            {
                **pruned.ledger.widths(),
                **{n: pruned.ledger.widths()[n] - len(units) for n, units in plan.items()},
            }
        )
        for model in (pruned, meta):
            model.mask(plan)
            assert model.params == predicted
            model.commit()
            assert sum(p.numel() for p in model.module.parameters()) == predicted
        shapes = {n: tuple(p.shape) for n, p in pruned.module.named_parameters()}
        assert shapes == {n: tuple(p.shape) for n, p in meta.module.named_parameters()}
        assert shapes == dict(pruned.axes.shapes)
    ids = torch.randint(0, 61, (1, 5), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.isfinite(pruned.module(ids).logits).all()


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "mixtral"])
def test_one_plan_or_two_give_the_same_model(model_type: str) -> None:
    """Cutting A and B at once, or A, then B after a commit."""
    config = shape("gqa_tied", model_type=model_type)
    first, second = {"hidden": [3, 20]}, {"hidden": [0, 47], "attention.1": [1]}
    at_once, one_by_one = build(config, "cpu"), build(config, "cpu")
    both = {"hidden": [0, 3, 20, 47], "attention.1": [1]}
    at_once.mask(both)
    at_once.commit()
    for plan in (first, second):
        one_by_one.mask(plan)
        one_by_one.commit()
    there = dict(one_by_one.module.named_parameters())
    for name, p in at_once.module.named_parameters():
        torch.testing.assert_close(p, there[name], rtol=1e-6, atol=1e-7)

"""The golden test: a masked mini-group and a removed one are the same function, in fp64.

The reference is independent of the engine: it zeroes weights by module name and, for hidden
channels, averages each norm over the kept channels only.
"""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from effcompress import groups
from effcompress.model.families import family_of
from effcompress.registry import REGISTRY, Bound
from effcompress.removal.commit import commit
from effcompress.removal.ledger import Ledger
from effcompress.removal.mask import mask
from effcompress.removal.modules import adapt, agree
from effcompress.removal.norms import norms
from tests.conftest import (
    FAMILIES,
    SHAPES,
    ExactRMSNorm,
    shape,
    tiny,
    tokens,
    with_exact_norms,
)

D, LAYERS = 48, 3


def plan_for(kind: str, scope: str, kv: int) -> dict[str, list[int]]:
    """About a third of the units; per layer: a different number in each."""
    if kind == "hidden":
        return {"hidden": list(range(0, D, 3))}
    size = kv if kind == "attention" else 40
    plan = {}
    for i in range(LAYERS):
        n = max(1, size // 3) if scope == "lockstep" else min(size - 1, i + 1)
        plan[f"{kind}.{i}"] = sorted((i + k) % size for k in range(n))
    return plan


class LiveNorm(nn.Module):
    """Mean square over living channels; gain and epsilon corrected or not."""

    def __init__(self, norm: nn.Module, dead: list[int], corrected: bool) -> None:
        super().__init__()
        live = torch.ones(D, dtype=torch.float64)
        live[dead] = 0
        ratio = D / float(live.sum()) if corrected else 1.0
        self.register_buffer("live", live)
        exact = ExactRMSNorm(norm)
        self.gain = (norm.weight.detach() + exact.offset) * ratio**0.5
        self.eps = getattr(norm, exact.attribute) * ratio

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = (x.square() * self.live).sum(-1, keepdim=True) / self.live.sum()
        return self.gain * x * torch.rsqrt(mean + self.eps) * self.live


def reference(
    model: nn.Module, plan: dict[str, list[int]], kind: str, corrected: bool
) -> nn.Module:
    """Mask by hand."""
    model = copy.deepcopy(model)
    h, r = 8, model.config.num_attention_heads // model.config.num_key_value_heads
    with torch.no_grad():
        for i, layer in enumerate(model.model.layers):
            for u in plan.get(f"ffn.{i}", []):
                layer.mlp.down_proj.weight[:, u] = 0
            for u in plan.get(f"attention.{i}", []):
                layer.self_attn.o_proj.weight[:, u * r * h : (u + 1) * r * h] = 0
        if kind == "hidden":
            dead = plan["hidden"]
            model.model.embed_tokens.weight[:, dead] = 0
            for layer in model.model.layers:
                layer.self_attn.o_proj.weight[dead] = 0
                layer.mlp.down_proj.weight[dead] = 0

            def live(norm: nn.Module) -> nn.Module:
                over_hidden = norm.weight.numel() == D  # the others work within a head
                return LiveNorm(norm, dead, corrected) if over_hidden else ExactRMSNorm(norm)

            return with_exact_norms(model, live)
    return with_exact_norms(model)


@pytest.mark.parametrize("corrected", [True, False], ids=["norm_gain", "no_repair"])
@pytest.mark.parametrize("scope", ["lockstep", "per_layer"])
@pytest.mark.parametrize("kind", ["ffn", "attention", "hidden"])
@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("model_type", FAMILIES)
def test_masking_equals_removing(
    model_type: str, name: str, kind: str, scope: str, corrected: bool
) -> None:
    if kind == "hidden" and scope == "per_layer":
        scope = "lockstep"  # one residual stream: there is nothing per layer about it
    model = tiny(name, torch.float64, model_type=model_type)
    config = shape(name, model_type=model_type)
    ids = tokens()
    plan = plan_for(kind, scope, config["num_key_value_heads"])
    expected = reference(model, plan, kind, corrected)(ids).logits

    with_exact_norms(model)
    family = family_of(config)
    knobs = {} if kind == "hidden" else {"scope": scope}
    space = [Bound(REGISTRY.get("space", kind), knobs)]
    axes = groups.axes_of(model, family, config)
    sets = groups.find(axes, space)
    ledger = Ledger({s.name: s.size for s in sets})
    repairs = [Bound(REGISTRY.get("repair", "norm_gain"))] if corrected else []
    params = dict(model.named_parameters())
    the_norms = list(norms(model, family, LAYERS))

    mask(plan, sets, params, ledger, norms=the_norms, repairs=repairs)
    torch.testing.assert_close(model(ids).logits, expected, rtol=0, atol=1e-9)
    commit(sets, params, ledger, norms=the_norms)
    agree(model)
    after = groups.axes_of(model, family, config)
    adapt(model, family, config, after.widths)
    torch.testing.assert_close(model(ids).logits, expected, rtol=0, atol=1e-9)
    assert {n: after.widths[n] for n in plan} == {
        n: axes.widths[n] - len(units) for n, units in plan.items()
    }
    assert sum(p.numel() for p in model.parameters()) == axes.count(ledger.widths())
    if config["tie_word_embeddings"]:
        assert model.lm_head.weight is model.model.embed_tokens.weight

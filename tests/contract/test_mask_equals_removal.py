"""The golden test: a masked mini-group and a removed one are the same function, in fp64, and both
are what ``by_hand`` says; for every family, kind of mini-group and scope.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from effcompress.network.pruned_model import PrunedModel
from effcompress.registry import REGISTRY, Bound
from tests.conftest import (
    FAMILIES,
    GROUPED,
    MIXTURES,
    SHAPES,
    shape,
    tiny,
    tokens,
    unrounded,
    with_exact_norms,
)
from tests.contract.by_hand import Plan, reference

LAYERS = range(3)
SPACES: dict[str, dict[str, Any]] = {
    "ffn": {},
    "attention": {},
    "query": {"unit": "q_per_group"},
    "hidden": {},
    "expert": {},
    "layer": {},
    "attention_block": {},
    "mlp_block": {},
}


def kinds_of(model_type: str) -> list[str]:
    """What a family has."""
    lacks = set() if model_type in MIXTURES else {"expert"}
    lacks |= set() if model_type in GROUPED else {"query"}
    return [kind for kind in SPACES if kind not in lacks]


CASES = [
    (model_type, kind, scope)
    for model_type in FAMILIES
    for kind in kinds_of(model_type)
    for scope in ("lockstep", "per_layer")
    # One residual stream, and layers that differ by nature.
    if scope == "per_layer" or kind not in ("hidden", "layer", "attention_block", "mlp_block")
]


def space(kind: str) -> list[Bound]:
    """The pruning space in which a kind may go."""
    name = "attention" if kind == "query" else kind
    return [Bound(REGISTRY.get("space", name), SPACES[kind])]


def plan_for(pruned: PrunedModel, kind: str, scope: str) -> Plan:
    """About a third of the units; per layer: another number in each."""
    if kind in ("layer", "attention_block", "mlp_block"):
        return {f"{kind}.0": [0]} if kind == "attention_block" else {f"{kind}.1": [0]}
    plan = {}
    for n, s in enumerate(pruned.sets):
        most = s.size - s.minimum
        count = min(most, max(1, s.size // 3) if scope == "lockstep" else n + 1)
        plan[s.name] = sorted((n + 2 * k) % s.size for k in range(count))
        if s.parts > 1:  # one of each group of experts
            plan[s.name] = [p * (s.size // s.parts) + (n + p) % 3 for p in range(s.parts)]
    if kind == "hidden":
        plan["hidden"] = list(range(0, 48, 3))
    return plan


@pytest.fixture(autouse=True)
def _no_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    unrounded(monkeypatch)


@torch.no_grad()
def logits(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    return model(ids, use_cache=False).logits


@pytest.mark.parametrize(("model_type", "kind", "scope"), CASES)
def test_masking_equals_removing(
    model_type: str, kind: str, scope: str, record_property: Callable[[str, object], None]
) -> None:
    name = "mha_untied" if kind == "attention" and scope == "lockstep" else "gqa_tied"
    corrected = kind == "hidden"
    model = tiny(name, torch.float64, model_type=model_type)
    if model_type in MIXTURES:
        model.set_experts_implementation("eager")  # grouped kernels know no fp64
    pruned = PrunedModel(model, shape(name, model_type=model_type), space(kind))
    plan = plan_for(pruned, kind, scope)
    ids = tokens()
    expected = logits(reference(model, model_type, plan, corrected), ids)
    with_exact_norms(model)
    before = logits(model, ids)

    repairs = [Bound(REGISTRY.get("repair", "norm_gain"))] if corrected else []
    pruned.mask(plan, repairs=repairs)
    assert float((logits(model, ids) - before).abs().max()) > 1e-3
    masked = float((logits(model, ids) - expected).abs().max())
    pruned.commit()
    removed = float((logits(model, ids) - expected).abs().max())
    assert max(masked, removed) < 1e-9
    record_property("family", model_type)
    record_property("kind", kind)
    record_property("difference", max(masked, removed))
    record_property("approximate", kind in pruned.family.approximate)
    assert sum(p.numel() for p in model.parameters()) == pruned.params
    assert not pruned.ledger.pending()
    if shape(name, model_type=model_type).get("tie_word_embeddings"):
        assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    works(model, ids)


def works(model: nn.Module, ids: torch.Tensor) -> None:
    """Forward, backward and generation with a cache, with both ways to compute attention."""
    found = []
    for how in ("eager", "sdpa") if model._supports_sdpa else ("eager",):
        model.set_attn_implementation(how)
        found.append(logits(model, ids))
    torch.testing.assert_close(found[0], found[-1], rtol=0, atol=1e-9)
    model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in trained)
    made = [
        model.generate(
            ids[:1],
            attention_mask=torch.ones_like(ids[:1]),
            max_new_tokens=6,
            min_new_tokens=6,
            do_sample=False,
            use_cache=cache,
            pad_token_id=0,
        )
        for cache in (True, False)
    ]
    assert torch.equal(made[0], made[1])


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("corrected", [True, False], ids=["norm_gain", "no_repair"])
def test_all_at_once(name: str, corrected: bool) -> None:
    """All kinds and a layer in one plan; tied or not, heads shared or not."""
    model = tiny(name, torch.float64)
    kinds = ["ffn", "attention", "hidden", "layer"]
    pruned = PrunedModel(model, shape(name), [space(kind)[0] for kind in kinds])
    plan = {"hidden": [1, 40], "layer.1": [0], "ffn.0": [3], "ffn.2": [0, 39], "attention.2": [1]}
    ids = tokens()
    expected = logits(reference(model, "llama", plan, corrected), ids)
    with_exact_norms(model)
    repairs = [Bound(REGISTRY.get("repair", "norm_gain"))] if corrected else []
    pruned.mask(plan, repairs=repairs)
    torch.testing.assert_close(logits(model, ids), expected, rtol=0, atol=1e-9)
    pruned.commit()
    torch.testing.assert_close(logits(model, ids), expected, rtol=0, atol=1e-9)
    assert pruned.depth.layers == (0, 2) and model.config.num_hidden_layers == 2
    # The next cut speaks of original numbers still.
    then = {"hidden": [0], "ffn.2": [20], "attention.0": [0]}
    both = {n: sorted({*plan.get(n, []), *then.get(n, [])}) for n in {*plan, *then}}
    if not corrected:
        whole = tiny(name, torch.float64)
        expected = logits(reference(with_exact_norms(whole), "llama", both), ids)
        pruned.mask(then)
        torch.testing.assert_close(logits(model, ids), expected, rtol=0, atol=1e-9)

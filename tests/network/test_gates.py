"""Learned gates: masking equals cutting, in every family; and the published numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from effcompress.network.gates import LearnedGates
from effcompress.network.pruned_model import PrunedModel
from effcompress.registry import REGISTRY, Bound
from effcompress.spec import GatesSpec, PruneSpec, TargetSpec
from effcompress.types import DEPTH, Plan
from tests.conftest import FAMILIES, PLAIN, tiny

KINDS = ("hidden", "layer", "attention", "ffn", "attention_block", "mlp_block", "query")


def bound(kind: str, name: str, **given: Any) -> Bound:
    plugin = REGISTRY.get(kind, name)
    return Bound(plugin, {k.name: given.get(k.name, k.default) for k in plugin.knobs.values()})


def space(kind: str) -> Bound:
    if kind == "query":
        return bound("space", "attention", unit="q_per_group")
    return bound("space", kind)


def spec(kinds: tuple[str, ...], target: TargetSpec, **more: Any) -> PruneSpec:
    gates = GatesSpec(
        gate=bound("gate", "hard_concrete"), constraint=bound("constraint", "lagrangian"), **more
    )
    return PruneSpec(
        target=target,
        space=tuple(space(kind) for kind in kinds),
        criterion=bound("criterion", "learned_gates"),
        schedule=bound("schedule", "at_end"),
        gates=gates,
    )


def in_fp64(module: nn.Module) -> None:
    """Root-mean-square norms of transformers compute in fp32 whatever they are given; here in
    fp64.
    """

    def forward(norm: Any, x: torch.Tensor) -> torch.Tensor:
        eps = getattr(norm, "variance_epsilon", None) or norm.eps
        gain = norm.weight + (1 if "Gemma" in type(norm).__name__ else 0)
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * gain

    for child in module.modules():
        if "RMSNorm" in type(child).__name__:
            stock = type(child)
            child.__class__ = type(f"Wide{stock.__name__}", (stock,), {"forward": forward})


def gated(
    name: str, kinds: tuple[str, ...], seed: int = 0, **more: Any
) -> tuple[PrunedModel, LearnedGates]:
    """A tiny model in fp64 under gates that are all over the place, none of them trivial."""
    module = tiny(name, torch.float64, **more)
    module.eval()
    in_fp64(module)
    module.config._experts_implementation = "eager"  # kernels of mixtures take no fp64
    prune = spec(kinds, TargetSpec(keep=0.5))
    pruned = PrunedModel(module, module.config.to_dict(), prune.space)
    gates = LearnedGates(pruned, prune, round(pruned.params * 0.5), seed, torch.device("cpu"))
    with torch.no_grad():
        gates.logit_N.copy_(2 * torch.randn(gates.logit_N.shape))
    return pruned, gates


def plan_of(pruned: PrunedModel, gates: LearnedGates) -> Plan:
    """The lowest third of every row goes, and at most one of all layers and blocks."""
    plan: Plan = {}
    depth = [r for r in gates.rows if r.kind in DEPTH]
    for row in gates.rows:
        values = gates.logit_N[row.start : row.stop].detach()
        order = values.argsort().tolist()
        if row.kind in DEPTH:
            plan[row.names[order[0] if row is depth[0] else order[-1]]] = [0]
        else:
            plan[row.names[0]] = sorted(order[: max(1, len(order) // 3)])
    if len(depth) > 1:  # no layer without both blocks, and always one left
        for row in depth[1:]:
            for name in row.names:
                plan.pop(name, None)
    return plan


def kinds_of(model_type: str) -> list[tuple[str, ...]]:
    there = [k for k in KINDS if not (k == "query" and model_type in PLAIN)]
    return [*((kind,) for kind in there), tuple(there)]


@pytest.mark.parametrize("model_type", FAMILIES)
@pytest.mark.parametrize("tied", ["gqa_tied", "gqa_untied"])
def test_masked_equals_cut(model_type: str, tied: str) -> None:
    torch.manual_seed(1)
    ids_BT = torch.randint(0, 61, (2, 9))
    for kinds in kinds_of(model_type):
        pruned, gates = gated(tied, kinds, model_type=model_type)
        plan = plan_of(pruned, gates)
        values = gates.values(plan)
        with torch.no_grad():
            plain = pruned.module(ids_BT).logits
            with gates.forward.using(values):
                masked = pruned.module(ids_BT).logits
            torch.testing.assert_close(pruned.module(ids_BT).logits, plain, rtol=0, atol=0)
            assert (masked - plain).abs().max() > 1e-3, kinds
            gates.forward.absorb(values)
            gates.forward.close()
            pruned.mask(plan)
            assert (pruned.module(ids_BT).logits - masked).abs().max() < 1e-9, kinds
            pruned.commit()
            assert (pruned.module(ids_BT).logits - masked).abs().max() < 1e-9, kinds

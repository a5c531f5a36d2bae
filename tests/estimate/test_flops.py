"""Operations by arithmetic on widths, against those that torch counts while a model runs."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from effcompress.estimate.flops import Flops
from effcompress.network.pruned_model import PrunedModel
from effcompress.registry import REGISTRY, Bound
from tests.conftest import FAMILIES, MIXTURES, tiny, tokens


def counted(model: torch.nn.Module) -> float:
    """Operations of a token in a forward pass of 2 x 12; all 12 x 12 pairs are multiplied."""
    ids_BT = tokens(2, 12)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=ids_BT)
    return counter.get_total_flops() / ids_BT.numel()


@pytest.mark.parametrize("family", FAMILIES)
def test_operations_are_those_that_are_counted(family: str) -> None:
    """Before and after a cut of everything that has a width: channels of the stream, of one layer's
    FFN or experts, a head, whole experts.
    """
    model = tiny(model_type=family, attn_implementation="eager")
    model.config._experts_implementation = "eager"  # fused kernels of experts are not counted
    mixed = family in MIXTURES
    kinds = ["attention", "hidden", "ffn", *(["expert"] if mixed else [])]
    space = [Bound(REGISTRY.get("space", kind)) for kind in kinds]
    config = model.config.to_dict()
    pruned = PrunedModel(model, config, space)
    # Causal attention costs half the pairs: those of twice the length are all of them.
    flops = Flops(pruned.parent, config, 24)
    assert flops.per_token({}) == 3 * counted(model)
    plan = {"hidden": [3, 5], "attention.0": [1]}
    inside = [s for s in pruned.sets if s.kind in {"expert", "expert_ffn", "ffn"}]
    plan |= {s.name: [0, s.size // s.parts if s.parts > 1 else 2] for s in inside}
    cut = {name.split(".")[0] for name in plan}
    assert cut >= {"attention", "hidden"} | ({"expert", "expert_ffn"} if mixed else {"ffn"})
    pruned.mask(plan, repairs=[Bound(REGISTRY.get("repair", "norm_gain"))])
    pruned.commit()
    assert flops.per_token(pruned.ledger.widths()) == 3 * counted(pruned.module)

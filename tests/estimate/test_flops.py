"""Operations by arithmetic on widths, against those that torch counts while a model runs."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from transformers.models.qwen3_5.modeling_qwen3_5 import torch_recurrent_gated_delta_rule

from effcompress import groups
from effcompress.estimate import flops
from effcompress.estimate.flops import Flops
from effcompress.model.families import family_of
from effcompress.model.families.llama import LLAMA
from effcompress.network.pruned_model import PrunedModel
from effcompress.registry import REGISTRY, Bound
from tests.conftest import FAMILIES, MIXTURES, shape, tiny, tokens


def counted(model: torch.nn.Module) -> float:
    """Operations of a token in a forward pass of 2 x 12; all 12 x 12 pairs are multiplied. Of
    modules with a convolution over time, projections and convolution count.
    """
    ids_BT = tokens(2, 12)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=ids_BT)
    beyond = sum(recurrent(model, counter.get_flop_counts(), *ids_BT.shape))
    return (counter.get_total_flops() - beyond) / ids_BT.numel()


def recurrent(
    model: torch.nn.Module, counts: dict[str, dict[Any, int]], rows: int, length: int
) -> Iterator[int]:
    """What is counted in modules with a convolution beside their projections, and of the
    convolution what it computes of the padding behind the last token. Of a projection that is not
    called, the module multiplies by the weight itself.
    """
    for path, module in model.named_modules():
        parts = dict(module.named_children())
        kernels = [c.kernel_size[0] for c in parts.values() if isinstance(c, torch.nn.Conv1d)]
        if not kernels:
            continue
        name = f"{type(model).__name__}.{path}"
        own = sum(counts[name].values())
        for part, child in parts.items():
            if isinstance(child, torch.nn.Linear):
                called = counts.get(f"{name}.{part}")
                mine = 2 * rows * length * child.weight.numel()
                own -= mine if called is None else sum(called.values())
        padded = counts[name][torch.ops.aten.convolution]
        yield own - padded * length // (length + kernels[0] - 1)


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


def test_layers_of_another_form_cost_what_they_cost() -> None:
    """Values are kept by form and widths: of another factor, and of other widths, they differ."""
    axes, config = groups.from_config(LLAMA, shape("gqa_tied")), shape("gqa_tied")
    alike: dict[Hashable, dict[Hashable, float]] = {}
    parts = [flops._Part(axes, config, {("", ("ffn.0",)): factor}, alike) for factor in (2, 3)]
    assert [part({"ffn.0": n}) for n in (5, 7, 5) for part in parts] == [10, 15, 14, 21, 10, 15]
    kept = flops.Flops(axes, config, 24)
    narrow = ({"ffn.0": 5}, {"ffn.1": 5}, {"hidden": 8, "ffn.0": 5}, {"attention.1": 1}, {})
    for widths in narrow:
        assert kept.per_token(widths) == flops.Flops(axes, config, 24).per_token(widths)
    assert len({kept.per_token(widths) for widths in narrow}) == 4  # layers 0 and 1 are alike


class StateOperations(TorchDispatchMode):
    """Counts additions and products of every entry of a tensor with so many, and sums over it."""

    def __init__(self, entries: int) -> None:
        super().__init__()
        self.entries, self.count = entries, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        touched = out if name in ("mul", "add") else args[0] if name == "sum" else None
        if touched is not None and touched.numel() == self.entries:
            self.count += self.entries
        return out


def test_a_state_costs_what_its_update_multiplies_and_adds() -> None:
    """The recurrence of the library, of one token: decay, reading, outer product, reading."""
    config = {"linear_num_key_heads": 3, "linear_num_value_heads": 6}
    config |= {"linear_key_head_dim": 7, "linear_value_head_dim": 5}
    one = torch.rand(2, 1, 1, 6, 7).unbind()
    entries = 6 * 7 * 5
    with StateOperations(entries) as counter, torch.no_grad():
        torch_recurrent_gated_delta_rule(
            *(*one, torch.rand(1, 1, 6, 5)),
            g=-torch.rand(1, 1, 6),
            beta=torch.rand(1, 1, 6),
            initial_state=torch.rand(1, 6, 7, 5),
            output_final_state=False,
        )
    of_a_head = family_of({"model_type": "qwen3_5_text"}).recurrence["linear_head"](config)
    assert 3 * of_a_head == counter.count

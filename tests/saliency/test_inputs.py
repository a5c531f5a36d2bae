"""Saliency from statistics of inputs, where a mini-group's inputs lie in several stretches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from effcompress.measure.grams import Grams, readers
from effcompress.measure.statistics import InputStatistics
from effcompress.network.pruned_model import PrunedModel
from effcompress.registry import REGISTRY, Bound
from effcompress.saliency.inputs import score_inputs
from tests.conftest import tokens
from tests.contract.zoo import config_of

PARTS, HEADS, WIDE = 4, 24, 2


def criterion(name: str) -> Bound:
    plugin = REGISTRY.get("criterion", name)
    return Bound(plugin, {n: k.default for n, k in plugin.knobs.items()})


def codegen() -> tuple[PrunedModel, Tensor, dict[int, Tensor]]:
    """A model whose heads lie in four stretches, tokens, and what its output projections read."""
    config = AutoConfig.for_model(**config_of("codegen"))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module: Any = AutoModelForCausalLM.from_config(config).eval()
    space = [Bound(REGISTRY.get("space", "attention"), {"scope": "per_layer"})]
    pruned, ids, seen = PrunedModel(module, config.to_dict(), space), tokens(8, 30), {}
    for i, layer in enumerate(module.transformer.h):
        layer.attn.out_proj.register_forward_pre_hook(
            lambda _m, args, i=i: seen.__setitem__(i, args[0].detach().double().flatten(0, 1))
        )
    return pruned, ids, seen


@pytest.mark.parametrize("name", ["wanda", "ziplm"])
def test_every_stretch_of_a_head_counts(name: str) -> None:
    """Unit u are heads u of each quarter of them: its inputs are read at four places."""
    pruned, ids, seen = codegen()
    bound = criterion(name)
    params = readers(pruned.module, pruned.axes, pruned.sets)
    read = InputStatistics(pruned.module, params, bound.plugin.needs, bound.plugin.of_inputs)
    grams = Grams(pruned.module, params, tokens=1 << 40, decay=1.0)
    with read.listening(), grams.listening(), torch.no_grad():
        pruned.module(input_ids=ids)
    found = score_inputs(pruned.sets, bound, read, {}, grams=grams)
    for i, x_TI in seen.items():
        linear = pruned.module.get_submodule(f"transformer.h.{i}.attn.out_proj")
        weight_OI = linear.weight.detach().double()  # type: ignore[union-attr, operator]
        columns_UI = torch.arange(HEADS * WIDE).view(PARTS, -1, WIDE).transpose(0, 1).flatten(1)
        if name == "wanda":
            each_I = (weight_OI.abs() * x_TI.square().mean(0).sqrt()).sum(0)
            wanted = each_I[columns_UI].sum(1)
        else:
            wanted = one_by_one(weight_OI, x_TI.T @ x_TI / len(x_TI), columns_UI)
        torch.testing.assert_close(found[f"attention.{i}"].double(), wanted, rtol=1e-4, atol=1e-6)


def one_by_one(weight_OI: Tensor, hess_II: Tensor, columns_UI: Tensor) -> Tensor:
    """The joint error, relative to that without the layer, when always the unit goes next without
    which least squares of the others are best.
    """
    hess_II = hess_II + 0.01 * hess_II.diagonal().mean() * torch.eye(len(hess_II)).double()

    def error(gone: list[int]) -> float:
        out = columns_UI[gone].flatten().tolist()
        keep = [j for j in range(len(hess_II)) if j not in out]
        change_OI = weight_OI.clone()
        right_KO = (hess_II @ weight_OI.T)[keep]
        change_OI[:, keep] -= torch.linalg.solve(hess_II[keep][:, keep], right_KO).T
        return float(((change_OI @ hess_II) * change_OI).sum())

    order: list[int] = []
    errors = torch.zeros(len(columns_UI), dtype=torch.float64)
    while len(order) < len(errors):
        tried = {u: error([*order, u]) for u in range(len(errors)) if u not in order}
        order.append(min(tried, key=tried.__getitem__))
        errors[order[-1]] = tried[order[-1]]
    return errors / errors[order[-1]]

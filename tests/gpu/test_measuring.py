"""What calibration measures on a device in fp32, against the CPU in fp64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from effcompress.measure.grams import Grams, readers
from effcompress.measure.statistics import InputStatistics, LayerStatistics
from effcompress.measure.stats import collect
from effcompress.measure.taps import MaskGradients
from effcompress.network.pruned_model import PrunedModel
from effcompress.registry import REGISTRY, Bound
from effcompress.removal.selftest import same_function
from tests.conftest import tiny, tokens

IDS = tokens(5, 16)


def measured(device: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """Every kind of statistic, by name, on the CPU in fp64."""
    module = tiny(dtype=dtype)
    space = [Bound(REGISTRY.get("space", name)) for name in ("attention", "ffn", "hidden")]
    pruned = PrunedModel(module.to(device), module.config.to_dict(), space)
    axes, sets = pruned.axes, pruned.sets
    params = readers(module, axes, sets)
    influence = {"influence": REGISTRY.get("statistic", "influence")}
    inputs, layers = InputStatistics(module, params), LayerStatistics(module, axes, influence)
    grams = Grams(module, params, tokens=1 << 20, decay=1.0)
    masks, found = MaskGradients(module, axes, sets), dict[str, Tensor]()

    def take(name: str, mask_grad_TG: Tensor) -> None:
        found[f"mask {name}"] = found.get(f"mask {name}", 0) + mask_grad_TG.square().sum(0)

    listening = inputs.listening(), layers.listening(), grams.listening(), masks.handing_to(take)
    fisher = Bound(REGISTRY.get("hessian", "fisher_diag"))
    needs = ("weight", "grad", "hess", "mask_grad")
    stats = collect(module, IDS, needs, fisher, listening=listening)
    for param in params:
        found |= {f"{param} {key}": value for key, value in inputs.read(param).items()}
        gram_II = grams.read(param)
        assert gram_II is not None
        found[f"{param} gram"] = gram_II
    for name in ("model.layers.1.mlp.down_proj.weight", "model.norm.weight"):
        rows = stats.rows(name, 0, stats.shape(name)[0])
        found |= {f"{name} {key}": rows[key] for key in ("grad", "hess")}
    values = layers.read()["influence"]
    found["influence"] = torch.tensor([values[name] for name in sorted(values)])
    assert all(t.device.type == torch.device(device).type for t in stats.rows(name, 0, 1).values())
    return {name: value.detach().double().cpu() for name, value in found.items()}


def test_statistics(device: str) -> None:
    here, exact = measured(device, torch.float32), measured("cpu", torch.float64)
    assert here.keys() == exact.keys() and len(here) > 80
    for name, value in exact.items():
        far = float((here[name] - value).abs().max()) / max(1e-9, float(value.abs().max()))
        assert far < 1e-3, (name, far)


@pytest.mark.parametrize("kind", ["attention", "ffn", "hidden"])
def test_a_commit(device: str, kind: str) -> None:
    """Masked units go, moments with them, and the model is the same function."""
    module = tiny()
    space = [Bound(REGISTRY.get("space", kind))]
    pruned = PrunedModel(module.to(device), module.config.to_dict(), space)
    optimizer = torch.optim.AdamW(module.parameters(), fused=True)
    ids = tokens().to(device)
    module(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    name = next(s.name for s in pruned.sets)
    pruned.mask({s.name: [1] for s in pruned.sets}, optimizer=optimizer)
    with same_function(module, ids, optimizer) as proof:
        pruned.commit(optimizer, None)
    assert proof.max_logit_difference < 1e-4
    assert pruned.ledger.widths()[name] == pruned.ledger.sizes[name] - 1
    shapes = {p.shape for p in module.parameters()}
    assert {s["exp_avg"].shape for s in optimizer.state.values()} == shapes
    assert {p.device.type for p in module.parameters()} == {torch.device(device).type}

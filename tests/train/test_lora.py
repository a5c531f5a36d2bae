"""Low-rank updates through peft: what the knobs mean."""

from __future__ import annotations

import pytest
import torch

from effcompress.spec import LoraSpec
from effcompress.train.lora import Lora, is_update, updates
from tests.conftest import tiny, tokens

PATH = "model.layers.1.mlp.up_proj"


def test_an_update_is_scaled_by_alpha_over_rank() -> None:
    model = tiny()
    before = model.get_submodule(PATH).weight.detach().clone()
    lora = Lora(model, [PATH], LoraSpec(rank=4, alpha=6.0, dropout=0.0))
    held = updates(model)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in held.values():
            p.copy_(torch.randn(p.shape, generator=draw))
    down, up = (next(p for n, p in held.items() if f"lora_{x}" in n).detach() for x in "AB")
    assert down.shape == (4, 48) and up.shape == (40, 4)
    lora.merge()
    change = model.get_submodule(PATH).weight.detach() - before
    torch.testing.assert_close(change, 6.0 / 4 * up @ down, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("dropout", "same"), [(0.0, True), (0.5, False)])
def test_dropout_stands_in_front_of_an_update(dropout: float, same: bool) -> None:
    model = tiny()
    Lora(model, [PATH], LoraSpec(rank=4, alpha=6.0, dropout=dropout))
    with torch.no_grad():
        for p in updates(model).values():
            p.fill_(0.3)
    torch.manual_seed(0)
    model.train()
    one, two = (model(input_ids=tokens()).logits for _ in "12")
    assert torch.equal(one, two) == same


def test_merging_changes_what_has_updates_and_nothing_that_is_computed() -> None:
    model, before = tiny(), {n: p.clone() for n, p in tiny().named_parameters()}
    lora = Lora(model, [PATH], LoraSpec(rank=2, alpha=16.0, dropout=0.0))
    assert [n for n, p in model.named_parameters() if p.requires_grad != is_update(n)] == []
    assert torch.equal(logits(model), logits(tiny()))  # at first an update is zero
    with torch.no_grad():
        for p in updates(model).values():
            p.normal_(0, 0.1, generator=torch.Generator().manual_seed(p.numel()))
    updated = logits(model)
    assert not torch.equal(updated, logits(tiny()))
    lora.merge()
    torch.testing.assert_close(logits(model), updated, rtol=1e-4, atol=1e-4)
    after = dict(model.named_parameters())
    assert after.keys() == before.keys()
    assert [n for n in before if not torch.equal(before[n], after[n])] == [f"{PATH}.weight"]


@torch.no_grad()
def logits(model: torch.nn.Module) -> torch.Tensor:
    return model.eval()(input_ids=tokens()).logits

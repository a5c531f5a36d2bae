"""Low-rank updates through peft: what the knobs mean."""

from __future__ import annotations

import pytest
import torch

from effcompress.spec import LoraSpec
from effcompress.train.lora import Lora, plain_name, updates
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


def test_only_an_update_is_trained_and_nothing_of_it_is_left_behind() -> None:
    model, ids = tiny().eval(), tokens(2)
    names, logits = set(dict(model.named_parameters())), model(input_ids=ids).logits
    lora = Lora(model, [PATH], LoraSpec(rank=2, alpha=6.0, dropout=0.0))
    held = updates(model)
    assert {n for n, p in model.named_parameters() if p.requires_grad} == held.keys()
    assert {plain_name(n) for n, p in model.named_parameters() if n not in held} == names
    assert torch.equal(model(input_ids=ids).logits, logits)  # it begins as no change at all
    lora.merge()
    assert type(model.get_submodule(PATH)) is torch.nn.Linear and not updates(model)
    assert set(dict(model.named_parameters())) == names

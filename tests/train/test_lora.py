"""LoRA by its formula: W + alpha / rank B A, alone trained, merged into the module's own layers."""

from __future__ import annotations

import torch

from effcompress.spec import LoraSpec
from effcompress.train.lora import Lora, plain_name, updates
from tests.conftest import tiny, tokens

PATH = "model.layers.1.mlp.up_proj"


def test_an_update_is_scaled_by_alpha_over_rank_and_merged() -> None:
    model, ids = tiny(), tokens(2)
    names = dict(model.named_parameters()).keys()
    weight = model.get_submodule(PATH).weight.detach().clone()
    lora = Lora(model, [PATH], LoraSpec(rank=2, alpha=6.0, dropout=0.0))
    held = updates(model)
    assert len(held) == 2
    assert {n for n, p in model.named_parameters() if p.requires_grad} == held.keys()
    assert {plain_name(n) for n, p in model.named_parameters() if n not in held} == set(names)
    down, up = (next(p for n, p in held.items() if part in n) for part in ("lora_A", "lora_B"))
    assert down.shape[0] == up.shape[1] == 2 and not up.any()  # it begins as no change at all
    with torch.no_grad():
        up.copy_(torch.randn(up.shape, generator=torch.Generator().manual_seed(0)))
    expected = weight + 6.0 / 2 * (up @ down).detach()
    attached = model.eval()(input_ids=ids).logits
    lora.merge()
    merged = model.get_submodule(PATH)
    assert type(merged) is torch.nn.Linear and not updates(model)
    torch.testing.assert_close(merged.weight.detach(), expected)
    torch.testing.assert_close(model(input_ids=ids).logits, attached, rtol=1e-4, atol=1e-5)

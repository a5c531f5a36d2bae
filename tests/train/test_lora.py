"""Low-rank updates by hand."""

from __future__ import annotations

import pytest
import torch

from effcompress.spec import LoraSpec
from effcompress.train.lora import Lora, plain_name, updates
from tests.conftest import tiny, tokens

PATHS = ["model.layers.0.mlp.up_proj", "model.layers.2.self_attn.q_proj"]


@pytest.mark.parametrize(("rank", "alpha"), [(2, 16.0), (4, 4.0)])
def test_an_update_is_alpha_over_rank_times_its_product(rank: int, alpha: float) -> None:
    """Before it is merged and afterwards; everything else stays as it was."""
    model, before = tiny(), {n: p.clone() for n, p in tiny().named_parameters()}
    lora = Lora(model, PATHS, LoraSpec(rank=rank, alpha=alpha, dropout=0.0))
    trained = updates(model)
    assert sorted(n for n, p in model.named_parameters() if p.requires_grad) == sorted(trained)
    assert len(trained) == 2 * len(PATHS)
    torch.testing.assert_close(logits(model), logits(tiny()), rtol=0, atol=0)  # at first, zero
    with torch.no_grad():
        for p in trained.values():
            p.normal_(0, 0.1, generator=torch.Generator().manual_seed(p.numel()))
    factors = {plain_name(name): p.detach().clone() for name, p in trained.items()}
    updated = logits(model)
    lora.merge()
    torch.testing.assert_close(logits(model), updated, rtol=1e-4, atol=1e-4)
    for name, p in model.named_parameters():
        path = name.removesuffix(".weight")
        expected = before[name]
        if path in PATHS:
            down, up = (
                next(p for n, p in factors.items() if n.startswith(path) and f"lora_{part}" in n)
                for part in "AB"
            )
            assert down.shape[0] == up.shape[1] == rank
            expected = expected + alpha / rank * up @ down
        torch.testing.assert_close(p.detach(), expected, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def logits(model: torch.nn.Module) -> torch.Tensor:
    return model.eval()(input_ids=tokens()).logits

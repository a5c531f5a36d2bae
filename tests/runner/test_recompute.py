"""Layers that are computed once more in the backward: the same run, with less memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from transformers import LlamaConfig, LlamaForCausalLM

from effcompress import load_recipe, run
from effcompress.errors import RunError
from effcompress.estimate.activations import activations
from effcompress.groups import axes_of, full_depth
from effcompress.model.families import family_of
from effcompress.recompute import recompute_layers, recomputing
from effcompress.runner import run as story
from tests.runner.toys import events, recipe, repeatable

B = ["prune.repair=[norm_gain, obs_update]"]
CASES = {
    "A": [],
    "B, accumulated": [*B, "train.micro_batch_size=2"],
    "masks": ["prune.criterion=mask_fisher"],
    "bf16": ["train.precision=bf16", "prune.criterion=taylor_second", "prune.hessian=adam"],
}


@pytest.mark.parametrize("case", CASES)
def test_the_same_run_bit_for_bit(
    tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(story, "export_and_prove", lambda *_: None)
    path = recipe(tmp_path, tokens=1536)
    again: list[bool] = []
    real = nn.functional.silu
    monkeypatch.setattr(
        nn.functional, "silu", lambda x, **how: (again.append(recomputing()), real(x, **how))[1]
    )
    for name, sets in {"plain": [], "again": ["train.recompute=true"]}.items():
        again.clear()
        run(load_recipe(path, [*CASES[case], *sets]), output=tmp_path / name)
        assert any(again) is (name == "again")
    one, two = tmp_path / "plain", tmp_path / "again"
    assert (one / "plans.jsonl").read_bytes() == (two / "plans.jsonl").read_bytes()
    for kind in ("step", "cut", "commit", "evaluation"):
        assert repeatable(events(one, kind)) == repeatable(events(two, kind)), kind


@pytest.mark.parametrize("bf16", [False, True])
def test_what_is_kept_is_what_the_arithmetic_says(bf16: bool) -> None:
    """Tensors alive when the backward begins; those of one layer are made in it."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=80,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=64,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config).train()
    recompute_layers(model)
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, nn.Parameter) and tensor.is_floating_point():
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    ids_BT = torch.arange(64)[None]
    cast = torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16)
    with cast, saved_tensors_hooks(pack, lambda t: t):
        hidden = model.model(input_ids=ids_BT, use_cache=False).last_hidden_state
    assert hidden.requires_grad
    values = config.to_dict()
    family = family_of(values)
    axes = axes_of(model, family, values, full_depth(family, values))
    how = {"bf16": bf16, "recompute": True}
    layers = activations(axes, values, {}, 64, **how).layers * 64
    least = 4 * 4 * 32 * 64  # what four layers read, in fp32
    assert least <= sum(kept.values()) < layers
    assert layers < activations(axes, values, {}, 64, bf16=bf16).layers * 64 / 2


def test_an_architecture_that_cannot() -> None:
    with pytest.raises(RunError, match="Linear cannot recompute its layers"):
        recompute_layers(nn.Linear(2, 2))

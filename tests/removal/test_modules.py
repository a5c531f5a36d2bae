"""Modules agree with their tensors, by the shapes alone."""

from __future__ import annotations

import pytest
import torch

from effcompress.network.pruned_model import PrunedModel
from effcompress.registry import REGISTRY, Bound
from tests.conftest import shape, tiny, tokens


def pruned(kind: str, **more: object) -> PrunedModel:
    config, model = shape("gqa_tied", **more), tiny("gqa_tied", **more)
    return PrunedModel(model, config, [Bound(REGISTRY.get("space", kind))])


def test_the_way_of_experts_follows_from_their_shape() -> None:
    """Whatever the widths were in between: a resumed run knows only those of now."""
    model = pruned("ffn", model_type="qwen3_moe", moe_intermediate_size=16)
    experts = model.module.get_submodule("model.layers.0.mlp.experts")
    stock = experts.config._experts_implementation
    assert stock != "eager"
    for units, wanted in (([0], "eager"), (range(1, 8), stock), ([8], "eager")):
        model.mask({"expert_ffn.0": list(units)})
        model.commit()
        assert experts.config._experts_implementation == wanted
    other = model.module.get_submodule("model.layers.2.mlp.experts")
    assert other.config._experts_implementation == stock


@pytest.mark.parametrize("final_norm", [True, False])
def test_norms_without_gain_know_their_length(final_norm: bool) -> None:
    more = {"layer_norm_elementwise_affine": False, "_remove_final_layer_norm": not final_norm}
    model = pruned("hidden", model_type="opt", **more)
    model.mask({"hidden": [0, 5, 9]})
    with torch.no_grad():
        masked = model.module(tokens(), use_cache=False).logits
        model.commit()
        cut = model.module(tokens(), use_cache=False).logits
    torch.testing.assert_close(cut, masked, rtol=1e-4, atol=1e-4)


def test_sizes_of_modules_are_those_of_their_weights() -> None:
    model = pruned("ffn", intermediate_size=44)
    model.mask({f"ffn.{i}": [0, 1, 2] for i in range(3)})
    model.commit()
    for mlp in (layer.mlp for layer in model.module.model.layers):
        assert (mlp.up_proj.in_features, mlp.up_proj.out_features) == (48, 41)
        assert (mlp.down_proj.in_features, mlp.down_proj.out_features) == (41, 48)
    embedding = model.module.model.embed_tokens
    assert (embedding.num_embeddings, embedding.embedding_dim) == (61, 48)


def test_masked_units_do_not_count() -> None:
    model = pruned("ffn")
    model.mask({f"ffn.{i}": [0, 1, 2] for i in range(3)})
    fewer = model.parent.count({f"ffn.{i}": 37 for i in range(3)})
    assert model.params == fewer < model.parent.count()
    model.commit()
    assert model.params == fewer == sum(p.numel() for p in model.module.parameters())


@pytest.mark.parametrize("repairs", [[], ["norm_gain"]])
@pytest.mark.parametrize("model_type", ["llama", "gemma2"])
def test_masks_one_after_the_other_are_one_mask(model_type: str, repairs: list[str]) -> None:
    """Norms that were narrowed already are narrowed from what is alive, not from the tensors."""
    bound = [Bound(REGISTRY.get("repair", name)) for name in repairs]
    logits = []
    for plans in ([[0, 5], [9, 11, 30]], [[0, 5, 9, 11, 30]]):
        model = pruned("hidden", model_type=model_type)
        for units in plans:
            model.mask({"hidden": units}, repairs=bound)
        with torch.no_grad():
            logits.append(model.module(tokens(), use_cache=False).logits)
    torch.testing.assert_close(*logits, rtol=1e-4, atol=1e-4)

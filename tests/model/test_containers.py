"""Shapes find a stock class; what that class would change silently is refused."""

from __future__ import annotations

import pytest
import torch

from effcompress.errors import RunError
from effcompress.model.containers import container
from effcompress.model.families import LLAMA
from tests.conftest import tiny, tokens


def test_llama_stays_llama_when_it_accepts_the_shape() -> None:
    found = container(
        LLAMA, tiny().config.to_dict(), {"hidden": 44, "ffn": 33, "attention": 2}, 1e-5
    )
    assert found.model_type == "llama" and found.why == ""
    config = found.skeleton.config
    assert (config.hidden_size, config.head_dim, config.num_attention_heads) == (44, 8, 4)
    assert config.rms_norm_eps == 1e-5


def test_mistral_takes_what_llama_refuses_and_computes_the_same() -> None:
    source = tiny()
    widths = {"hidden": 47, "ffn": 40, "attention": 3}
    found = container(LLAMA, source.config.to_dict(), widths, 1e-6)
    assert found.model_type == "mistral"
    assert "llama refuses the shape" in found.why and "not a multiple" in found.why
    config = found.skeleton.config
    assert config.sliding_window is None and config.rope_parameters == source.config.rope_parameters
    same = container(
        LLAMA, {**source.config.to_dict(), "model_type": "llama"}, {**widths, "hidden": 48}, 1e-6
    )
    twin = container(
        LLAMA,
        {**same.skeleton.config.to_dict(), "model_type": "mistral"},
        {**widths, "hidden": 48},
        1e-6,
    )
    state = {n: p.detach() for n, p in source.named_parameters()}
    for skeleton in (same.skeleton, twin.skeleton):
        built = type(skeleton)(skeleton.config).eval()
        built.load_state_dict(state, strict=False)
        built.tie_weights()
        with torch.no_grad():
            torch.testing.assert_close(built(tokens()).logits, source(tokens()).logits)


def test_biases_do_not_fit_into_mistral() -> None:
    source = tiny(attention_bias=True)
    with pytest.raises(RunError, match="mistral: has no attention_bias"):
        container(LLAMA, source.config.to_dict(), {"hidden": 47, "ffn": 40, "attention": 3}, 1e-6)

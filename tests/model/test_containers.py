"""Shapes find a stock class; what that class would change silently is refused."""

from __future__ import annotations

import pytest
import torch

from effcompress import groups
from effcompress.errors import RunError
from effcompress.model.exact import Container, container
from effcompress.model.families.layernorm import GPT2
from effcompress.model.families.llama import LLAMA
from effcompress.types import Family
from tests.conftest import tiny, tokens

SAME = {"hidden": 48, "ffn": 40, "attention": 3, "query": 2}


def stock(config: dict, widths: dict[str, int], family: Family = LLAMA) -> Container:
    """The container of a shape given by its widths."""
    shapes = groups.from_config(family, config, kinds=widths).shapes
    return container(family, {**config, **family.resize(config, widths)}, shapes)


def test_llama_stays_llama_when_it_accepts_the_shape() -> None:
    config = {**tiny().config.to_dict(), "rms_norm_eps": 1e-5}
    found = stock(config, {"hidden": 44, "ffn": 33, "attention": 2, "query": 2})
    assert found.model_type == "llama" and found.why == ""
    config = found.skeleton.config
    assert (config.hidden_size, config.head_dim, config.num_attention_heads) == (44, 8, 4)
    assert config.rms_norm_eps == 1e-5


def test_mistral_takes_what_llama_refuses_and_computes_the_same() -> None:
    source = tiny()
    own = source.config.to_dict()
    found = stock(own, {**SAME, "hidden": 47})
    assert found.model_type == "mistral"
    assert "llama refuses the shape" in found.why and "not a multiple" in found.why
    config = found.skeleton.config
    assert config.sliding_window is None and config.rope_parameters == source.config.rope_parameters
    same = stock({**own, "model_type": "llama"}, SAME)
    twin = stock({**same.skeleton.config.to_dict(), "model_type": "mistral"}, SAME)
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
        stock(source.config.to_dict(), {**SAME, "hidden": 47})


def test_a_class_that_derives_other_shapes_is_refused_in_words() -> None:
    config = tiny("mha_tied", model_type="gpt2").config.to_dict()
    widths = {"hidden": 45, "ffn": 40, "attention": 5}
    with pytest.raises(RunError, match=r"gpt2: it derives \(135, 45\)|gpt2: it derives"):
        stock(config, widths, GPT2)


def test_a_field_that_the_sources_class_does_not_read_is_not_carried() -> None:
    """A file may state more than its class reads: here a window, which Llama has not."""
    stray = {"sliding_window": 8, "use_sliding_window": True, "layer_types": ["sliding"] * 3}
    own = {**tiny().config.to_dict(), **stray}
    config = stock(own, {**SAME, "hidden": 47}).skeleton.config
    assert config.model_type == "mistral" and config.sliding_window is None
    assert getattr(config, "layer_types", None) is None
    assert (config.eos_token_id, config.bos_token_id) == (own["eos_token_id"], own["bos_token_id"])
    read = tiny(model_type="mistral", sliding_window=8).config.to_dict()
    config = stock({**read, "hidden_size": 48}, SAME).skeleton.config
    assert config.sliding_window == 8

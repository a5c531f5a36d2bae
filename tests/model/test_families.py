"""Declarations: every family prices what transformers builds, and strangers are named."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from effcompress import groups
from effcompress.errors import CoverageError, SourceError
from effcompress.model.classes import fields_of
from effcompress.model.families import FAMILIES, family_of
from effcompress.model.families.llama import head_dim
from effcompress.registry import REGISTRY, Bound


def test_head_dim_is_stated_or_derived() -> None:
    assert head_dim({"hidden_size": 64, "num_attention_heads": 4}) == 16
    assert head_dim({"hidden_size": 64, "num_attention_heads": 4, "head_dim": 32}) == 32


def test_resize_always_writes_head_dim() -> None:
    config = {"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4}
    fields = family_of(config).resize(config, {"hidden": 60, "ffn": 7, "attention": 3, "query": 2})
    assert fields["head_dim"] == 16 and fields["num_attention_heads"] == 6


def test_an_unknown_architecture_is_named() -> None:
    with pytest.raises(SourceError, match="'rwkv' is not declared"):
        family_of({"model_type": "rwkv"})


def test_model_types_are_declared_once() -> None:
    """But for classes that are built in several ways: at most one declaration applies to each."""
    names = [family.name for family in FAMILIES]
    assert len(names) == len(set(names))
    for model_type in {t for f in FAMILIES for t in f.model_types}:
        config = {"model_type": model_type, **(fields_of(model_type) or {})}
        declared = [f for f in FAMILIES if model_type in f.model_types]
        assert sum(f.applies(f.complete(config)) for f in declared) == 1, model_type


def test_a_class_that_is_built_in_several_ways_has_several_declarations() -> None:
    stable = {"model_type": "stablelm", "use_parallel_residual": True}
    assert family_of(stable).sublayers["mlp_block"].through == ()
    other = family_of({**stable, "use_parallel_residual": False})
    assert other.sublayers["mlp_block"].through == ("post_attention_layernorm",)
    assert "attention" in family_of({**stable, "qk_layernorm": True}).fixed
    with pytest.raises(SourceError, match="'stablelm' is not declared"):
        family_of({**stable, "num_attention_heads": 129})


@pytest.mark.parametrize("alibi", [False, True])
@pytest.mark.parametrize(
    "built",
    [
        {"new_decoder_architecture": True, "num_kv_heads": 2},
        {"new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1},
        *(
            {"multi_query": shared, "parallel_attn": parallel}
            for shared in (True, False)
            for parallel in (True, False)
        ),
    ],
    ids=str,
)
def test_every_falcon_has_the_sizes_of_its_class(built: dict[str, Any], alibi: bool) -> None:
    config = {"model_type": "falcon", "hidden_size": 48, "num_attention_heads": 6, "alibi": alibi}
    config |= {"vocab_size": 61, "num_hidden_layers": 2, "ffn_hidden_size": 40, **built}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))
    axes = groups.from_config(family_of(config), config)
    assert dict(axes.shapes) == {name: tuple(p.shape) for name, p in model.named_parameters()}
    assert axes == groups.axes_of(model, family_of(config), model.config.to_dict())


def test_heads_whose_number_decides_what_they_see_stay() -> None:
    bloom = {"model_type": "bloom", "vocab_size": 61, "hidden_size": 48, "n_layer": 2, "n_head": 6}
    axes = groups.from_config(family_of(bloom), bloom)
    assert axes.widths["attention.0"] == 6
    with pytest.raises(CoverageError, match=r"'attention', which stays .* 'bloom': .*ALiBi"):
        groups.find(axes, [Bound(REGISTRY.get("space", "attention"))])


def test_a_falcon_that_keeps_its_queries_says_so() -> None:
    falcon = {"model_type": "falcon", "vocab_size": 61, "hidden_size": 48, "num_kv_heads": 3}
    falcon |= {"num_hidden_layers": 2, "num_attention_heads": 6, "new_decoder_architecture": True}
    axes = groups.from_config(family_of(falcon), falcon)
    with pytest.raises(CoverageError, match=r"'query', which stays .*one matrix with the KV heads"):
        groups.find(axes, [Bound(REGISTRY.get("space", "attention"), {"unit": "q_per_group"})])
    kept = groups.find(axes, [Bound(REGISTRY.get("space", "attention"))])
    assert [s.size for s in kept] == [3, 3]

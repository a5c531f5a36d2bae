"""Declarations: every family prices what transformers builds, and strangers are named."""

from __future__ import annotations

import pytest

from effcompress.errors import SourceError
from effcompress.model.classes import fields_of
from effcompress.model.families import FAMILIES, family_of
from effcompress.model.families.llama import head_dim


def test_head_dim_is_stated_or_derived() -> None:
    assert head_dim({"hidden_size": 64, "num_attention_heads": 4}) == 16
    assert head_dim({"hidden_size": 64, "num_attention_heads": 4, "head_dim": 32}) == 32


def test_resize_always_writes_head_dim() -> None:
    config = {"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4}
    fields = family_of(config).resize(config, {"hidden": 60, "ffn": 7, "attention": 3, "query": 2})
    assert fields["head_dim"] == 16 and fields["num_attention_heads"] == 6


def test_an_unknown_architecture_is_named() -> None:
    with pytest.raises(SourceError, match="'mamba' is not declared"):
        family_of({"model_type": "mamba"})


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
    with pytest.raises(SourceError, match="'stablelm' is not declared"):
        family_of({**stable, "qk_layernorm": True})

"""Declarations: every family prices what transformers builds, and strangers are named."""

from __future__ import annotations

import pytest

from effcompress.errors import SourceError
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
    types = [t for f in FAMILIES for t in f.model_types]
    assert len(types) == len(set(types))

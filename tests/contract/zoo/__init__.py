"""Further declared families as tiny models, one table per file: ``SOURCES``, by ``model_type``, or
by another name where ``config`` states the type: of classes that are built in several ways.

``tests/contract/test_more_families.py`` holds all of them to one contract; a family more is a row
more.
"""

from __future__ import annotations

import functools
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from types import MappingProxyType
from typing import Any

VOCABULARY = 258
"""As many tokens as bytes have, so that a folder has a tokenizer."""
BASE: Mapping[str, Any] = MappingProxyType(
    {
        "vocab_size": VOCABULARY,
        "hidden_size": 48,
        "intermediate_size": 40,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 3,
        "head_dim": 12,
        "max_position_embeddings": 128,
        "pad_token_id": None,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
)
"""Fields of every tiny configuration: no size is equal to another, a KV head has two queries."""
DEPTH = ("layer", "attention_block", "mlp_block")
DENSE = ("ffn", "attention", "query", "hidden", *DEPTH)
CHANGES = ("width", "depth", "both")


@dataclass(frozen=True)
class Source:
    """A tiny model of a family and what must work with it."""

    title: str
    """As the page of families shows it."""
    config: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Fields beside ``BASE``, or other values: layers of every kind, heads shared if possible."""
    without: tuple[str, ...] = ()
    """Fields of ``BASE`` that the configuration class has not."""
    kinds: tuple[str, ...] = DENSE
    """All that can be cut."""
    refused: Mapping[tuple[str, str], str] = field(default_factory=dict[tuple[str, str], str])
    """(form, change) -> words of the error, where a form cannot be had. Changes: ``CHANGES``."""
    uncut: tuple[str, ...] = ()
    """Kinds that stay for ``uniform``: the stock class derives another width from theirs."""
    unpadded: tuple[str, ...] = ()
    """Kinds that stay for ``padded``: no zeros fill up to what the stock class derives."""
    stated: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Fields without which the class's own configuration is another variant, or cannot be built."""
    others: tuple[Mapping[str, Any], ...] = ()
    """Further values of fields (biases, ties, optional norms) under which sizes must be right."""
    tolerance: float = 1e-9
    """Largest difference in fp64, relative to the largest logit; say why where it is more."""


@functools.cache
def sources() -> Mapping[str, Source]:
    """All tables of this folder, as one."""
    found: dict[str, Source] = {}
    for module in pkgutil.iter_modules(__path__, f"{__name__}."):
        table: Mapping[str, Source] = import_module(module.name).SOURCES
        assert found.keys().isdisjoint(table)
        found |= table
    return MappingProxyType(found)


def config_of(model_type: str, **more: Any) -> dict[str, Any]:
    """The fields of the tiny configuration of a family."""
    source = sources()[model_type]
    base = {name: value for name, value in BASE.items() if name not in source.without}
    return {"model_type": model_type, **base, **source.config, **more}

"""Modules and configuration agree with the tensors again."""

from __future__ import annotations

from typing import Any

from torch import nn


def agree(module: nn.Module) -> None:
    """Set ``in_features``, ``num_embeddings`` and the like from the weights' shapes."""
    for child in module.modules():
        if isinstance(child, nn.Linear):
            child.out_features, child.in_features = child.weight.shape
        elif isinstance(child, nn.Embedding):
            child.num_embeddings, child.embedding_dim = child.weight.shape


def agree_config(module: nn.Module, fields: dict[str, Any]) -> None:
    """Write configuration fields. They are not validated: between cuts a shape may be one that only
    another container accepts (``model/containers.py``).
    """
    for key, value in fields.items():
        setattr(module.config, key, value)

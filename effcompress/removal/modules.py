"""Modules and configuration agree with the tensors again."""

from __future__ import annotations

from typing import Any

from torch import nn

from effcompress.types import Config, Family, Widths


def agree(module: nn.Module) -> None:
    """Set ``in_features``, ``num_embeddings`` and the like from the weights' shapes."""
    for child in module.modules():
        if isinstance(child, nn.Linear):
            child.out_features, child.in_features = child.weight.shape
        elif isinstance(child, nn.Embedding):
            child.num_embeddings, child.embedding_dim = child.weight.shape


def adapt(module: nn.Module, family: Family, config: Config, widths: Widths) -> None:
    """Tell attentions that keep their own count of heads how many their tensors have now.

    ``widths`` are physical, those of the tensors; ``config`` is the parent's.
    """
    if family.adapt is None:
        return
    for i in range(config["num_hidden_layers"]):
        attention = module.get_submodule(family.attention.replace("{i}", str(i)))
        family.adapt(attention, config, widths[f"attention.{i}"])


def agree_config(module: nn.Module, fields: dict[str, Any]) -> None:
    """Write configuration fields. They are not validated: between cuts a shape may be one that only
    another container accepts (``model/containers.py``).
    """
    for key, value in fields.items():
        setattr(module.config, key, value)

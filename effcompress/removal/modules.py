"""Modules and configuration agree with the tensors again."""

from __future__ import annotations

import copy
from collections import defaultdict
from typing import Any

from torch import nn

from effcompress.types import EXPERT_ROW, AxisMap, Config, Family, in_layer


def agree(module: nn.Module) -> None:
    """Set ``in_features``, ``num_embeddings`` and the like from the weights' shapes."""
    for child in module.modules():
        weight: Any = getattr(child, "weight", None)
        if isinstance(child, nn.Linear):
            child.out_features, child.in_features = weight.shape
        elif isinstance(child, nn.Embedding):
            child.num_embeddings, child.embedding_dim = weight.shape
        elif isinstance(child, nn.LayerNorm) and isinstance(weight, nn.Parameter):
            child.normalized_shape = tuple(weight.shape)
        elif type(child).__name__ == "Conv1D":  # the library's own, rows are inputs
            stored: Any = child
            stored.nx, stored.nf = stored.weight.shape
        _plain_if_odd(child)


def _plain_if_odd(module: Any) -> None:
    """Experts whose rows no grouped kernel takes go one by one. Decided by the shapes alone, so
    that a resumed run decides the same.
    """
    experts = [p for p in module.parameters(recurse=False) if p.dim() == 3]
    if not experts or not hasattr(module, "config"):
        return
    stock = getattr(module, "stock_experts", module.config._experts_implementation)
    odd = any(p.shape[-1] % EXPERT_ROW for p in experts)
    if odd or hasattr(module, "stock_experts"):
        module.stock_experts = stock
        module.config = copy.copy(module.config)  # all layers share one; these may differ
        module.config._experts_implementation = "eager" if odd else stock


def adapt(module: nn.Module, axes: AxisMap, config: Config) -> None:
    """Tell modules what they remember about their sizes besides their tensors.

    ``axes`` are those of the tensors; ``config`` is the parent's.
    """
    for path, values in attributes(axes, config).items():
        target: Any = module.get_submodule(path)
        for name, value in values.items():
            if name.startswith("config."):
                target.config = copy.copy(target.config)  # all layers share one; these may differ
                setattr(target.config, name.removeprefix("config."), value)
            else:
                setattr(target, name, value)


def attributes(axes: AxisMap, config: Config) -> dict[str, dict[str, Any]]:
    """Module path -> attribute -> value, for every module that is there."""
    family, found = axes.family, {}
    for j, i in enumerate(axes.depth.layers):
        # A block that is gone has no widths, and its modules are not asked for.
        widths = defaultdict(int, in_layer(axes.widths, i))
        for inside, values in family.attributes(config, widths).items():
            if not _absent(axes, i, inside):
                found[f"{family.layer.replace('{i}', str(j))}.{inside}"] = dict(values)
    return found


def _absent(axes: AxisMap, layer: int, inside: str) -> bool:
    gone = [
        module
        for kind, sublayer in axes.family.sublayers.items()
        if f"{kind}.{layer}" in axes.depth.absent
        for module in sublayer.modules
    ]
    return any(inside == module or inside.startswith(f"{module}.") for module in gone)


def depth_fields(family: Family, config: Config, layers: tuple[int, ...]) -> dict[str, Any]:
    """Configuration fields when only these layers of ``config`` are kept."""
    fields = {family.aliases.get("num_hidden_layers", "num_hidden_layers"): len(layers)}
    more = family.depth_fields
    return {**fields, **(more(config, layers) if more else {})}


def agree_config(module: nn.Module, fields: dict[str, Any]) -> None:
    """Write configuration fields. They are not validated: between cuts a shape may be one that only
    another container accepts (``model/containers.py``).
    """
    for key, value in fields.items():
        setattr(module.config, key, value)

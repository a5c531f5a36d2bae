"""Layers and blocks that are gone: shorter lists of modules, numbered anew, and silent ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.optim import Optimizer

from effcompress.types import Depth, Family

Silent = Callable[[int, int], nn.Module]
"""(values it returns, number of the layer) -> a module in place of one that is gone; with 0 values
it passes on what it gets.
"""


def cut_depth(
    module: nn.Module, family: Family, before: Depth, after: Depth, silent: Silent
) -> None:
    """Take layers out of the model and put ``silent`` modules where blocks are gone.

    Whatever keeps the number of its layer (``layer_idx``) gets the new one. Modules that are
    already silent stay.
    """
    layers: Any = module.get_submodule(family.layers)
    keep = [j for j, i in enumerate(before.layers) if i in set(after.layers)]
    kept = [layers[j] for j in keep]
    del layers[:]
    layers.extend(kept)
    for j, i in enumerate(after.layers):
        for part in layers[j].modules():
            if hasattr(part, "layer_idx"):
                part.layer_idx = j
        for kind, sublayer in family.sublayers.items():
            if f"{kind}.{i}" in after.absent - before.absent:
                _replace(layers[j], sublayer.silent, silent(sublayer.outputs, j))
                for name in sublayer.through:
                    _replace(layers[j], name, silent(0, j))


def forget(optimizer: Optimizer, module: nn.Module) -> None:
    """Drop the parameters that the model no longer has, with their state."""
    living = {id(p) for p in module.parameters()}
    for group in optimizer.param_groups:
        for p in group["params"]:
            if id(p) not in living:
                optimizer.state.pop(p, None)
        group["params"] = [p for p in group["params"] if id(p) in living]


def _replace(layer: nn.Module, name: str, new: nn.Module) -> None:
    path, _, leaf = name.rpartition(".")
    parent = layer.get_submodule(path)
    new.train(parent.training)
    setattr(parent, leaf, new)

"""Adds zero biases to linear layers whose class supports them, so that repairs can set them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from effcompress.errors import CoverageError
from effcompress.types import Config, Family, Fields

if TYPE_CHECKING:
    from torch import nn


def flags(family: Family) -> tuple[str, ...]:
    """Names of the configuration flags that give linear layers a bias."""
    found = (axis.when for axis in family.axes if axis.param.endswith(".bias"))
    return tuple(dict.fromkeys(flag for flag in found if flag and flag not in family.flags))


def biased(family: Family, config: Config) -> Fields:
    """Returns the configuration with all bias flags set. Raises CoverageError when a layer that
    writes into the residual stream has no bias even then.
    """
    new = {**config, **dict.fromkeys(flags(family), True)}
    complete = family.complete(new)
    names = {axis.param for axis in family.axes if _exists(axis.when, complete)}
    matrices = {axis.param for axis in family.axes if axis.dim == family.inputs}
    for axis in family.axes:
        # It writes into the residual stream if the outputs of its matrix are hidden channels.
        outputs = axis.dim == 1 - family.inputs and axis.name == "hidden" and axis.param in matrices
        if outputs and axis.param.endswith(".weight") and "{i}" in axis.param:
            bias = axis.param.removesuffix("weight") + "bias"
            if bias not in names:
                raise CoverageError(
                    f"class '{family.name}' has no place for a bias here",
                    where=axis.param.removesuffix(".weight"),
                    fix="Use a repair or refit without `mean` (`effcompress plugins list`).",
                )
    return new


def _exists(when: str, config: Config) -> bool:
    return not when or bool(config.get(when.removeprefix("!"))) != when.startswith("!")


def add_biases(module: nn.Module, family: Family, config: Config) -> int:
    """Adds the biases that ``config`` (of ``biased``) states, as zeros; returns how many parameters
    that adds. The model computes the same.
    """
    import torch

    added = 0
    patterns = [
        re.compile(re.escape(axis.param.removesuffix(".bias")).replace(r"\{i\}", r"\d+"))
        for axis in family.axes
        if axis.param.endswith(".bias") and _exists(axis.when, family.complete(config))
    ]
    for path, layer in module.named_modules():
        if layer._parameters.get("weight") is None or layer._parameters.get("bias") is not None:
            continue
        if any(pattern.fullmatch(path) for pattern in patterns):
            weight = layer.get_parameter("weight")
            bias = torch.zeros(weight.shape[0], dtype=weight.dtype, device=weight.device)
            layer.register_parameter("bias", torch.nn.Parameter(bias))
            added += bias.numel()
    held: Any = module
    for flag in flags(family):
        setattr(held.config, flag, True)
    return added

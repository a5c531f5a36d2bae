"""Norms over the hidden axis. Their meaning is fixed: they average over the living channels.

A stock RMSNorm over ``P`` physical channels of which ``A`` are alive and the rest zero computes
``x w / sqrt(sum / P + e)``. Averaging over the living is ``x g / sqrt(sum / A + d)``. Both are the
same function when ``w = g sqrt(A / P)`` and ``e = d A / P``, so the stored gain and epsilon are
kept at these values: no module is replaced, and shortening ``P`` to ``A`` changes no logit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import final

import torch
from torch import nn

from effcompress.registry import Bound
from effcompress.types import Family


@final
class Norm:
    """A norm over the hidden axis: its gain and its epsilon, wherever the module keeps it."""

    def __init__(self, module: nn.Module, attribute: str) -> None:
        self.module, self.attribute = module, attribute

    @property
    def gain(self) -> nn.Parameter:
        gain = self.module.weight
        assert isinstance(gain, nn.Parameter)
        return gain

    @property
    def epsilon(self) -> float:
        return float(getattr(self.module, self.attribute))

    @epsilon.setter
    def epsilon(self, value: float) -> None:
        setattr(self.module, self.attribute, value)


def norms(module: nn.Module, family: Family, layers: int) -> Iterator[Norm]:
    """The norms that the family declares, in order."""
    for pattern in family.norms:
        for i in range(layers) if "{i}" in pattern else (0,):
            path = pattern.replace("{i}", str(i)).removesuffix(".weight")
            yield Norm(module.get_submodule(path), family.epsilon_attribute)


@torch.no_grad()
def narrow(norm: Norm, physical: int, before: int, after: int, repairs: Sequence[Bound]) -> None:
    """Go from ``before`` to ``after`` living channels, with the repairs that the recipe names."""
    gain = norm.gain.double() * (physical / before) ** 0.5
    epsilon = norm.epsilon * physical / before
    for repair in repairs:
        gain, epsilon = repair(gain=gain, epsilon=epsilon, before=before, after=after)
    # In fp64 and back: a repair that undoes the factors leaves the stored gain bit for bit.
    norm.gain.copy_(gain * (after / physical) ** 0.5)
    norm.epsilon = epsilon * after / physical


@torch.no_grad()
def shorten(norm: Norm, physical: int, alive: int) -> None:
    """The stored values for a norm whose physical width becomes ``alive``."""
    norm.gain.copy_(norm.gain.double() * (physical / alive) ** 0.5)
    norm.epsilon = norm.epsilon * physical / alive

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
from torch import Tensor, nn

from effcompress.registry import Bound
from effcompress.types import Family


@final
class Norm:
    """A norm over the hidden axis: its gain and its epsilon, wherever the module keeps it.

    Some classes store the gain less an ``offset`` (Gemma: the gain is one plus the weight).
    """

    def __init__(self, module: nn.Module, attribute: str, offset: float = 0.0) -> None:
        self.module, self.attribute, self.offset = module, attribute, offset

    @property
    def gain(self) -> nn.Parameter:
        """The parameter, as the class stores it."""
        gain = self.module.weight
        assert isinstance(gain, nn.Parameter)
        return gain

    def effective(self) -> Tensor:
        """The gain that multiplies, in fp64."""
        return self.gain.detach().double() + self.offset

    def store(self, gain: Tensor) -> None:
        """Set the gain that multiplies."""
        with torch.no_grad():
            self.gain.copy_(gain - self.offset)

    @property
    def epsilon(self) -> float:
        """What the norm adds to the mean square."""
        return float(getattr(self.module, self.attribute))

    @epsilon.setter
    def epsilon(self, value: float) -> None:
        setattr(self.module, self.attribute, value)


def norms(module: nn.Module, family: Family, layers: int) -> Iterator[Norm]:
    """The norms that the family declares, in order."""
    for pattern in family.norms:
        for i in range(layers) if "{i}" in pattern else (0,):
            path = pattern.replace("{i}", str(i)).removesuffix(".weight")
            attribute = family.epsilon_attribute
            yield Norm(module.get_submodule(path), attribute, family.gain_offset)


@torch.no_grad()
def narrow(norm: Norm, physical: int, before: int, after: int, repairs: Sequence[Bound]) -> None:
    """Go from ``before`` to ``after`` living channels, with the repairs that the recipe names."""
    gain = norm.effective() * (physical / before) ** 0.5
    epsilon = norm.epsilon * physical / before
    for repair in repairs:
        gain, epsilon = repair(gain=gain, epsilon=epsilon, before=before, after=after)
    # In fp64 and back: a repair that undoes the factors leaves the stored gain bit for bit.
    norm.store(gain * (after / physical) ** 0.5)
    norm.epsilon = epsilon * after / physical


@torch.no_grad()
def shorten(norm: Norm, physical: int, alive: int) -> None:
    """The stored values for a norm whose physical width becomes ``alive``."""
    norm.store(norm.effective() * (physical / alive) ** 0.5)
    norm.epsilon = norm.epsilon * physical / alive

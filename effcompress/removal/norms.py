"""Norms over an axis that can be cut. Their meaning is fixed: they average over living channels.

A stock RMSNorm over ``P`` physical channels of which ``A`` are alive and the rest zero computes
``x w / sqrt(sum / P + e)``. Averaging over the living is ``x g / sqrt(sum / A + d)``. Both are the
same function when ``w = g sqrt(A / P)`` and ``e = d A / P``, so the stored gain and epsilon are
kept at these values: no module is replaced, and shortening ``P`` to ``A`` changes no logit.

A LayerNorm also subtracts a mean, which no gain can mend. While channels of its are masked, it runs
as ``LiveLayerNorm``; gain and epsilon stay what they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn

from effcompress.registry import Bound
from effcompress.types import AxisMap, Segment, Widths


class LiveLayerNorm(nn.LayerNorm):
    """Mean and variance over the living channels; the others give zero."""

    live: Tensor

    def forward(self, input: Tensor) -> Tensor:
        """``input`` [..., P]; sums in fp32 at least, the result in the type of the gain."""
        wide = input if input.dtype == torch.float64 else input.float()
        live = self.live.to(wide.device, wide.dtype)
        count = live.sum()
        mean = (wide * live).sum(-1, keepdim=True) / count
        centred = (wide - mean) * live
        out = centred * torch.rsqrt(centred.square().sum(-1, keepdim=True) / count + self.eps)
        if self.weight is None:
            return out.to(input.dtype)
        out = out.to(self.weight.dtype) * self.weight
        return out if self.bias is None else out + self.bias


@final
class Norm:
    """A norm: its gain and its epsilon, wherever the module keeps it, and what it averages over.

    Some classes store the gain less an ``offset`` (Gemma: the gain is one plus the weight).
    ``physical`` is the length of its gain.
    """

    def __init__(self, path: str, module: nn.Module, axes: AxisMap) -> None:
        family = axes.family
        self.path, self.module = path, module
        self.attribute, self.offset = family.epsilon_attribute, family.gain_offset
        self.centred = family.centred
        # A LayerNorm without gain has no entry in the map; it is over the residual stream.
        plain = Segment(f"{path}.weight", 0, ("hidden",), 1)
        self.segment = axes.by_param.get(f"{path}.weight", (plain,))[0]
        self.physical = self.segment.length(axes.widths)

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

    def length(self, widths: Widths) -> int:
        """Channels it averages over in a model of these widths."""
        return self.segment.length(widths)

    def attend(self, alive_G: Tensor) -> None:
        """Centred norms: average over the channels that are alive, and no others."""
        module: Any = self.module
        if bool(alive_G.all()):
            if type(self.module) is LiveLayerNorm:
                module.__class__ = nn.LayerNorm
                del module.live
        else:
            module.__class__ = LiveLayerNorm
            module.live = alive_G.clone()


def norms(module: nn.Module, axes: AxisMap) -> Iterator[Norm]:
    """The norms that the family declares and the model has, in order."""
    for pattern in axes.family.norms:
        for j in range(len(axes.depth.layers)) if "{i}" in pattern else (0,):
            path = pattern.replace("{i}", str(j)).removesuffix(".weight")
            try:
                found = module.get_submodule(path)
            except AttributeError:
                continue  # OPT without a final norm
            if hasattr(found, axes.family.epsilon_attribute):  # else a block that is gone
                yield Norm(path, found, axes)


@torch.no_grad()
def narrow(norm: Norm, before: int, after: int, repairs: Sequence[Bound]) -> None:
    """Go from ``before`` to ``after`` living channels, with the repairs that the recipe names."""
    if norm.centred:
        return
    gain = norm.effective() * (norm.physical / before) ** 0.5
    epsilon = norm.epsilon * norm.physical / before
    for repair in repairs:
        gain, epsilon = repair(gain=gain, epsilon=epsilon, before=before, after=after)
    # In fp64 and back: a repair that undoes the factors leaves the stored gain bit for bit.
    norm.store(gain * (after / norm.physical) ** 0.5)
    norm.epsilon = epsilon * after / norm.physical


@torch.no_grad()
def shorten(norm: Norm, alive: int) -> None:
    """The stored values for a norm whose physical width becomes ``alive``."""
    if norm.centred or alive == norm.physical:
        return
    norm.store(norm.effective() * (norm.physical / alive) ** 0.5)
    norm.epsilon = norm.epsilon * norm.physical / alive

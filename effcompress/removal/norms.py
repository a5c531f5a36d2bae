"""Norms over an axis that can be cut: they average over living channels, masked or committed.

A stock RMSNorm over ``P`` physical channels of which ``A`` are alive and the rest zero computes
``x w / sqrt(sum / P + e)``. Averaging over the living is ``x g / sqrt(sum / A + d)``. Both are the
same function when ``w = g sqrt(A / P)`` and ``e = d A / P``, so the stored gain and epsilon are
kept at these values: no module is replaced, and shortening ``P`` to ``A`` changes no logit.

A LayerNorm also subtracts a mean, which no gain can undo. While some of its channels are masked it
runs as a ``LiveLayerNorm``; gain and epsilon are unchanged.
"""

import functools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, final

import torch
from torch import Tensor, nn

from effcompress.registry import Bound
from effcompress.types import AxisMap, Segment, Widths, axis_kind


class LiveLayerNorm(nn.Module):
    """A LayerNorm with mean and variance over the living channels; the others return zero. Comes in
    front of the stock class, which has the parameters, and the epsilon under ``attribute``.
    """

    alive_G: Tensor
    attribute: str
    offset: float
    weight: Tensor | None
    bias: Tensor | None

    def forward(self, input: Tensor) -> Tensor:
        """Normalises ``input`` [..., P]; sums in fp32 or fp64, returns the dtype of the gain."""
        wide = input if input.dtype == torch.float64 else input.float()
        live = self.alive_G.to(wide.device, wide.dtype)
        count = live.sum()
        mean = (wide * live).sum(-1, keepdim=True) / count
        # Again times live: a masked channel is -mean here, not zero.
        centred = (wide - mean) * live
        epsilon = getattr(self, self.attribute, UNSTATED)
        out = centred * torch.rsqrt(centred.square().sum(-1, keepdim=True) / count + epsilon)
        weight, bias = getattr(self, "weight", None), getattr(self, "bias", None)
        if weight is None:
            return out.to(input.dtype)
        out = out.to(weight.dtype) * (weight + self.offset)
        return out if bias is None else out + bias


UNSTATED = 1e-5
"""The epsilon of norms that keep none as an attribute (OLMo)."""


@functools.cache
def _live_class(stock: type[nn.Module], attribute: str, offset: float) -> type[nn.Module]:
    fields = {"stock": stock, "attribute": attribute, "offset": offset}
    return type(f"Live{stock.__name__}", (LiveLayerNorm, stock), fields)


@final
class Norm:
    """One norm module: its gain, its epsilon and the axes it averages over.

    Some classes store the gain less an ``offset`` (Gemma multiplies by one plus the weight).
    ``physical`` is the number of channels it averages over as stored: the length of the gain, or of
    the part of it that is normalised by itself (``Family.norm_parts``).
    """

    def __init__(self, path: str, module: nn.Module, axes: AxisMap) -> None:
        family = axes.family
        self.path, self.module = path, module
        self.attribute, self.offset = family.epsilon_attribute, family.gain_offset
        self.centred = family.centred
        # A LayerNorm without gain has no parameter in the map; it is over the residual stream.
        plain = Segment(f"{path}.weight", 0, ("hidden",), 1)
        self.segment = axes.by_param.get(f"{path}.weight", (plain,))[0]
        part = family.norm_parts.get(_pattern(f"{path}.weight"))
        names = tuple(name for name in self.segment.names if axis_kind(name) != part)
        self._averaged = replace(self.segment, names=names)
        self.physical = self.length(axes.widths)

    @property
    def gain(self) -> nn.Parameter:
        """The gain as the class stores it, [P]."""
        gain = self.module.weight
        assert isinstance(gain, nn.Parameter)
        return gain

    @property
    def averaged(self) -> tuple[str, ...]:
        """The axes whose units count in the mean."""
        return self._averaged.names

    def effective(self) -> Tensor:
        """Returns the gain that multiplies, offset included, in fp64 [P]."""
        return self.gain.detach().double() + self.offset

    def store(self, gain: Tensor) -> None:
        """Stores the gain that multiplies; subtracts the offset."""
        with torch.no_grad():
            self.gain.copy_(gain - self.offset)

    @property
    def epsilon(self) -> float:
        """The constant added to the mean square."""
        return float(getattr(self.module, self.attribute, UNSTATED))

    @epsilon.setter
    def epsilon(self, value: float) -> None:
        if hasattr(self.module, self.attribute):
            setattr(self.module, self.attribute, value)

    def length(self, widths: Widths) -> int:
        """Returns how many channels it averages over in a model of these widths."""
        return self._averaged.length(widths)

    def attend(self, alive_G: Tensor) -> None:
        """Makes a LayerNorm average over the channels ``alive_G`` [P], or restores its class."""
        heed(self.module, alive_G, lambda c: _live_class(c, self.attribute, self.offset))


def _pattern(param: str) -> str:
    return re.sub(r"\.\d+\.", ".{i}.", param, count=1)


def heed(module: Any, alive_G: Tensor, live: Callable[[type[nn.Module]], type[nn.Module]]) -> None:
    """Exchanges the class of a module for the one of ``live`` (stock class -> its subclass that
    reads ``alive_G`` [G]), or restores its ``stock`` class where all units are alive.

    The object stays the same, and so do hooks, parameters and module paths.
    """
    stock = getattr(type(module), "stock", type(module))
    if not bool(alive_G.all()):
        module.__class__ = live(stock)
        module.alive_G = alive_G.clone()
    elif type(module) is not stock:
        module.__class__ = stock
        del module.alive_G


def norms(module: nn.Module, axes: AxisMap) -> Iterator[Norm]:
    """Yields the norms that the family declares and the model has, in order."""
    for path in _paths(axes):
        try:
            found = module.get_submodule(path)
        except AttributeError:
            continue  # OPT without a final norm
        # An identity stands for the norm of a block that is gone.
        if not isinstance(found, nn.Identity):
            yield Norm(path, found, axes)


def normalised(axes: AxisMap) -> set[str]:
    """Returns the axes that the family's norms lie along; ``hidden``, too, where none has a gain.
    Cheaper than ``norms``, which looks every module up.
    """
    gains = (axes.by_param.get(f"{path}.weight", ()) for path in _paths(axes))
    return {"hidden", *(name for segments in gains for s in segments[:1] for name in s.names)}


def _paths(axes: AxisMap) -> Iterator[str]:
    """Yields the paths of the norms that the family declares, in order."""
    for pattern in axes.family.norms:
        for j in range(len(axes.depth.layers)) if "{i}" in pattern else (0,):
            yield pattern.replace("{i}", str(j)).removesuffix(".weight")


@torch.no_grad()
def narrow(norm: Norm, before: int, after: int, repairs: Sequence[Bound]) -> None:
    """Keeps a norm's function when it goes from ``before`` to ``after`` living channels.

    Without a repair the effective gain ``g`` and epsilon ``d`` are unchanged, so the norm now
    divides by the mean over fewer channels. A repair may change both: ``norm_gain`` multiplies
    ``g`` by ``sqrt(after / before)``, which keeps the scale of the channels that stay.
    """
    if norm.centred:
        return
    # Stored w -> effective g = w sqrt(P / A), and e -> d = e P / A, with A = before.
    gain = norm.effective() * (norm.physical / before) ** 0.5
    epsilon = norm.epsilon * norm.physical / before
    for repair in repairs:
        found = repair(gain=gain, epsilon=epsilon, before=before, after=after)
        if not (isinstance(found, tuple) and len(found) == 2 and isinstance(found[1], float | int)):
            said = f"returned {type(found).__name__} where a pair was expected"
            raise repair.plugin.error(said, "A repair of a norm returns its gain and its epsilon.")
        repair.plugin.require_shape(found[0], f"for a gain of {tuple(gain.shape)}", gain.shape)
        gain, epsilon = found
    # In fp64 and back: a repair that undoes the factors leaves the stored gain bit for bit.
    norm.store(gain * (after / norm.physical) ** 0.5)
    norm.epsilon = epsilon * after / norm.physical


@torch.no_grad()
def shorten(norm: Norm, alive: int) -> None:
    """Rescales stored gain and epsilon for a norm whose physical width becomes ``alive``."""
    if norm.centred or alive == norm.physical:
        return
    norm.store(norm.effective() * (norm.physical / alive) ** 0.5)
    norm.epsilon = norm.epsilon * norm.physical / alive

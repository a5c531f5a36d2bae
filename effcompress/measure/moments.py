"""Second moments of what a linear layer reads and of what it should put out, summed sequence by
sequence: all that a least-squares fit of the layer needs, and all that its error does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from effcompress.algebra import add_gram, mirror
from effcompress.distributed.world import World


@dataclass(frozen=True)
class Moments:
    """Means over tokens, in fp64: of a linear layer's inputs x (``gram`` ``[I, I]``, ``mean``
    ``[I]``) and of the outputs t that it should have (``cross`` ``[O, I]``, ``target_mean``
    ``[O]``); ``square`` is the mean of ``|t|^2``.
    """

    gram: Tensor
    cross: Tensor
    mean: Tensor
    target_mean: Tensor
    square: Tensor

    def error(self, weight_OI: Tensor, bias_O: Tensor | None = None) -> float:
        """Returns the mean of ``|t - W x - b|^2`` over the tokens, as a fraction of that of
        ``|t|^2``.
        """
        weight_OI = weight_OI.double()
        total = self.square - 2 * (weight_OI * self.cross).sum()
        total = total + ((weight_OI @ self.gram) * weight_OI).sum()
        if bias_O is not None:
            bias_O = bias_O.double()
            total = total + bias_O @ (bias_O + 2 * (weight_OI @ self.mean - self.target_mean))
        return float(total / self.square.clamp(min=1e-30))

    def scaled(self, scale_I: Tensor) -> Moments:
        """Returns the moments of inputs that are divided by ``scale_I``."""
        gram_II = self.gram / scale_I / scale_I[:, None]
        return Moments(
            gram_II, self.cross / scale_I, self.mean / scale_I, self.target_mean, self.square
        )


@dataclass(frozen=True)
class Parts:
    """Moments over all tokens; where some sequences are held out, also over the others (``seen``)
    and over these (``held``).
    """

    all: Moments
    seen: Moments | None = None
    held: Moments | None = None

    def scaled(self, scale_I: Tensor) -> Parts:
        """Returns the moments of inputs that are divided by ``scale_I``."""
        rest = [None if m is None else m.scaled(scale_I) for m in (self.seen, self.held)]
        return Parts(self.all.scaled(scale_I), *rest)


LATE = 2048
"""Tokens whose products are summed in the precision of the pass, before they go into fp64."""


@final
class Sums:
    """Running sums of the moments of one layer, ``[outputs, inputs]``. With ``split`` those of
    held-out sequences are kept apart.
    """

    def __init__(self, outputs: int, inputs: int, device: torch.device, *, split: bool) -> None:
        self._parts = [_Part(outputs, inputs, device) for _ in range(1 + split)]
        self._centre: tuple[Tensor, Tensor] | None = None

    @torch.no_grad()
    def add(self, x_TI: Tensor, target_TO: Tensor, *, held: bool = False) -> None:
        """Adds one sequence; one that is ``held`` out to the sums of those."""
        like = torch.promote_types(x_TI.dtype, torch.float32)
        # Products in the precision of the pass; without the means, which may be large, they are
        # exact enough for the covariance. The first sequence's stand for those of all text.
        if self._centre is None:
            means = (value.mean(0, dtype=torch.float64) for value in (x_TI, target_TO))
            centre_I, centre_O = (mean.to(like) for mean in means)
            self._centre = centre_I, centre_O
        centre_I, centre_O = self._centre
        power = target_TO.double().square().sum()
        apart_TO = (target_TO.double() - centre_O.double()).to(like)
        self._parts[held].add(x_TI.to(like) - centre_I, apart_TO, power)

    def means(self, world: World) -> Parts:
        """Returns the means over the tokens of all ranks of ``world``, once. Collective."""
        sums = [part.sums(self._centre) for part in self._parts]
        tokens = world.sums([part.tokens for part in self._parts])
        if world.size > 1:
            each = [tensor for part in sums for tensor in part]
            found = world.total({str(k): tensor.cpu() for k, tensor in enumerate(each)})
            for k, tensor in enumerate(each):
                tensor.copy_(found[str(k)])
        if len(sums) == 1:
            return Parts(_divided(sums[0], tokens[0]))
        whole = [a + b for a, b in zip(*sums, strict=True)]
        apart = [_divided(one, n) for one, n in zip(sums, tokens, strict=True)]
        return Parts(_divided(whole, sum(tokens)), *apart)


@final
class _Part:
    """Sums over some sequences of inputs and targets less a centre: of products (``gram``,
    ``cross``), and of themselves.
    """

    def __init__(self, outputs: int, inputs: int, device: torch.device) -> None:
        shapes = ((inputs, inputs), (outputs, inputs), (inputs,), (outputs,), ())
        like = {"dtype": torch.float64, "device": device}
        self._sums = [torch.zeros(shape, **like) for shape in shapes]
        self._late: tuple[Tensor, Tensor] | None = None
        self._waiting = self.tokens = 0

    def add(self, apart_TI: Tensor, apart_TO: Tensor, power: Tensor) -> None:
        gram_II, cross_OI, sum_I, sum_O, square = self._sums
        if self._late is None:
            late = [torch.zeros_like(each, dtype=apart_TI.dtype) for each in (gram_II, cross_OI)]
            self._late = late[0], late[1]
        add_gram(self._late[0], apart_TI)
        self._late[1].addmm_(apart_TO.T, apart_TI)
        sum_I.add_(apart_TI.sum(0, dtype=torch.float64))
        sum_O.add_(apart_TO.sum(0, dtype=torch.float64))
        square.add_(power)
        self.tokens += len(apart_TI)
        self._waiting += len(apart_TI)
        if self._waiting >= LATE:
            self._flush()

    def _flush(self) -> None:
        if self._late is not None:
            for into, late in zip(self._sums, self._late, strict=False):
                into.add_(late)
                late.zero_()
        self._waiting = 0

    def sums(self, centre: tuple[Tensor, Tensor] | None) -> list[Tensor]:
        """Returns the sums of products, inputs, targets and squares themselves, the centre added:
        ``sum x x^T = S + s c^T + c s^T + n c c^T`` for ``S, s`` those of ``x - c``. In place.
        """
        self._flush()
        self._late = None
        gram_II, cross_OI, sum_I, sum_O, _ = self._sums
        mirror(gram_II)
        if centre is not None:
            c_I, c_O = (each.double() for each in centre)
            more_I, more_O = sum_I + self.tokens * c_I, sum_O + self.tokens * c_O
            gram_II.addr_(more_I, c_I).addr_(c_I, sum_I)
            cross_OI.addr_(more_O, c_I).addr_(c_O, sum_I)
            sum_I.copy_(more_I)
            sum_O.copy_(more_O)
        return self._sums


def _divided(sums: list[Tensor], tokens: float) -> Moments:
    return Moments(*(value.div_(tokens) for value in sums))

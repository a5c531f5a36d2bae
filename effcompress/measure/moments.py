"""Second moments of what a linear layer reads and of what it should put out, summed sequence by
sequence: all that a least-squares fit of the layer needs, and all that its error does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

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


@final
class Sums:
    """Running sums of the moments of one layer, ``[outputs, inputs]``. With ``split`` those of
    held-out sequences are kept apart.
    """

    def __init__(self, outputs: int, inputs: int, device: torch.device, *, split: bool) -> None:
        shapes = ((inputs, inputs), (outputs, inputs), (inputs,), (outputs,), ())
        like = {"dtype": torch.float64, "device": device}
        self._parts = [[torch.zeros(s, **like) for s in shapes] for _ in range(1 + split)]
        self._tokens = [0] * (1 + split)

    @torch.no_grad()
    def add(self, x_TI: Tensor, target_TO: Tensor, *, held: bool = False) -> None:
        """Adds one sequence; one that is ``held`` out to the sums of those."""
        gram_II, cross_OI, sum_I, target_sum_O, square = self._parts[held]
        tokens, like = len(x_TI), torch.promote_types(x_TI.dtype, torch.float32)
        x_TI, target_TO = x_TI.double(), target_TO.double()
        mean_I, target_mean_O = x_TI.mean(0), target_TO.mean(0)
        # Products in the precision of the pass; without the means, which may be large, they are
        # exact enough for the covariance.
        apart_TI, target_apart_TO = (x_TI - mean_I).to(like), (target_TO - target_mean_O).to(like)
        gram_II.add_(apart_TI.T @ apart_TI).addr_(mean_I, mean_I, alpha=tokens)
        cross_OI.add_(target_apart_TO.T @ apart_TI).addr_(target_mean_O, mean_I, alpha=tokens)
        sum_I.add_(mean_I, alpha=tokens)
        target_sum_O.add_(target_mean_O, alpha=tokens)
        square.add_(target_TO.square().sum())
        self._tokens[held] += tokens

    def means(self, world: World) -> Parts:
        """Returns the means over the tokens of all ranks of ``world``. Collective."""
        tokens = world.sums(self._tokens)
        if world.size > 1:
            each = [tensor for part in self._parts for tensor in part]
            found = world.total({str(k): tensor.cpu() for k, tensor in enumerate(each)})
            for k, tensor in enumerate(each):
                tensor.copy_(found[str(k)])
        if len(self._parts) == 1:
            return Parts(_divided(self._parts[0], tokens[0]))
        whole = [a + b for a, b in zip(*self._parts, strict=True)]
        apart = [_divided(one, n) for one, n in zip(self._parts, tokens, strict=True)]
        return Parts(_divided(whole, sum(tokens)), *apart)


def _divided(sums: list[Tensor], tokens: float) -> Moments:
    return Moments(*(value.div_(tokens) for value in sums))

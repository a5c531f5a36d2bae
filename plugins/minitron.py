"""Minitron: compact models by pruning and distillation (arXiv:2407.14679), as in NVIDIA ModelOpt.

Width is ranked by activations alone: mean magnitude over a sequence, root of the sum of squares
over sequences (sec. 2.2). Depth is ranked by block influence, the statistic of ``shortgpt.py``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from effcompress import criterion, statistic

if TYPE_CHECKING:
    from torch import Tensor


@statistic("input_abs", paper="arXiv:2407.14679, sec. 2.2")
def input_abs(x: Tensor, state: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor]:
    """Root of the sum over sequences of the squared mean magnitude: ``[T, I] -> [I]``."""
    square_I = x.abs().mean(0).square()
    total_I = square_I if state is None else state[1] + square_I
    return total_I.sqrt(), total_I


@criterion("minitron", paper="arXiv:2407.14679, sec. 2.2; NVIDIA ModelOpt")
def minitron(input_abs: Tensor | None, influence: Tensor | None, kind: str) -> Tensor:
    """Activations of a channel, ``[I]``; of layers and blocks their influence, ``[1]``.

    A head's channels add up as squares: the root would rank heads alike, and is left out. A channel
    of the residual stream is measured behind every norm, and its values are added.
    """
    if influence is not None:
        return influence
    assert input_abs is not None
    return input_abs if kind == "hidden" else input_abs.square()

"""The lowest scores, exactly as many as asked for.

``O, I`` rows and columns of a linear weight; ``R, K`` rows of scores and what competes within one.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

    from effcompress.spec import Pattern

Per = Literal["row", "layer"]
"""Among what a weight competes: its row, or the whole layer."""


def whole(total: int, share: float) -> int:
    """``share`` of ``total``, rounded down; what only binary fractions make fractional is whole."""
    return math.floor(total * share + 1e-9)


def lowest(score_RK: Tensor, zeros: int) -> Tensor:
    """``[R, K]`` bool: the ``zeros`` lowest of every row; of equal ones, those in front."""
    import torch

    gone_RK = torch.zeros_like(score_RK, dtype=torch.bool)
    index = score_RK.argsort(dim=1, stable=True)[:, :zeros]
    return gone_RK.scatter_(1, index, True)


def chosen(score_OI: Tensor, sparsity: float, pattern: Pattern | None, per: Per) -> Tensor:
    """``[O, I]`` bool: the weights to become zero, by score, lowest first.

    With a pattern, ``of - kept`` in every ``of`` consecutive columns of each row; else
    ``sparsity`` of every row or of the layer, rounded down.
    """
    if pattern is not None:
        return lowest(score_OI.reshape(-1, pattern.of), pattern.zeros).view_as(score_OI)
    if per == "row":
        return lowest(score_OI, whole(score_OI.shape[1], sparsity))
    return lowest(score_OI.reshape(1, -1), whole(score_OI.numel(), sparsity)).view_as(score_OI)

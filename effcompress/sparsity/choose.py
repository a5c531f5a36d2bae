"""The lowest scores, exactly as many as asked for."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

    from effcompress.spec import Pattern

Per = Literal["row", "layer"]
"""Among what a weight competes: its row, or the whole layer."""


def lowest(score_OI: Tensor, amount: int | float | Pattern, per: Per = "row") -> Tensor:
    """``[O, I]`` bool: the lowest scores; of equal ones, those in front.

    ``amount``: a number of weights, or a fraction of them (rounded down), of every row or of the
    whole layer; or a pattern, which holds in every ``of`` consecutive columns of each row.
    """
    import torch

    rows, columns = score_OI.shape
    if isinstance(amount, int | float):
        width = columns if per == "row" else rows * columns
        # 0.1 of 30 is 3, though 0.1 is a little more and others a little less in binary.
        zeros = amount if isinstance(amount, int) else math.floor(width * amount + 1e-9)
    else:
        width, zeros = amount.of, amount.zeros
    score_RK = score_OI.reshape(-1, width)
    index_RK = score_RK.argsort(dim=1, stable=True)[:, :zeros]
    gone_RK = torch.zeros_like(score_RK, dtype=torch.bool)
    return gone_RK.scatter_(1, index_RK, True).view(rows, columns)

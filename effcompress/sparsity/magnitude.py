"""The lowest scores, exactly as many as asked for; zeros by the size of weights alone. Imports no
torch: `plan` prices recipes without it.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from effcompress.registry import Bound, sparsifier

if TYPE_CHECKING:
    from torch import Tensor

    from effcompress.spec import Pattern

Per = Literal["row", "layer"]
"""Among what a weight competes: its row, or the whole layer."""


SORTED = 64
"""Scores that compete, below which all are sorted."""


def reads_inputs(method: Bound) -> bool:
    """Whether the method looks at what layers read, which only passes over text can tell."""
    return not {"input_norm", "gram"}.isdisjoint(method.needs)


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
    if width >= SORTED and 0 < zeros < width:
        # The lowest are those up to the one of this rank, unless others equal it: an eighth of the
        # time of a sort.
        gone_RK = score_RK <= _of_rank(score_RK, zeros)
        if bool((gone_RK.sum(1) == zeros).all()):
            return gone_RK.view(rows, columns)
    index_RK = score_RK.argsort(dim=1, stable=True)[:, :zeros]
    gone_RK = torch.zeros_like(score_RK, dtype=torch.bool)
    return gone_RK.scatter_(1, index_RK, True).view(rows, columns)


def _of_rank(score_RK: Tensor, rank: int) -> Tensor:
    """``[R, 1]``: the score of every row that is the ``rank``-th from below, from 1."""
    if score_RK.device.type != "cpu":
        return score_RK.kthvalue(rank, dim=1, keepdim=True).values
    import numpy as np
    import torch

    # 0.4 of the time of torch's own selection, and the same scores; numpy knows no bf16.
    half = score_RK.dtype in (torch.bfloat16, torch.float16)
    wide = (score_RK.float() if half else score_RK).detach().numpy()
    found_R1 = np.partition(wide, rank - 1, axis=1)[:, rank - 1 : rank]
    return torch.from_numpy(found_R1).to(score_RK.dtype)


@sparsifier("magnitude", paper="arXiv:1506.02626")
def magnitude(
    weight: Tensor, sparsity: float, pattern: Pattern | None, *, per: Per = "layer"
) -> Tensor:
    """The smallest weights of a layer become zero; nothing is read, no other changes.

    ``per``: all weights of a layer compete, or those of each row. With a pattern, those of each
    group.
    """
    return weight.masked_fill(lowest(weight.abs(), pattern or sparsity, per), 0.0)

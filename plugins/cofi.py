"""CoFiPruning: masks that are learned towards a size, coarse and fine together (arXiv:2204.00408).

The original cuts what its gates happen to expect, which misses the size by some percent. Here all
logits are moved by one common offset until the rounded shape meets it. ``G`` gates of one row.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from effcompress import criterion

if TYPE_CHECKING:
    from torch import Tensor


@criterion("common_offset", paper="arXiv:2204.00408; the offset: new")
def common_offset(logit: Tensor, *, temperature: float = 2 / 3, stretch: float = 0.1) -> Tensor:
    """Minus the offset of all logits at which a gate is shut, ``[G]``: of a row of ``n``, the
    ``round(n - sum P)`` lowest are. With the selector ``{name: least_salient, normalise: raw}`` the
    mini-groups go in the order in which a falling offset would shut them.

    Bisection in fp64, for all ``G`` ranks at once: the j-th goes where ``sum P = n - j + 1/2``.
    """
    logit_G = logit.double() + temperature * math.log((1 + stretch) / stretch)
    ranks_G = logit_G.argsort(stable=True)
    n = len(logit_G)
    wanted_J = n + 0.5 - logit_G.new_tensor(range(1, n + 1))
    low_J = -logit_G.max().expand(n) - 40.0
    high_J = -logit_G.min().expand(n) + 40.0
    for _ in range(40):
        offset_J = (low_J + high_J) / 2
        many_J = offset_J.clone()
        for part in many_J.split(256):  # a matrix of all ranks and gates would be large
            part.copy_((logit_G + part.unsqueeze(1)).sigmoid().sum(1))
        low_J = offset_J.where(many_J < wanted_J, low_J)
        high_J = high_J.where(many_J < wanted_J, offset_J)
    score_G = logit_G.clone()
    score_G[ranks_G] = -(low_J + high_J) / 2
    return score_G

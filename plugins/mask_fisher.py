"""Fisher information of masks on mini-groups (arXiv:1906.10771; arXiv:2204.09656).

With a mask ``m = 1`` on every mini-group, the loss changes by ``1/2 E[(dL/dm)^2]`` to second order
when the mini-group goes, since the expected gradient of a trained model is zero.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from effcompress import criterion

if TYPE_CHECKING:
    from torch import Tensor


@criterion("mask_fisher", paper="arXiv:1906.10771; arXiv:2204.09656")
def mask_fisher(mask_grad: Tensor) -> Tensor:
    """``sum over tokens of (dL/dm)^2 / 2``: second-order change of the loss when a mini-group goes,
    with the diagonal Fisher information of its mask, a token being a sample.
    """
    return mask_grad.square().sum(0).mul_(0.5)

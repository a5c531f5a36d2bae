"""Built-in diagonal Hessians. A function gives its estimate from one batch; the engine averages."""

from __future__ import annotations

from typing import TYPE_CHECKING

from effcompress.registry import hessian

if TYPE_CHECKING:
    from torch import Tensor


@hessian("fisher_diag", paper="empirical Fisher information")
def fisher_diag(grad: Tensor) -> Tensor:
    """``g^2``: the diagonal of the empirical Fisher matrix."""
    return grad.square()


@hessian("adam", paper="AdamW's second moment")
def adam(second_moment: Tensor) -> Tensor:
    """AdamW's running mean of ``g^2``: the same diagonal, averaged over steps already and free. The
    optimizer sees clipped gradients, so steps with a large norm count less.
    """
    return second_moment

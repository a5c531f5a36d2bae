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

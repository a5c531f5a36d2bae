"""The linear algebra that plugins and the engine share."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def damped_cholesky(matrix_II: Tensor, damping: float, tries: int = 1) -> Tensor | None:
    """Lower Cholesky factor ``[I, I]``, in fp64, of ``matrix + damping I``.

    While the sum is not positive definite the damping grows tenfold, ``tries`` times at most; None
    if that does not help. The matrix is not changed.
    """
    import torch

    for attempt in range(tries):
        damped_II = matrix_II.to(torch.float64, copy=True)
        damped_II.diagonal().add_(damping * 10.0**attempt)
        factor_II, failed = torch.linalg.cholesky_ex(damped_II)
        if not int(failed):
            return factor_II
    return None

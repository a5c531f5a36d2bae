"""The linear algebra that plugins and the engine share."""

from __future__ import annotations

from collections.abc import Iterator
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


PANELS = 4
"""Into how many panels of rows a symmetric product is divided: 5/8 of its arithmetic are left."""
NARROW = 256
"""Columns below which one product is faster than several."""


def _panels(width: int) -> Iterator[slice]:
    """Yields the rows of each panel of a symmetric matrix."""
    step = -(-width // (PANELS if width >= NARROW else 1))
    return (slice(i, min(i + step, width)) for i in range(0, width, step))


def add_gram(into_II: Tensor, x_TI: Tensor, alpha: float = 1.0) -> None:
    """Adds ``alpha x^T x`` to the upper triangle of ``into``, in place; what is below the diagonal
    is undefined until ``mirror``. Both have one dtype.

    torch has no symmetric rank-k update (BLAS: ``syrk``), so panels of rows are multiplied with the
    columns from their diagonal on.
    """
    for rows in _panels(x_TI.shape[1]):
        into_II[rows, rows.start :].addmm_(x_TI[:, rows].T, x_TI[:, rows.start :], alpha=alpha)


def gram_operations(tokens: int, width: int) -> float:
    """Returns the floating-point operations of ``add_gram``."""
    panels = _panels(width)
    return 2.0 * tokens * sum((rows.stop - rows.start) * (width - rows.start) for rows in panels)


def mirror(upper_II: Tensor) -> Tensor:
    """Copies the upper triangle below the diagonal, in place; returns the tensor."""
    for rows in _panels(len(upper_II)):
        upper_II[rows.stop :, rows] = upper_II[rows, rows.stop :].T
    return upper_II

"""SliceGPT (arXiv:2401.15024; the authors' code where the two differ): principal components of the
residual stream.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from effcompress import NotNegative, rotation

if TYPE_CHECKING:
    from torch import Tensor


@rotation("slicegpt", paper="arXiv:2401.15024")
def slicegpt(
    moment: Tensor,
    uniform: Tensor,
    kept: int,
    *,
    orientation: Literal["random", "pca"] = "random",
    damp: NotNegative = 0.01,
) -> Tensor:
    """Eigenvectors of the second moment, largest eigenvalue first, [D, D] (equation 8); the largest
    entry of each is positive. ``damp`` times the mean of the diagonal is added to the moment; that
    moves no eigenvector, and keeps the solver from failing where channels are dead.
    ``orientation: random`` turns the kept ones among each other by the orthogonal factor of a
    uniform matrix, as the authors' code does; in exact arithmetic it changes nothing, but rounding
    to few bits then meets channels of like size.
    """
    import torch

    damped = moment.clone()
    damped.diagonal().add_(damp * moment.diagonal().mean())
    basis = torch.linalg.eigh(damped).eigenvectors.flip(1)
    # An eigenvector has no sign: rounding must not choose one.
    basis = basis * basis.gather(0, basis.abs().argmax(0, keepdim=True)).sign()
    if orientation == "random":
        basis[:, :kept] = basis[:, :kept] @ torch.linalg.qr(uniform[:kept, :kept]).Q
    return basis

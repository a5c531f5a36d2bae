"""Built-in refits: the projections into the residual stream, fitted anew after a removal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from effcompress.registry import refit

if TYPE_CHECKING:
    from torch import Tensor


@refit("least_squares", paper="new")
def least_squares(weight: Tensor, gram: Tensor, cross: Tensor, *, damp: float = 0.03) -> Tensor:
    """Ridge regression of what the layer should put out on what it reads, drawn towards the weight
    as it is: ``(cross + d W) (gram + d I)^-1`` with ``d = damp mean(diag gram)``. In fp64.

    What the source model's stream has and this one's lacks is part of the target, so errors of the
    layers in front are made good, too.
    """
    size = damp * float(gram.diagonal().mean())
    return _solve(weight, gram, cross, size)


@refit("least_squares_bias", paper="new")
def least_squares_bias(
    weight: Tensor,
    gram: Tensor,
    cross: Tensor,
    mean: Tensor,
    target_mean: Tensor,
    *,
    damp: float = 0.03,
) -> tuple[Tensor, Tensor]:
    """As ``least_squares``, with an intercept that is not punished, which the bias takes over."""
    around = gram.double() - mean.double().outer(mean.double())
    along = cross.double() - target_mean.double().outer(mean.double())
    size = damp * float(around.diagonal().mean())
    new = _solve(weight, around, along, size)
    more = target_mean.double() - new.double() @ mean.double()
    return new, more.to(weight.dtype)


def _solve(weight: Tensor, gram: Tensor, cross: Tensor, size: float) -> Tensor:
    """The weight unchanged where nothing was read, or no number."""
    import torch

    if not 0.0 < size < float("inf"):
        return weight
    damped = gram.to(torch.float64, copy=True)
    damped.diagonal().add_(size)
    factor, failed = torch.linalg.cholesky_ex(damped)
    if int(failed):
        return weight
    right = cross.double() + size * weight.double()
    return torch.cholesky_solve(right.T, factor).T.to(weight.dtype)

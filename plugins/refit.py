"""Least squares for the projections into the residual stream, after the last removal (new).

Front to back, every projection is fitted to put out what the source model's stream has at that
place and this one's lacks, so errors of the layers in front are made good, too. With ``x`` what the
projection reads, ``t`` what it should put out and ``W0`` its weight as it is, ridge regression is
drawn towards ``W0``, not towards zero: ``min_W E|W x - t|^2 + d |W - W0|^2``, so
``W = (E[t x^T] + d W0) (E[x x^T] + d I)^-1``, where ``d`` is ``damp`` times the mean of the
diagonal of ``E[x x^T]``.

A fit with many inputs to little text knows that text by heart: how much damping it takes depends on
the layer and on the text. With ``damp: auto`` the engine chooses it, projection by projection, by
the error on sequences that the fit has not seen.

``O, I`` outputs and inputs of a projection.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from effcompress import NotNegative, damped_cholesky, refit

if TYPE_CHECKING:
    from torch import Tensor

DAMPINGS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)


@refit("least_squares", paper="new", tries={"damp": DAMPINGS})
def least_squares(
    weight: Tensor, gram: Tensor, cross: Tensor, *, damp: NotNegative = 0.3
) -> Tensor:
    """Ridge regression of what the layer should put out on what it reads, drawn towards the weight
    as it is: ``(cross + d W) (gram + d I)^-1`` with ``d = damp mean(diag gram)``, ``[O, I]``. In
    fp64.
    """
    return _solve(weight, gram, cross, damp * float(gram.diagonal().mean()))


@refit("least_squares_bias", paper="new", tries={"damp": DAMPINGS})
def least_squares_bias(
    weight: Tensor,
    gram: Tensor,
    cross: Tensor,
    mean: Tensor,
    target_mean: Tensor,
    *,
    damp: NotNegative = 0.3,
) -> tuple[Tensor, Tensor]:
    """As ``least_squares``, with an intercept that is not punished, which the bias takes over,
    ``[O, I], [O]``.
    """
    # Centred moments: the intercept drops out of the normal equations.
    mean, target_mean = mean.double(), target_mean.double()
    covariance_II = gram.double().addr(mean, mean, alpha=-1.0)
    cross_OI = cross.double().addr(target_mean, mean, alpha=-1.0)
    damping = damp * float(covariance_II.diagonal().mean())
    new = _solve(weight, covariance_II, cross_OI, damping)
    more = target_mean - new.double() @ mean
    return new, more.to(weight.dtype)


def _solve(weight: Tensor, gram: Tensor, cross: Tensor, damping: float) -> Tensor:
    """The weight unchanged where nothing was read, or what was read is not finite."""
    factor = damped_cholesky(gram, damping) if 0.0 < damping < float("inf") else None
    if factor is None:
        return weight
    right_OI = cross.double() + damping * weight.double()
    return right_OI.T.cholesky_solve(factor).T.to(weight.dtype)

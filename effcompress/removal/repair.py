"""Built-in repairs: what must be corrected in the weights that stay."""

from __future__ import annotations

from typing import TYPE_CHECKING

from effcompress.registry import repair
from effcompress.spec import Positive

if TYPE_CHECKING:
    from torch import Tensor


@repair("norm_gain", paper="new")
def norm_gain(gain: Tensor, epsilon: float, before: int, after: int) -> tuple[Tensor, float]:
    """Keep an RMSNorm's output when it averages over fewer channels.

    The removed channels are zero, so the mean square grows by ``before / after``; scaling the gain
    by its root and epsilon by itself restores the output exactly.
    """
    return gain * (before / after) ** 0.5, epsilon * before / after


@repair("obs_update", paper="optimal brain surgeon; arXiv:2502.06663, variant B")
def obs_update(
    weight: Tensor, gram: Tensor, gone: Tensor, *, damp: float = 0.01, tries: Positive = 8
) -> Tensor:
    """Let the inputs that stay make up for those that go, by least squares on what was read.

    ``H = gram + damp m I``, with ``m`` the mean of the positive diagonal entries. For the removed
    columns ``p``, ``dW = -W_p (Hinv_pp)^-1 Hinv_p`` is the change of least output error in which
    ``W_p`` becomes zero. In fp64. While ``H`` is not positive definite the damping grows tenfold,
    at most ``tries`` times; the weight is returned unchanged if that does not help (nothing was
    read, or no number).
    The output error never exceeds that of removing alone: both are candidates of the minimisation,
    and damping punishes only the larger change.
    """
    factor = _factor(gram, damp, tries)
    if factor is None:
        return weight
    unit_Ip = gram.new_zeros(gram.shape[0], gone.numel()).double()
    unit_Ip[gone, list(range(gone.numel()))] = 1.0
    inverse_Ip = unit_Ip.cholesky_solve(factor)
    removed_Op = weight[:, gone].double()
    change_OI = removed_Op @ inverse_Ip[gone].inverse() @ inverse_Ip.T
    new = (weight.double() - change_OI).to(weight.dtype)
    new[:, gone] = 0.0
    return new


@repair("bias_mean", paper="arXiv:2312.11983, sec. 4.3")
def bias_mean(weight: Tensor, mean: Tensor, gone: Tensor) -> tuple[Tensor, Tensor]:
    """The bias takes over what the inputs that go add on average: ``W_p mean_p``."""
    return weight, weight[:, gone] @ mean[gone].to(weight.dtype)


@repair("obs_bias", paper="new")
def obs_bias(
    weight: Tensor,
    gram: Tensor,
    mean: Tensor,
    gone: Tensor,
    *,
    damp: float = 0.01,
    tries: Positive = 8,
) -> tuple[Tensor, Tensor]:
    """As ``obs_update`` for what varies, with the covariance in the Gram matrix's place; the bias
    takes over the mean, so that the mean of the output does not change at all. Least squares with
    an intercept: never worse than ``obs_update`` or ``bias_mean`` on what was read.
    """
    covariance_II = gram.double() - mean.double().outer(mean.double())
    new = obs_update(weight, covariance_II, gone, damp=damp, tries=tries)
    if new is weight:  # nothing was read: the mean alone
        return bias_mean(weight, mean, gone)
    change_OI = weight.double() - new.double()
    return new, (change_OI @ mean.double()).to(weight.dtype)


def _factor(gram: Tensor, damp: float, tries: int) -> Tensor | None:
    """Cholesky factor of the damped Gram matrix, in fp64; None when there is none."""
    import torch

    read = gram.diagonal() > 0  # dead inputs do not make the others' damping smaller
    size = float(gram.diagonal()[read].mean())
    if not 0.0 < size < float("inf"):
        return None
    for attempt in range(tries):
        damped = gram.to(torch.float64, copy=True)
        damped.diagonal().add_(damp * size * 10.0**attempt)
        factor, failed = torch.linalg.cholesky_ex(damped)
        if not int(failed):
            return factor
    return None

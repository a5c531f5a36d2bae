"""EfficientLLM: pruning-aware pretraining (arXiv:2502.06663).

Variant A scores mini-groups with first and second order together (the criterion ``taylor_mixed``)
while training goes on. Variant B also lets the inputs that stay take over from those that go, by
optimal brain surgery on second moments ``H = E[x x^T]`` of what a layer read. The authors released
no training code: the rate of pruning is read off the figures, and the intercept is our own.

``O, I`` outputs and inputs of a linear layer, ``p`` inputs that go.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from effcompress import Count, Due, NotNegative, Positive, damped_cholesky, repair, schedule

if TYPE_CHECKING:
    from torch import Tensor


@schedule("cost_aware", paper="arXiv:2502.06663, rate read off the figures")
def cost_aware(
    step: int,
    tokens: int,
    prune_from: int,
    removed: Mapping[str, int],
    positions: Mapping[str, int],
    *,
    every: Positive = 1,
    start: Count | None = None,
    ffn: Positive = 1,
    hidden: Positive = 2,
    attention: Positive | None = None,
    query: Positive | None = None,
) -> Due | None:
    """One mini-group, then a pause of ``every`` steps times its cost, so that the model recovers
    for as long as what went would have taken channel by channel.

    An FFN channel costs ``ffn``, a channel of the residual stream ``hidden``, heads (and experts,
    blocks, layers) by default as much as they have columns in the projection back into the stream:
    a head its width, a KV group that of all its query heads. The next cut is due once ``every``
    times the cost of all that went is behind.
    """
    begin = prune_from if start is None else start
    if tokens < begin:
        return None
    channels = {"hidden": hidden, "ffn": ffn, "expert_ffn": ffn, "shared_ffn": ffn}
    heads = {"attention": attention, "query": query}
    cost = {**positions, **channels, **{k: v for k, v in heads.items() if v is not None}}
    spent = every * sum(cost.get(kind, 1) * units for kind, units in removed.items())
    # Steps before pruning began, rounded up: the first cut must not be counted as a step late.
    first = math.ceil(begin * step / tokens) if tokens else 0
    return Due(groups=1) if step - first >= spent else None


@repair("obs_update", paper="optimal brain surgeon; arXiv:2502.06663, variant B")
def obs_update(
    weight: Tensor, gram: Tensor, gone: Tensor, *, damp: NotNegative = 0.01, tries: Positive = 8
) -> Tensor:
    """Lets the inputs that stay take over from those that go, by least squares on what was read.

    ``H = gram + damp m I``, with ``m`` the mean of the positive diagonal entries. For the removed
    columns ``p``, ``dW = -W_p (Hinv_pp)^-1 Hinv_p`` is the change of least output error in which
    ``W_p`` becomes zero, ``[O, I]``. In fp64. While ``H`` is not positive definite the damping
    grows tenfold, at most ``tries`` times; the weight is returned unchanged if that does not help.
    The output error never exceeds that of removing alone: both are candidates of the minimisation,
    and damping punishes only the larger change.
    """
    read = gram.diagonal() > 0  # inputs that are always zero do not make the damping smaller
    mean = float(gram.diagonal()[read].mean())
    factor = damped_cholesky(gram, damp * mean, tries) if 0.0 < mean < math.inf else None
    if factor is None:
        return weight
    # Only the columns of H^-1 that are needed: H^-1 e_p for the removed inputs p.
    unit_Ip = gram.new_zeros(gram.shape[0], gone.numel()).double()
    unit_Ip[gone, list(range(gone.numel()))] = 1.0
    inverse_Ip = unit_Ip.cholesky_solve(factor)
    removed_Op = weight[:, gone].double()
    change_OI = removed_Op @ inverse_Ip[gone].inverse() @ inverse_Ip.T
    new = (weight.double() - change_OI).to(weight.dtype)
    new[:, gone] = 0.0  # what rounding leaves
    return new


@repair("obs_bias", paper="new")
def obs_bias(
    weight: Tensor,
    gram: Tensor,
    mean: Tensor,
    gone: Tensor,
    *,
    damp: NotNegative = 0.01,
    tries: Positive = 8,
) -> tuple[Tensor, Tensor]:
    """As ``obs_update`` for what varies, with the covariance in the Gram matrix's place; the bias
    takes over the mean, so that the mean of the output does not change at all, ``[O, I], [O]``.

    Least squares with an intercept: never worse than ``obs_update``, or than the mean alone, on
    what was read.
    """
    covariance_II = gram.double() - mean.double().outer(mean.double())
    new = obs_update(weight, covariance_II, gone, damp=damp, tries=tries)
    if new is weight:  # nothing varies: the mean alone
        return weight, weight[:, gone] @ mean[gone].to(weight.dtype)
    change_OI = weight.double() - new.double()
    return new, (change_OI @ mean.double()).to(weight.dtype)

"""FLAP: fluctuation-based adaptive structured pruning (arXiv:2312.11983).

An input channel that hardly varies can be replaced by its mean: the channel goes, and the bias of
the layer that reads it takes over ``W[:, gone] mean[gone]`` (sec. 4.3). What is lost is the
variance times the squared column, ``var(x_i) ||W[:, i]||^2`` (WIFV, eq. 5).

``T`` tokens of one sequence, ``O, I`` outputs and inputs of a linear layer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from effcompress import criterion, repair, statistic

if TYPE_CHECKING:
    from torch import Tensor


@statistic("input_fluctuation", paper="arXiv:2312.11983, the authors' code")
def input_fluctuation(
    x: Tensor, state: tuple[Tensor, Tensor, int] | None
) -> tuple[Tensor, Tensor, int]:
    """Running estimate of the variance by sequences: ``[T, I] -> [I]``.

    Sums over a sequence's tokens of the squared distance from the running mean of sequences. As
    published in code, a sum where a mean is meant, and the first sequence counts for nothing.
    """
    tokens, total, squares = len(x), x.sum(0), x.square().sum(0)
    zero_I = x.new_zeros(x.shape[1])
    fluctuation, mean, sequences = (zero_I, zero_I, 0) if state is None else state
    n = sequences + 1
    mean = mean + (total / tokens - mean) / n
    if n > 1:
        # sum_t (x_t - mean)^2, expanded so that one pass over the tokens is enough.
        distance = squares - 2.0 * mean * total + tokens * mean.square()
        fluctuation = fluctuation * ((n - 2) / (n - 1)) + distance / n
    return fluctuation, mean, n


@criterion(
    "flap", paper="arXiv:2312.11983, eq. 5 and 7", only_where={"input_fluctuation": "compat"}
)
def flap(
    weight: Tensor,
    input_variance: Tensor,
    input_norm: Tensor,
    input_fluctuation: Tensor | None,
    kind: str,
    positions: int,
    *,
    metric: Literal["WIFV", "WIFN", "IFV"] = "WIFV",
    standardise: bool = True,
    compat: bool = False,
) -> Tensor:
    """Loss when an input is replaced by its mean: its variance times the squared column, ``[I]``.

    Within a layer, values are brought to mean 0 and deviation 1 (eq. 7), so that layers compare; a
    head's value is the mean over its channels.
    ``metric``: WIFV as above, IFV the variance alone, WIFN ``|w| norm(x)``, mean over outputs.
    ``compat``: the running estimate of the authors' code in place of the variance.
    """
    spread = input_variance
    if compat:
        assert input_fluctuation is not None, "it is measured where `compat` is true"
        spread = input_fluctuation
    if metric == "IFV":
        value = spread.clone()
    elif metric == "WIFV":
        value = spread * weight.square().sum(0)
    else:
        value = (weight.abs() * input_norm).mean(0)
    # Not in the paper: the authors' code squares the values of heads before it standardises.
    if kind in ("attention", "query"):
        value = value.square()
    if standardise:
        value = (value - value.mean()) / value.std().clamp(min=1e-30)
    return value / positions


@repair("bias_mean", paper="arXiv:2312.11983, sec. 4.3")
def bias_mean(weight: Tensor, mean: Tensor, gone: Tensor) -> tuple[Tensor, Tensor]:
    """The bias takes over what the removed inputs add on average: ``W[:, gone] mean[gone]``."""
    return weight, weight[:, gone] @ mean[gone].to(weight.dtype)

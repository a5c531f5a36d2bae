"""Built-in criteria of what layers read and of how much they turn the stream: forward passes only.

One that takes inputs is asked for every linear layer that reads the mini-groups, and returns
``[O, I]`` or ``[I]``; without ``weight`` it is asked once for layers that read the same tensor.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from effcompress.registry import criterion

if TYPE_CHECKING:
    from torch import Tensor


@criterion("wanda", paper="arXiv:2306.11695, eq. 1")
def wanda(weight: Tensor, input_norm: Tensor) -> Tensor:
    """``|w| norm(x)``: the size of what a weight adds to its output, summed over a mini-group
    (Wanda-sp in arXiv:2312.11983).
    """
    return weight.abs() * input_norm


@criterion("flap", paper="arXiv:2312.11983, eq. 5 and 7")
def flap(
    weight: Tensor,
    input_variance: Tensor,
    input_norm: Tensor,
    input_fluctuation: Tensor,
    kind: str,
    positions: int,
    *,
    metric: Literal["WIFV", "WIFN", "IFV"] = "WIFV",
    standardise: bool = True,
    compat: bool = False,
) -> Tensor:
    """What is lost when an input is replaced by its mean: its variance times the squared column.

    Within a layer, values are brought to mean 0 and deviation 1, so that layers compare; a head's
    is the mean over its channels. Heads' values are squared before, as the authors' code does.
    ``compat``: their running estimate in place of the variance.
    """
    spread = input_fluctuation if compat else input_variance
    if metric == "IFV":
        value = spread.clone()
    elif metric == "WIFV":
        value = spread * weight.square().sum(0)
    else:
        value = (weight.abs() * input_norm).mean(0)
    if kind in ("attention", "query"):
        value = value.square()
    if standardise:
        value = (value - value.mean()) / value.std().clamp(min=1e-30)
    return value / positions


@criterion("minitron", paper="arXiv:2407.14679, sec. 2.2; NVIDIA ModelOpt")
def minitron(input_abs: Tensor | None, influence: Tensor | None, kind: str) -> Tensor:
    """Activations of a channel: mean magnitude over a sequence, root of the sum of squares over
    sequences; a head's adds up as squares (the root would rank them alike). A channel of the stream
    is measured behind every norm, and added up. Layers: block influence.
    """
    if influence is not None:
        return influence
    assert input_abs is not None
    return input_abs if kind == "hidden" else input_abs.square()


@criterion("block_influence", paper="arXiv:2403.03853, eq. 1")
def block_influence(influence: Tensor) -> Tensor:
    """``1 - cos`` between the residual stream before and after a layer or block."""
    return influence


@criterion("depth_order", paper="arXiv:2305.11627, layer-wise mode")
def depth_order(layer: int, *, keep: Literal["first", "last"] = "first") -> float:
    """Layers by their number: the first (or the last) stay; nothing is measured of them."""
    return 1.0 / (layer + 1) if keep == "first" else layer + 1.0

"""LLM-Pruner: structural pruning of large language models (arXiv:2305.11627).

Its element-wise saliencies are the criteria ``taylor``, ``taylor_second`` and ``taylor_mixed`` with
``signed``. Here is the rest: the vector-wise one on masks (eq. 4), how the saliency of a mini-group
is made of those of its matrices (sec. 3.3), and the layer-wise mode.

``M`` matrices that a mini-group goes through, ``G`` mini-groups, ``B`` positions of each, ``T``
tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from effcompress import criterion, reduction

if TYPE_CHECKING:
    from torch import Tensor


@criterion("mask_taylor", paper="arXiv:2305.11627, eq. 4 (vector-wise)")
def mask_taylor(mask_grad: Tensor) -> Tensor:
    """``|sum_t dL/dm|``, ``[T, G] -> [G]``: first-order change of the loss when a mini-group is
    masked. Micro-batches' magnitudes add up, so their number matters.
    """
    return mask_grad.sum(0).abs()


@criterion("depth_order", paper="arXiv:2305.11627, layer-wise mode")
def depth_order(layer: int, *, keep: Literal["first", "last"] = "first") -> float:
    """Layers by their number: the first (or the last) stay; nothing is measured."""
    return 1.0 / (layer + 1) if keep == "first" else layer + 1.0


@reduction("mean", paper="arXiv:2305.11627, sec. 3.3")
def mean(positions_MGB: Tensor) -> Tensor:
    """Mean over the matrices, position by position: ``[M, G, B] -> [G, B]``."""
    return positions_MGB.mean(0)


@reduction("max", paper="arXiv:2305.11627, sec. 3.3")
def maximum(positions_MGB: Tensor) -> Tensor:
    """Maximum over the matrices, position by position."""
    return positions_MGB.amax(0)


@reduction("prod", paper="arXiv:2305.11627, sec. 3.3")
def product(positions_MGB: Tensor) -> Tensor:
    """Product over the matrices, position by position."""
    return positions_MGB.prod(0)


@reduction("last", paper="arXiv:2305.11627, sec. 3.3")
def last(positions_MGB: Tensor) -> Tensor:
    """The last of the matrices alone counts."""
    return positions_MGB[-1]

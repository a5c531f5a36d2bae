"""Wanda: zeros by what a weight adds to the output."""

from __future__ import annotations

from typing import TYPE_CHECKING

from effcompress.registry import sparsifier
from effcompress.sparsity.choose import Per, chosen

if TYPE_CHECKING:
    from torch import Tensor

    from effcompress.spec import Pattern

CLOSE = 1e-3
"""How near the search comes to the share that was asked for."""


@sparsifier("wanda", paper="arXiv:2306.11695")
def wanda(
    weight: Tensor,
    input_norm: Tensor,
    sparsity: float,
    pattern: Pattern | None,
    *,
    per: Per = "row",
    alpha_search: bool = False,
) -> Tensor:
    """In each row the weights with the least ``|w|`` times norm of their input become zero.

    No weight is updated. ``alpha_search`` (the authors' variant, without a pattern): a row loses
    weights while their scores add up to at most ``alpha`` of the row's sum, so that rows may lose
    different shares; ``alpha`` is bisected until the layer's share is within 0.1 % of ``sparsity``.
    The authors bisect within 0 and 0.8, which high shares do not fit into; here it is 0 and 1.
    """
    score_OI = weight.abs().float() * input_norm
    if alpha_search and pattern is None:
        gone_OI = _by_alpha(score_OI, sparsity)
    else:
        gone_OI = chosen(score_OI, sparsity, pattern, per)
    return weight.masked_fill(gone_OI, 0.0)


def _by_alpha(score_OI: Tensor, sparsity: float) -> Tensor:
    """``[O, I]`` bool: what every row can lose for the same share of its sum."""
    import torch

    sorted_OI, index_OI = score_OI.double().sort(dim=1, stable=True)
    sums_OI = sorted_OI.cumsum(1)
    total_O1 = sums_OI[:, -1:]
    low, high = 0.0, 1.0
    first_OI = sums_OI <= 0.0
    for _ in range(60):
        alpha = (low + high) / 2
        first_OI = sums_OI <= alpha * total_O1
        share = float(first_OI.double().mean())
        if abs(share - sparsity) <= CLOSE:
            break
        low, high = (low, alpha) if share > sparsity else (alpha, high)
    gone_OI = torch.zeros_like(first_OI)
    return gone_OI.scatter_(1, index_OI, first_OI)

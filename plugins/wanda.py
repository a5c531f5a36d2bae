"""Wanda: pruning by weights and activations (arXiv:2306.11695), and Wanda-sp, its structured form
(arXiv:2312.11983).

A weight matters as much as it adds to its output: ``|W_ij| ||x_j||`` (eq. 1). Nothing is updated.

``O, I`` outputs and inputs of a linear layer; ``||x_j||`` is the root mean square over tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from effcompress import criterion, lowest, sparsifier

if TYPE_CHECKING:
    from torch import Tensor

    from effcompress import Pattern

CLOSE = 1e-3
"""How near the search for ``alpha`` comes to the sparsity that was asked for."""


@criterion("wanda", paper="arXiv:2306.11695, eq. 1")
def wanda_sp(weight: Tensor, input_norm: Tensor) -> Tensor:
    """``|w| norm(x)``: the size of what a weight adds to its output, summed over a mini-group
    (Wanda-sp in arXiv:2312.11983), ``[O, I]``.
    """
    return weight.abs() * input_norm


def rows_or_pattern(pattern: Pattern | None, *, alpha_search: bool) -> tuple[str, str] | None:
    """What is wrong where a pattern and the search for ``alpha`` meet."""
    if pattern is None or not alpha_search:
        return None
    what = "alpha_search lets rows lose different fractions, a pattern does not"
    return what, "Keep one of the two."


@sparsifier("wanda", paper="arXiv:2306.11695", check=rows_or_pattern)
def wanda(
    weight: Tensor,
    input_norm: Tensor,
    sparsity: float,
    pattern: Pattern | None,
    *,
    per: Literal["row", "layer"] = "row",
    alpha_search: bool = False,
) -> Tensor:
    """In each row the weights with the least ``|w|`` times norm of their input become zero.

    ``per``: among what a weight competes, its row or the whole layer.
    ``alpha_search`` (the authors' variant, without a pattern): a row loses weights while their
    scores add up to at most ``alpha`` of the row's sum, so that rows may lose different fractions;
    ``alpha`` is bisected until the layer's fraction is within 0.1 % of ``sparsity``. The authors
    bisect between 0 and 0.8, where high sparsities do not fit; here it is between 0 and 1.
    """
    score_OI = weight.abs().float() * input_norm
    if alpha_search and pattern is None:
        gone_OI = _by_alpha(score_OI, sparsity)
    else:
        gone_OI = lowest(score_OI, pattern or sparsity, per)
    return weight.masked_fill(gone_OI, 0.0)


def _by_alpha(score_OI: Tensor, sparsity: float) -> Tensor:
    """``[O, I]`` bool: what every row can lose for the same fraction ``alpha`` of its sum."""
    sorted_OI, index_OI = score_OI.double().sort(dim=1, stable=True)
    sums_OI = sorted_OI.cumsum(1)
    total_O1 = sums_OI[:, -1:]
    low, high = 0.0, 1.0
    first_OI = sums_OI <= 0.0
    for _ in range(60):
        alpha = (low + high) / 2
        first_OI = sums_OI <= alpha * total_O1
        fraction = float(first_OI.double().mean())
        if abs(fraction - sparsity) <= CLOSE:
            break
        low, high = (low, alpha) if fraction > sparsity else (alpha, high)
    return first_OI.new_zeros(first_OI.shape).scatter_(1, index_OI, first_OI)

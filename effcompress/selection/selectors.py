"""Built-in selectors: make the saliency of candidates of different kinds comparable. The engine
removes the candidate with the lowest value (``selection/choose.py``).

A candidate is one mini-group of a set, or, in lockstep, one from each layer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from effcompress.registry import selector

if TYPE_CHECKING:
    from torch import Tensor


@selector("least_salient", paper="arXiv:2502.06663")
def least_salient(
    score_K: Tensor,
    params_K: Tensor,
    mean_K: Tensor,
    *,
    normalise: Literal["raw", "per_parameter", "per_kind"] = "per_parameter",
) -> Tensor:
    """Type and channel together: the lowest saliency, as it is (raw), for each parameter that the
    removal frees (per_parameter), or relative to the mean of its own kind (per_kind).
    """
    if normalise == "raw":
        return score_K
    return score_K / (params_K if normalise == "per_parameter" else mean_K)


@selector("proportional", paper="baseline")
def proportional(removed_after_K: Tensor) -> Tensor:
    """Every kind loses the same fraction of its units, rounded down to whole units; saliency only
    ranks within a kind. Fractions after the removal are compared, so no kind runs ahead.
    """
    return removed_after_K


@selector("in_turns", paper="baseline")
def in_turns(removed_K: Tensor) -> Tensor:
    """The kind that has lost the smallest fraction so far is next: every kind is cut from the
    beginning, and one of few units runs ahead of the finer ones.
    """
    return removed_K

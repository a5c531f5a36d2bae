"""The built-in repair, and which repairs correct what: known from signatures, without torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from effcompress.registry import Bound, repair
from effcompress.spec import PruneSpec

if TYPE_CHECKING:
    from torch import Tensor


@repair("norm_gain", paper="new")
def norm_gain(gain: Tensor, epsilon: float, before: int, after: int) -> tuple[Tensor, float]:
    """Keeps an RMSNorm's output when it averages over fewer channels.

    The removed channels are zero, so the mean square grows by ``before / after``; scaling the gain
    by its root and epsilon by itself restores the output exactly.
    """
    return gain * (before / after) ** 0.5, epsilon * before / after


def for_norms(repairs: Sequence[Bound]) -> list[Bound]:
    """Repairs of a norm's gain."""
    return [r for r in repairs if "gain" in r.needs]


def for_linears(repairs: Sequence[Bound]) -> list[Bound]:
    """Repairs of a linear layer's weight."""
    return [r for r in repairs if "weight" in r.needs]


def for_experts(repairs: Sequence[Bound]) -> list[Bound]:
    """Repairs that put a constant in an expert's place."""
    return [r for r in repairs if "output_mean" in r.needs]


def for_biases(repairs: Sequence[Bound]) -> list[Bound]:
    """Those of them that change biases, too."""
    return [r for r in for_linears(repairs) if "mean" in r.needs]


def for_streams(prune: PruneSpec) -> bool:
    """Whether its refit changes biases."""
    return prune.refit is not None and "mean" in prune.refit.needs


def need_second_moments(repairs: Sequence[Bound]) -> bool:
    """Whether any of them uses Gram matrices."""
    return any("gram" in r.needs for r in for_linears(repairs))

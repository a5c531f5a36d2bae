"""Which repairs correct what; known from their signatures, without torch."""

from __future__ import annotations

from collections.abc import Sequence

from effcompress.registry import Bound
from effcompress.spec import PruneSpec


def for_norms(repairs: Sequence[Bound]) -> list[Bound]:
    """Repairs of a norm's gain."""
    return [repair for repair in repairs if "gain" in repair.needs]


def for_linears(repairs: Sequence[Bound]) -> list[Bound]:
    """Repairs of a linear layer's weight."""
    return [repair for repair in repairs if "weight" in repair.needs]


def for_biases(repairs: Sequence[Bound]) -> list[Bound]:
    """Those of them that change biases, too."""
    return [repair for repair in for_linears(repairs) if "mean" in repair.needs]


def for_streams(prune: PruneSpec) -> bool:
    """Whether its refit changes biases."""
    return prune.refit is not None and "mean" in prune.refit.needs


def need_second_moments(repairs: Sequence[Bound]) -> bool:
    """Whether any of them uses Gram matrices."""
    return any("gram" in repair.needs for repair in for_linears(repairs))

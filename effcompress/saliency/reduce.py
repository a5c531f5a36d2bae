"""From the saliency of positions to that of a mini-group: within each matrix, then over them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from effcompress.registry import reduction
from effcompress.spec import ReduceSpec

if TYPE_CHECKING:
    from torch import Tensor


@reduction("sum", paper="baseline")
def total(sums_MG: Tensor) -> Tensor:
    """Sum over the matrices that a mini-group goes through: ``[M, G] -> [G]``."""
    return sums_MG.sum(0)


def reduce(parts: Sequence[Tensor], spec: ReduceSpec) -> Tensor:
    """``[G]`` from one ``[G, B]`` per matrix: the saliency of every position that a mini-group owns
    there (``B`` differs between matrices: a KV group owns one head of keys and several of queries).

    With ``channel: abs`` the sign of a position's sum goes first. A reduction of ``positions_MGB``
    compares position with position: a matrix with more of them than the narrowest is folded onto
    it (the query heads of a KV group onto its key head).

    Raises PluginError when the reduction returns another shape.
    """
    import torch

    if spec.channel == "abs":
        parts = [part_GB.abs() for part_GB in parts]
    if spec.compat:
        each, count = math.gcd(*(part_GB.shape[1] for part_GB in parts)), len(parts[0])
        # All heads in their order, read as r rows of G: unit g gets heads g, g + G, g + 2 G, ...
        heads = [part_GB.reshape(-1, count, each) for part_GB in parts]
        parts = [heads_RGE.transpose(0, 1).reshape(count, -1) for heads_RGE in heads]
    bound = spec.members
    if bound is None or "positions_MGB" not in bound.needs:
        sums_MG = torch.stack([part_GB.sum(1) for part_GB in parts])
        score = sums_MG.sum(0) if bound is None else bound(sums_MG=sums_MG)
    else:
        narrowest = math.gcd(*(part_GB.shape[1] for part_GB in parts))
        folded = [part_GB.unflatten(1, (-1, narrowest)).sum(1) for part_GB in parts]
        sums_MG = torch.stack([part_GB.sum(1) for part_GB in folded])
        score = bound(positions_MGB=torch.stack(folded), sums_MG=sums_MG)
        score = score.sum(1) if isinstance(score, torch.Tensor) and score.dim() == 2 else score
    if bound is not None:
        groups = (len(parts[0]),)
        bound.plugin.require_shape(score, f"where {groups} was expected", groups)
    return score

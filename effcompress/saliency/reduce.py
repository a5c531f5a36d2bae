"""From the saliency of positions to that of a mini-group: within each matrix, then over them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from effcompress.spec import ReduceSpec


def reduce(parts: Sequence[Tensor], spec: ReduceSpec) -> Tensor:
    """``[G]`` from one ``[G, B]`` per matrix: the saliency of every position that a mini-group owns
    there (``B`` differs between matrices: a KV group owns one head of keys and several of queries).

    With ``channel: abs`` the sign of a position's sum goes first. Over matrices, ``sum`` needs no
    alignment. The others compare position with position: a matrix with more of them than the least
    is folded onto it (query heads of a group onto its key head), as LLM-Pruner does, but by the
    group that they belong to (arXiv:2305.11627; its code adds heads of other groups under GQA).
    """
    if spec.channel == "abs":
        parts = [part_GB.abs() for part_GB in parts]
    if spec.members == "sum":
        return torch.stack([part_GB.sum(1) for part_GB in parts]).sum(0)
    each = math.gcd(*(part_GB.shape[1] for part_GB in parts))
    folded_MGB = torch.stack([part_GB.unflatten(1, (-1, each)).sum(1) for part_GB in parts])
    if spec.members == "mean":
        over_GB = folded_MGB.mean(0)
    elif spec.members == "max":
        over_GB = folded_MGB.amax(0)
    elif spec.members == "prod":
        over_GB = folded_MGB.prod(0)
    else:
        over_GB = folded_MGB[-1]
    return over_GB.sum(1)

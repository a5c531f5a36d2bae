"""Built-in pruning spaces: which mini-groups may go, and whether layers move in step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from effcompress.registry import space
from effcompress.spec import Positive
from effcompress.types import AxisMap, GroupSet


@space("ffn", paper="arXiv:2502.06663, type II")
def ffn(
    axes: AxisMap,
    *,
    scope: Literal["lockstep", "per_layer"] = "lockstep",
    minimum: Positive = 1,
    round_to: Positive = 1,
) -> Iterator[GroupSet]:
    """One channel of a feed-forward block: its gate and up rows and its down column. With
    ``round_to`` channels go in blocks, so that every width on the way is a multiple of it.
    """
    yield from axes.sets("ffn", scope=scope, minimum=minimum, round_to=round_to)


@space("attention", paper="arXiv:2502.06663, type I")
def attention(
    axes: AxisMap,
    *,
    scope: Literal["lockstep", "per_layer"] = "lockstep",
    unit: Literal["kv_group"] = "kv_group",
    minimum: Positive = 1,
) -> Iterator[GroupSet]:
    """One KV head with all its query heads: rows of q, k, v and columns of o."""
    yield from axes.sets("attention", scope=scope, minimum=minimum)


@space("hidden", paper="arXiv:2502.06663, type III")
def hidden(axes: AxisMap, *, minimum: Positive = 1, round_to: Positive = 1) -> Iterator[GroupSet]:
    """One channel of the residual stream, through every layer, norm and projection. With
    ``round_to`` channels go in blocks, so that every width on the way is a multiple of it.
    """
    yield from axes.sets("hidden", scope="lockstep", minimum=minimum, round_to=round_to)

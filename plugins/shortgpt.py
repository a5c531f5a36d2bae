"""ShortGPT: layers are more redundant than expected (arXiv:2403.03853).

A layer that hardly turns the residual stream can go. Block influence (eq. 1) is
``1 - E[cos(stream before, stream after)]``, the mean over tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from effcompress import criterion, statistic

if TYPE_CHECKING:
    from torch import Tensor


@statistic("influence", paper="arXiv:2403.03853, eq. 1")
def influence(before: Tensor, after: Tensor) -> Tensor:
    """``1 - cos`` of the residual stream before and after a layer or block:
    ``[T, hidden] -> [T]``.
    """
    from torch.nn.functional import cosine_similarity

    return 1.0 - cosine_similarity(before, after, dim=-1)


@criterion("block_influence", paper="arXiv:2403.03853, eq. 1")
def block_influence(influence: Tensor) -> Tensor:
    """``1 - cos`` between the residual stream before and after a layer or block, ``[1]``."""
    return influence

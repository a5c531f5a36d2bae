"""The built-in repair: norms over fewer channels."""

from __future__ import annotations

from typing import TYPE_CHECKING

from effcompress.registry import repair

if TYPE_CHECKING:
    from torch import Tensor


@repair("norm_gain", paper="new")
def norm_gain(gain: Tensor, epsilon: float, before: int, after: int) -> tuple[Tensor, float]:
    """Keeps an RMSNorm's output when it averages over fewer channels.

    The removed channels are zero, so the mean square grows by ``before / after``; scaling the gain
    by its root and epsilon by itself restores the output exactly.
    """
    return gain * (before / after) ** 0.5, epsilon * before / after

"""Zeros by the size of weights alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from effcompress.registry import sparsifier
from effcompress.sparsity.choose import Per, lowest

if TYPE_CHECKING:
    from torch import Tensor

    from effcompress.spec import Pattern


@sparsifier("magnitude", paper="arXiv:1506.02626")
def magnitude(
    weight: Tensor, sparsity: float, pattern: Pattern | None, *, per: Per = "layer"
) -> Tensor:
    """The smallest weights of a layer become zero; nothing is read, no other changes.

    ``per``: all weights of a layer compete, or those of each row. With a pattern, those of each
    group.
    """
    return weight.masked_fill(lowest(weight.abs(), pattern or sparsity, per), 0.0)

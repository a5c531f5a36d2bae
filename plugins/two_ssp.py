"""2SSP: a two-stage framework for structured pruning of LLMs (arXiv:2501.17771).

Width first: every layer loses equally many FFN channels, those of the smallest norm (sec. 3.1).
Then depth: attention blocks go one by one, each time the one without which the loss is lowest (sec.
3.2).

``K`` candidates for removal.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from effcompress import Due, Positive, criterion, schedule, selector, statistic

if TYPE_CHECKING:
    from torch import Tensor

WHOLE = ("layer", "attention_block", "mlp_block")


@statistic("sequence_norm", paper="arXiv:2501.17771, sec. 3.1")
def sequence_norm(
    x: Tensor, state: tuple[Tensor, Tensor, int] | None
) -> tuple[Tensor, Tensor, int]:
    """Mean over sequences of the L2 norm over a sequence's tokens: ``[T, I] -> [I]``."""
    norm_I = x.square().sum(0).sqrt()
    total_I, count = (norm_I, 1) if state is None else (state[1] + norm_I, state[2] + 1)
    return total_I / count, total_I, count


@criterion("two_ssp", paper="arXiv:2501.17771")
def two_ssp(sequence_norm: Tensor | None, loss_increase: Tensor | None) -> Tensor:
    """Of what linear layers read, the norm of each channel, ``[I]``; of layers and blocks, by how
    much the loss rises without them, ``[1]``.
    """
    found = loss_increase if sequence_norm is None else sequence_norm
    assert found is not None
    return found


@selector("width_first", paper="arXiv:2501.17771")
def width_first(score_K: Tensor, begun_K: Tensor) -> Tensor:
    """Layers and blocks (sets of one unit) wait until no width may go; then saliency decides,
    ``[K]``.
    """
    span = score_K.max() - score_K.min() + 1.0
    return score_K + span * (begun_K == 1)


@schedule("two_stages", paper="arXiv:2501.17771")
def two_stages(
    params: int,
    target_params: int,
    groups_cut: int,
    left: Mapping[str, int],
    *,
    first: Positive | None = None,
) -> Due | None:
    """The widths at once, all that the target lets go (or their ``first`` mini-groups), then layers
    and blocks one by one; saliency is measured anew before each.
    """
    if params <= target_params:
        return None
    widths = sum(groups for kind, groups in left.items() if kind not in WHOLE)
    if first is not None:
        widths = min(widths, first - groups_cut)
    return Due(groups=max(widths, 1), again=True)

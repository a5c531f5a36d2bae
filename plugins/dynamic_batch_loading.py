"""Sheared-LLaMA's dynamic batch loading: domains that are behind give more samples
(arXiv:2310.06694, section 2.2 and algorithm 1).

``w' = (1 - floor) softmax(ln w + eta (l - r)) + floor / D``: log-odds add up, so a domain whose
held-out loss ``l`` stays above its reference ``r`` takes more and more, and none ever falls below
``floor / D``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from effcompress import Fraction, NotNegative, mixture

if TYPE_CHECKING:
    from torch import Tensor


def _smoothed(weights: Tensor, floor: float) -> Tensor:
    return (1.0 - floor) * weights + floor / len(weights)


@mixture("dynamic", paper="arXiv:2310.06694, algorithm 1; its code by default")
def dynamic(
    weights: Tensor,
    losses: Tensor,
    reference: Tensor,
    *,
    eta: NotNegative = 1.0,
    floor: Fraction = 1e-4,
    clip: bool = False,
) -> Tensor:
    """Weights times ``exp(eta (loss - reference))``, normalised, ``[D]``.

    ``floor``: fraction that is spread evenly over all domains. ``clip``: a domain that is ahead of
    its reference counts as equal to it, as the paper's algorithm says (its code does not).
    """
    behind = losses - reference
    behind = behind.clamp(min=0.0) if clip else behind
    return _smoothed((weights.log() + eta * behind).softmax(0), floor)


@mixture("bandit", paper="the code of arXiv:2310.06694")
def bandit(
    weights: Tensor,
    losses: Tensor,
    reference: Tensor,
    *,
    eta: NotNegative = 1.0,
    floor: Fraction = 1e-4,
) -> Tensor:
    """Softmax of ``weights + eta (loss - reference)``, ``[D]``.

    The weights enter themselves, not their logarithm: what was gained before is mostly forgotten.
    """
    return _smoothed((weights + eta * (losses - reference)).softmax(0), floor)


@mixture("constant", paper="the code of arXiv:2310.06694")
def constant(weights: Tensor) -> Tensor:
    """Leaves the weights as they are, ``[D]``; the losses are measured and recorded."""
    return weights

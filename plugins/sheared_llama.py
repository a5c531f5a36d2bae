"""Sheared-LLaMA: masks that are learned towards a shape (arXiv:2310.06694, sec. 2.1), by
hard-concrete gates (arXiv:1712.01312) under a Lagrangian (arXiv:1910.04732).

``N`` gates, ``R`` rows of one family, ``G`` gates of one row.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from effcompress import Due, constraint, criterion, gate, schedule

if TYPE_CHECKING:
    from torch import Tensor


def shift(temperature: float, stretch: float) -> float:
    """What is added to a logit in the probability that the gate is not 0."""
    return temperature * math.log((1 + stretch) / stretch)


def within_reach(
    fractions: Mapping[str, float], limit: float, *, temperature: float, stretch: float
) -> tuple[str, str] | None:
    """Logits between ``-limit`` and ``limit`` expect neither all nor none of the gates shut."""
    moved = shift(temperature, stretch)
    least, most = (1 / (1 + math.exp(moved + a)) for a in (limit, -limit))
    for kind, fraction in fractions.items():
        if not least <= fraction <= most:
            return (
                f"{fraction:.2%} of '{kind}' are to go, and gates can expect {least:.2%} to "
                f"{most:.2%}",
                f"Name another number of '{kind}', or take it out of space and shape.",
            )
    return None


@gate("hard_concrete", paper="arXiv:1712.01312", check=within_reach)
def hard_concrete(
    logit: Tensor, uniform: Tensor | None, *, temperature: float = 2 / 3, stretch: float = 0.1
) -> tuple[Tensor, Tensor]:
    """A concrete variable stretched to ``[-stretch, 1 + stretch]`` and clamped to ``[0, 1]``, so
    that it is 0, or 1, with a probability above 0: ``sigmoid(logit - shift)`` of 0 shut.

    Returns the values, ``z = clamp((1 + 2 s) sigmoid((ln(u / (1 - u)) + logit) / t) - s)``, or
    ``sigmoid(0.8 logit / t)`` without noise, and ``P(z > 0)``.
    """
    open_N = (logit + shift(temperature, stretch)).sigmoid().clamp(1e-6, 1 - 1e-6)
    if uniform is None:
        return (0.8 * logit / temperature).sigmoid(), open_N
    noise_N = uniform.log() - (-uniform).log1p()
    value_N = ((noise_N + logit) / temperature).sigmoid()
    return (value_N * (1 + 2 * stretch) - stretch).clamp(0, 1), open_N


@constraint("lagrangian", paper="arXiv:1910.04732, eq. 11")
def lagrangian(expected: Tensor, target: Tensor, linear: Tensor, quadratic: Tensor) -> Tensor:
    """``l1 (e - t) + l2 (e - t)^2``, mean over the rows of a family. Below the target ``l1`` falls
    below 0 and rewards sparsity; ``l2`` can only grow.
    """
    over_R = expected - target
    return (linear * over_R + quadratic * over_R.square()).mean()


@criterion("learned_gates", paper="arXiv:2310.06694")
def learned_gates(logit: Tensor) -> Tensor:
    """The gate's probability of being open, less its constant shift: in every row the lowest
    logits go, ``[G]``.
    """
    return logit.sigmoid()


@schedule("at_end", paper="arXiv:2310.06694")
def at_end(tokens: int, prune_until: int, target_params: int) -> Due | None:
    """Everything when the pruning stage ends: what was learned up to its last step decides."""
    return Due(params=target_params) if tokens >= prune_until else None

"""Built-in criteria: saliency of every weight, same shape as the weight. A mini-group's saliency is
the sum over its weights (``saliency/score.py``).

Only tensor methods are used, so registering them needs no torch import.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from effcompress.registry import criterion

if TYPE_CHECKING:
    from torch import Tensor


@criterion("random", paper="baseline")
def random(uniform: Tensor) -> Tensor:
    """Uniform in [0, 1), independent of the weight; from torch's global generator."""
    return uniform


@criterion("magnitude", paper="arXiv:1608.08710")
def magnitude(weight: Tensor, *, norm: Literal["l1", "l2"] = "l1") -> Tensor:
    """``|w|`` (l1) or ``w^2`` (l2)."""
    return weight.abs() if norm == "l1" else weight.square()


@criterion("taylor", paper="arXiv:2305.11627, eq. 4")
def taylor(weight: Tensor, grad: Tensor, *, signed: bool = False) -> Tensor:
    """``|w g|``: first-order change of the loss when the weight becomes zero; ``signed``: ``w g``,
    for a ``reduce`` that takes the magnitude of whole channels.
    """
    return weight * grad if signed else (weight * grad).abs_()


@criterion("taylor_second", paper="arXiv:2305.11627, eq. 3")
def taylor_second(weight: Tensor, hess: Tensor) -> Tensor:
    """``w^2 h / 2``: second-order change of the loss, diagonal Hessian (optimal brain damage)."""
    return weight.square().mul_(hess).mul_(0.5)


@criterion("taylor_mixed", paper="arXiv:2305.11627, eq. 5")
def taylor_mixed(weight: Tensor, grad: Tensor, hess: Tensor) -> Tensor:
    """``|w g - w^2 h / 2|``: both orders together."""
    return (weight * grad - weight.square() * hess * 0.5).abs_()

"""REAP: router-weighted expert activation pruning (arXiv:2510.13999), and the criteria that it is
compared with.

Expert j of ``E`` is sent ``N_j`` tokens of the calibration text and returns ``f_j`` for each, which
the router multiplies by ``g_j``. An expert that was sent no token has the saliency 0.

``T``: tokens of one sequence that are sent to one expert; ``K``: experts per token.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from effcompress import criterion, statistic

if TYPE_CHECKING:
    from torch import Tensor


@statistic("output_norm", paper="arXiv:2510.13999")
def output_norm(output: Tensor) -> Tensor:
    """``||f||``, the norm of what an expert returns: ``[T, hidden] -> [T]``."""
    return output.norm(dim=-1)


@statistic("output_square", paper="arXiv:2606.15716")
def output_square(output: Tensor) -> Tensor:
    """``||f||^2``: ``[T, hidden] -> [T]``."""
    return output.square().sum(-1)


@statistic("gated_norm", paper="arXiv:2510.13999")
def gated_norm(output: Tensor, gate: Tensor) -> Tensor:
    """``g ||f||`` with the router's weight as the model applies it: ``[T]``."""
    return gate * output.norm(dim=-1)


@statistic("renormalised_norm", paper="arXiv:2510.13999, the authors' code")
def renormalised_norm(output: Tensor, gate: Tensor, gates: Tensor) -> Tensor:
    """``g ||f||`` with weights that sum to 1 over the experts of a token: ``[T]``."""
    return gate / gates.sum(-1) * output.norm(dim=-1)


@criterion("reap", paper="arXiv:2510.13999")
def reap(gated_norm: Tensor, renormalised_norm: Tensor, *, renormalise: bool = True) -> Tensor:
    """Mean of ``g_j ||f_j||`` over the tokens sent to an expert, ``[E]``.

    ``renormalise``: the weights of a token's experts sum to 1, as in the authors' code since
    2026-03-11, whatever the model does.
    """
    return renormalised_norm if renormalise else gated_norm


@criterion("man", paper="arXiv:2606.15716")
def man(output_norm: Tensor) -> Tensor:
    """Mean of ``||f_j||`` over the tokens sent to an expert, ``[E]``."""
    return output_norm


@criterion("msan", paper="arXiv:2606.15716")
def msan(output_square: Tensor) -> Tensor:
    """Mean of ``||f_j||^2`` over the tokens sent to an expert, ``[E]``."""
    return output_square


@criterion("ean", paper="arXiv:2510.13999")
def ean(output_norm: Tensor, routed: Tensor) -> Tensor:
    """Sum of ``||f_j||`` over the tokens sent to an expert, ``[E]``."""
    return output_norm * routed


@criterion("frequency", paper="arXiv:2510.13999")
def frequency(routed: Tensor) -> Tensor:
    """Number of tokens sent to an expert, ``[E]``."""
    return routed

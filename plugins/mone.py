"""MoNE: replacing redundant experts with lightweight novices (arXiv:2507.00390).

An expert that is seldom chosen, or returns nearly the same for every token, can be replaced by a
constant: the mean of what it returned. The router keeps its row, so that tokens go to the constant
with the weight that they gave the expert. What is lost is the deviation from the mean, as often as
the router's weights let it through.

``T``: tokens of one sequence that are sent to one expert.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from effcompress import criterion, repair, statistic

if TYPE_CHECKING:
    from torch import Tensor

    State = tuple[Tensor, int, Tensor, Tensor]


@statistic("output_deviation", paper="arXiv:2507.00390")
def output_deviation(output: Tensor, state: State | None) -> State:
    """Norm of the unbiased standard deviation of what an expert returns, one number; 0 for a single
    token. Sequences are merged by their means and sums of squared distances from them.
    """
    n, mean = len(output), output.mean(0)
    squares = (output - mean).square().sum(0)
    if state is not None:
        _, before, old, old_squares = state
        apart = mean - old
        squares = squares + old_squares + apart.square() * (before * n / (before + n))
        mean = old + apart * (n / (before + n))
        n = before + n
    return (squares / max(1, n - 1)).sqrt().norm(), n, mean, squares


@statistic("gate_mean", paper="arXiv:2507.00390")
def gate_mean(gate: Tensor) -> Tensor:
    """The router's weight of an expert where it is chosen: ``[T]``."""
    return gate


@criterion("mone", paper="arXiv:2507.00390; vllm-project/llm-compressor, pull request 2906")
def mone(output_deviation: Tensor, gate_mean: Tensor, routed: Tensor) -> Tensor:
    """Deviation of an expert's output times the router's weight of it, averaged over all tokens (0
    where it is not chosen), ``[E]``; the latter up to the number of experts per token.
    """
    access = gate_mean * routed / routed.sum().clamp(min=1.0)
    return output_deviation * access


@repair("novice", paper="arXiv:2507.00390")
def novice(output_mean: Tensor) -> Tensor:
    """The constant in an expert's place: the mean of what it returned, ``[hidden]``."""
    return output_mean

"""ZipLM: structures removed one at a time by second order, and one level per block by dynamic
programming, under a budget of time (arXiv:2302.04089).

Of ZipLM's own code only a README is public. Removal follows the form in which DarwinLM
(arXiv:2502.07780) has it, the choice that of SPDY (arXiv:2201.13096). For a linear layer
``y = W x`` with ``H = E[x x^T]`` the error of a change is ``tr(dW H dW^T)``.

``O, I`` outputs and inputs of the layer, ``G`` mini-groups of ``B`` inputs each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from effcompress import (
    Count,
    NotNegative,
    Positive,
    RunError,
    allocation,
    criterion,
    damped_cholesky,
    least_error,
)

if TYPE_CHECKING:
    from torch import Generator, Tensor

BLOCK = 64
"""Single inputs that are removed between two updates of whole matrices."""


@criterion("ziplm", paper="arXiv:2302.04089, section 3; arXiv:2502.07780")
def ziplm(
    weight: Tensor,
    gram: Tensor,
    positions: int,
    *,
    damp: NotNegative = 0.01,
    relative: bool = True,
) -> Tensor:
    """Error of the layer once a mini-group and all that went before it are gone, ``[G]``.

    Always the mini-group ``S`` goes next whose removal adds least,
    ``sum_i W_iS (Hinv_SS)^-1 W_iS^T``, while the inputs that stay take over (equation 3). With
    ``relative`` divided by the error without the layer, ``tr(W H W^T)``. ``damp`` times the mean of
    the diagonal is added to ``H``; an input that is always zero goes for nothing. In fp64.
    """
    import torch

    hess_II, weight_OI = _without_dead(gram, weight)
    damping = damp * float(hess_II.diagonal().mean())
    factor_II = damped_cholesky(hess_II, damping, tries=8)
    if factor_II is None:
        raise RunError(
            "the second moments of a layer's inputs are not positive definite",
            fix="More calibration text (prune.measure.sequences), or a larger `damp`.",
        )
    hess_II.diagonal().add_(damping)
    whole = float(((weight_OI @ hess_II) * weight_OI).sum())
    inverse_II = torch.cholesky_inverse(factor_II)
    remove = _single if positions == 1 else _grouped
    order_G, added_G = remove(weight_OI, inverse_II, positions)
    error_G = torch.empty_like(added_G)
    error_G[order_G] = added_G.clamp(min=0.0).cumsum(0)
    return error_G / whole if relative and whole > 0 else error_G


@allocation("dynamic_program", paper="arXiv:2302.04089, equation 5; search: arXiv:2201.13096")
def dynamic_program(
    error_ML: Sequence[Sequence[float]],
    cost_ML: Sequence[Sequence[float]],
    budget: float,
    loss: Callable[[Sequence[int], int], float],
    sequences: int,
    generator: Generator,
    *,
    buckets: Positive = 10_000,
    search: Count = 0,
    patience: Positive = 100,
) -> list[int]:
    """The levels of least error in sum whose costs fit into the budget.

    With ``search`` the errors of module ``l`` are multiplied by ``c_l``: that many times all ``c``
    are drawn between 0 and 1, then ever fewer of them (a tenth of the modules down to one) are
    drawn anew, until ``patience`` draws in a row do not lower the loss of the whole model. Without
    it ``c = 1`` and the loss is not asked for.
    """

    def choice(factor_M: Sequence[float]) -> list[int]:
        scaled = [[c * e for e in errors] for c, errors in zip(factor_M, error_ML, strict=True)]
        return least_error(scaled, cost_ML, budget, buckets=buckets)

    plain = [1.0] * len(error_ML)
    if search <= 0:
        return choice(plain)
    return choice(
        _searched(choice, lambda c: loss(c, sequences), plain, generator, search, patience)
    )


def _searched(
    choice: Callable[[Sequence[float]], list[int]],
    loss: Callable[[Sequence[int]], float],
    plain: list[float],
    generator: Generator,
    draws: int,
    patience: int,
) -> list[float]:
    """The factors whose choice has the least loss, that of no factors among them."""
    known: dict[tuple[int, ...], float] = {}

    def value(factor_M: list[float]) -> float:
        levels = choice(factor_M)
        if tuple(levels) not in known:
            known[tuple(levels)] = loss(levels)
        return known[tuple(levels)]

    best, least = plain, value(plain)
    for _ in range(draws):
        drawn = _uniform(len(plain), generator)
        if (found := value(drawn)) < least:
            best, least = drawn, found
    for count in range(max(1, round(0.1 * len(plain))), 0, -1):
        failures = 0
        while failures < min(patience, draws):
            tried, fresh = list(best), _uniform(count, generator)
            for m, factor in zip(_some(len(plain), count, generator), fresh, strict=True):
                tried[m] = factor
            found = value(tried)
            failures = 0 if found < least else failures + 1
            if found < least:
                best, least = tried, found
    return best


def _uniform(count: int, generator: Generator) -> list[float]:
    import torch

    return torch.rand(count, generator=generator, dtype=torch.float64).tolist()


def _some(of: int, count: int, generator: Generator) -> list[int]:
    import torch

    return torch.randperm(of, generator=generator)[:count].tolist()


def _without_dead(gram: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """``H`` with 1 on the diagonal and the weight with 0 where an input is always zero; in fp64."""
    import torch

    hess_II = gram.to(torch.float64, copy=True)
    weight_OI = weight.to(torch.float64, copy=True)
    dead_I = hess_II.diagonal() <= 0
    hess_II.diagonal()[dead_I] = 1.0
    weight_OI[:, dead_I] = 0.0
    return hess_II, weight_OI


def _grouped(weight_OI: Tensor, inverse_II: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The order in which mini-groups of ``size`` inputs go, and the error that each adds, [G]."""
    import torch

    groups = weight_OI.shape[1] // size
    left, order, added = list(range(groups)), list[int](), list[float]()
    while left:
        tried = {g: _error(weight_OI, inverse_II, slice(g * size, (g + 1) * size)) for g in left}
        g = min(left, key=tried.__getitem__)
        at = slice(g * size, (g + 1) * size)
        solved_SI = torch.linalg.solve(inverse_II[at, at], inverse_II[at])
        weight_OI = weight_OI - weight_OI[:, at] @ solved_SI
        inverse_II = inverse_II - inverse_II[:, at] @ solved_SI
        weight_OI[:, at] = 0.0
        # What is left of the removed block is rounding; 1 keeps its inverse.
        inverse_II[at], inverse_II[:, at] = 0.0, 0.0
        inverse_II[at, at] = torch.eye(size, dtype=inverse_II.dtype, device=inverse_II.device)
        left.remove(g)
        order.append(g)
        added.append(tried[g])
    on = weight_OI.device
    return torch.tensor(order, device=on), torch.tensor(added, dtype=torch.float64, device=on)


def _error(weight_OI: Tensor, inverse_II: Tensor, at: slice) -> float:
    """Error that the removal of these inputs adds."""
    import torch

    solved_SO = torch.linalg.solve(inverse_II[at, at], weight_OI[:, at].T)
    return float((weight_OI[:, at].T * solved_SO).sum())


def _single(weight_OI: Tensor, inverse_II: Tensor, _size: int) -> tuple[Tensor, Tensor]:
    """As ``_grouped`` for single inputs: whole matrices are updated once per ``BLOCK`` removals.

    Between two updates ``Hinv = Hinv_0 - U U^T`` and ``W = W_0 - A U^T``, where ``U`` and ``A``
    have a column per removal, of which only the rows that are asked for are formed.
    """
    import torch

    left_I = torch.arange(weight_OI.shape[1], device=weight_OI.device)
    order: list[Tensor] = []
    added: list[Tensor] = []
    while len(left_I):
        count = min(BLOCK, len(left_I))
        gone, errors, u_IC, a_OC = _block(weight_OI, inverse_II, count)
        keep_I = torch.ones(len(left_I), dtype=torch.bool, device=left_I.device)
        keep_I[gone] = False
        order.append(left_I[gone])
        added.append(errors)
        left_I, u_KC = left_I[keep_I], u_IC[keep_I]
        weight_OI = weight_OI[:, keep_I] - a_OC @ u_KC.T
        inverse_II = inverse_II[keep_I][:, keep_I] - u_KC @ u_KC.T
    return torch.cat(order), torch.cat(added)


def _block(
    weight_OI: Tensor, inverse_II: Tensor, count: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Removes ``count`` inputs: which, the error that each adds, and ``U`` and ``A``."""
    import torch

    inputs, outputs = weight_OI.shape[1], weight_OI.shape[0]
    u_IC, a_OC = weight_OI.new_zeros(inputs, count), weight_OI.new_zeros(outputs, count)
    diagonal_I = inverse_II.diagonal().clone()
    square_I = weight_OI.square().sum(0)
    gone = torch.empty(count, dtype=torch.long, device=weight_OI.device)
    errors = weight_OI.new_empty(count)
    for c in range(count):
        score_I = square_I / diagonal_I
        score_I[gone[:c]] = torch.inf
        j = int(score_I.argmin())
        root = diagonal_I[j].sqrt()
        u_I = (inverse_II[:, j] - u_IC[:, :c] @ u_IC[j, :c]) / root
        a_O = (weight_OI[:, j] - a_OC[:, :c] @ u_IC[j, :c]) / root
        # Products of the weight as it now is with `a`, one for each column.
        inner_I = weight_OI.T @ a_O - u_IC[:, :c] @ (a_OC[:, :c].T @ a_O)
        square_I = (square_I - 2 * u_I * inner_I + u_I.square() * a_O.square().sum()).clamp(min=0.0)
        diagonal_I = diagonal_I - u_I.square()
        diagonal_I[j], gone[c], errors[c] = 1.0, j, score_I[j]
        u_IC[:, c], a_OC[:, c] = u_I, a_O
    return gone, errors, u_IC, a_OC

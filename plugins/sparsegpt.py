"""SparseGPT: massive language models can be accurately pruned in one shot (arXiv:2301.00774).

The optimal brain surgeon, column by column from left to right. With ``H = E[x x^T]`` of what a
layer reads and ``H^-1 = U^T U``, ``U`` upper triangular, the error of removing ``w_j`` is
``w_j^2 / U_jj^2``, and the columns behind it take over ``- w_j / U_jj * U_j``.

``O, I`` outputs and inputs, ``B`` columns of one block, ``M`` of one pattern. The weight is held as
``[I, O]``, so that a column is contiguous.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

from effcompress import NotNegative, Positive, RunError, damped_cholesky, lowest, sparsifier

if TYPE_CHECKING:
    from torch import Tensor

    from effcompress import Pattern


@sparsifier("sparsegpt", paper="arXiv:2301.00774")
def sparsegpt(
    weight: Tensor,
    gram: Tensor,
    sparsity: float,
    pattern: Pattern | None,
    *,
    mask: Literal["own", "wanda", "magnitude"] = "own",
    block: Positive = 128,
    damp: NotNegative = 0.01,
    tries: Positive = 8,
) -> Tensor:
    """Column by column: what a zero takes from the output, the columns behind it make up for.

    ``H = gram + damp m I`` with ``m`` the mean of the positive diagonal entries (the scale of the
    second moments does not matter), ``H^-1 = U^T U`` with ``U`` upper triangular. ``mask: own``:
    before each ``block`` of columns those with the least ``w^2 / U_jj^2`` are chosen, all of its
    rows together; with a pattern, at every ``of``-th column for each row, from weights as updated
    by then. ``wanda`` and ``magnitude`` choose everything at the beginning, as those methods do. A
    weight ``w_j`` that goes changes the columns behind it by ``- w_j / U_jj * U_j``.

    An input that is always zero loses its weights. ``U`` is made in fp64, the columns are worked
    through in fp32 (fp64 if the weight is). While ``H`` is not positive definite the damping grows
    tenfold, ``tries`` times at most; RunError if that does not help. (Others then go on with the
    identity, which is magnitude pruning under another name.)
    """
    import torch

    dead_I = gram.diagonal() <= 0
    dtype = torch.promote_types(weight.dtype, torch.float32)
    factor_II = _factor(gram, dead_I, damp, tries).to(dtype)
    work_IO = weight.T.to(dtype, copy=True).contiguous()
    work_IO[dead_I] = 0.0
    gone_IO = torch.zeros_like(work_IO, dtype=torch.bool)
    if mask != "own":
        gone_IO = _as_before(mask, weight, gram, sparsity, pattern).T.contiguous()
    inputs = work_IO.shape[0]
    if pattern is not None:
        block = -(-block // pattern.of) * pattern.of  # no group lies in two blocks
    for start in range(0, inputs, block):
        stop = min(start + block, inputs)
        if mask == "own" and pattern is None:
            gone_IO[start:stop] = _lowest(work_IO, factor_II, start, stop, sparsity)
        error_BO = _columns(
            work_IO, factor_II, gone_IO, start, stop, pattern if mask == "own" else None
        )
        work_IO[stop:] -= factor_II[start:stop, stop:].T @ error_BO
    return work_IO.T.to(weight.dtype)


def _lowest(work_IO: Tensor, factor_II: Tensor, start: int, stop: int, sparsity: float) -> Tensor:
    """``[B, O]`` bool: the least errors of a block, its rows and columns together. Blocks take as
    many as make the layer's share exact.
    """
    score_BO = _errors(work_IO[start:stop], factor_II.diagonal()[start:stop])
    rows = score_BO.shape[1]
    zeros = _whole(rows * stop, sparsity) - _whole(rows * start, sparsity)
    return lowest(score_BO, zeros, "layer")


LAZY = 16
"""Columns whose errors reach the rest of their block at once, by one product; with a pattern, those
of one group.
"""


def _columns(
    work_IO: Tensor,
    factor_II: Tensor,
    gone_IO: Tensor,
    start: int,
    stop: int,
    pattern: Pattern | None,
) -> Tensor:
    """Work through the columns of one block, in place; ``[B, O]``, their errors over ``U_jj``."""
    import torch

    error_BO = torch.empty_like(work_IO[start:stop])
    block_BO, gone_BO = work_IO[start:stop], gone_IO[start:stop]
    diagonal_B1 = factor_II.diagonal()[start:stop, None]
    row_BB = factor_II[start:stop, start:stop] / diagonal_B1
    columns, gone, errors = block_BO.unbind(0), gone_BO.unbind(0), error_BO.unbind(0)
    step = LAZY if pattern is None else pattern.of
    for first in range(0, stop - start, step):
        last = min(first + step, stop - start)
        if pattern is not None:
            score_OM = _errors(block_BO[first:last], diagonal_B1[first:last, 0]).T
            gone_BO[first:last] = lowest(score_OM, pattern).T
        earlier_OM = error_BO[first:last].T
        for j in range(first, last):
            if j > first:
                row_M = row_BB[first:j, j]
                columns[j].addmv_(earlier_OM[:, : j - first], row_M, alpha=-1.0)
            torch.mul(columns[j], gone[j], out=errors[j])
        block_BO[last:].addmm_(row_BB[first:last, last:].T, error_BO[first:last], alpha=-1.0)
    block_BO.masked_fill_(gone_BO, 0.0)  # what is left of rounding
    return error_BO.div_(diagonal_B1)


def _errors(work_BO: Tensor, diagonal_B: Tensor) -> Tensor:
    """``w^2 / U_jj^2``: twice what the output loses, at least."""
    return (work_BO / diagonal_B[:, None]).square()


def _as_before(
    mask: str, weight: Tensor, gram: Tensor, sparsity: float, pattern: Pattern | None
) -> Tensor:
    """``[O, I]`` bool: what Wanda (per row) or magnitude (per layer) would choose."""
    if mask == "magnitude":
        return lowest(weight.abs(), pattern or sparsity, "layer")
    score_OI = weight.abs().float() * gram.diagonal().clamp(min=0).sqrt()
    return lowest(score_OI, pattern or sparsity, "row")


def _whole(total: int, fraction: float) -> int:
    """``fraction`` of ``total``, rounded down; what only binary makes fractional is whole."""
    return math.floor(total * fraction + 1e-9)


_KNOWN: list[Any] = []


def _factors() -> Any:
    """Second moments -> their version, damping, tries and factor, as long as they are alive."""
    import torch

    if not _KNOWN:
        utils: Any = torch.utils
        _KNOWN.append(utils.weak.WeakIdKeyDictionary())
    return _KNOWN[0]


def _factor(gram: Tensor, dead_I: Tensor, damp: NotNegative, tries: int) -> Tensor:
    """As ``_upper``; made once for layers that read one tensor (q, k and v; gate and up)."""
    known, how = _factors(), (gram._version, damp, tries)
    if gram not in known or known[gram][0] != how:
        known[gram] = how, _upper(gram, dead_I, damp, tries)
    return known[gram][1]


def _upper(gram: Tensor, dead_I: Tensor, damp: NotNegative, tries: int) -> Tensor:
    """``U`` in fp64: upper triangular, ``U^T U`` the inverse of the damped matrix.

    With rows and columns in reverse, a lower Cholesky factor becomes the upper ``R`` of
    ``H = R R^T``; then ``U = R^-1``. So the inverse itself is never formed.
    """
    import torch

    size = 1.0 if bool(dead_I.all()) else float(gram.diagonal()[~dead_I].double().mean())
    hessian_II = gram.to(torch.float64, copy=True)
    hessian_II.diagonal()[dead_I] = size
    factor_II = damped_cholesky(hessian_II.flip(0, 1), damp * size, tries)
    if factor_II is None:
        raise RunError(
            "the second moments of a linear layer's inputs are not positive definite, whatever the "
            "damping",
            fix="More calibration text (sparsify.sequences), or a larger `damp`.",
        )
    return _inverse(factor_II.flip(0, 1))


HALVED = 192
"""Rows from which the inverse of a triangular matrix is made of those of its halves."""


def _inverse(upper_II: Tensor) -> Tensor:
    """Inverse of an upper triangular matrix: ``[[A, B], [0, C]]`` has ``-A^-1 B C^-1`` above."""
    import torch

    inputs = len(upper_II)
    half, like = inputs // 2, {"dtype": upper_II.dtype, "device": upper_II.device}
    if inputs < 2 * HALVED:
        return torch.linalg.solve_triangular(upper_II, torch.eye(inputs, **like), upper=True)
    first, last = _inverse(upper_II[:half, :half]), _inverse(upper_II[half:, half:])
    inverse_II = torch.zeros(inputs, inputs, **like)
    inverse_II[:half, :half], inverse_II[half:, half:] = first, last
    inverse_II[:half, half:] = (first @ upper_II[:half, half:]).neg_() @ last
    return inverse_II

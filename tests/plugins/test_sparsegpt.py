"""SparseGPT against exact optimal brain surgery in fp64, written down without its factorisation."""

from __future__ import annotations

import pytest
import torch
from effcompress_plugins.sparsegpt import sparsegpt
from torch import Tensor, tensor

from effcompress.errors import RunError
from effcompress.spec import Pattern

ROWS, INPUTS, TOKENS = 9, 24, 60


def problem(seed: int = 0, inputs: int = INPUTS) -> tuple[Tensor, Tensor, Tensor]:
    """Weight, inputs ``[T, I]`` and their second moments, in fp64; inputs are correlated."""
    draw = torch.Generator().manual_seed(seed)
    mix = torch.randn(inputs, inputs, generator=draw, dtype=torch.float64)
    x = torch.randn(TOKENS, inputs, generator=draw, dtype=torch.float64) @ mix
    weight = torch.randn(ROWS, inputs, generator=draw, dtype=torch.float64)
    return weight, x, x.T @ x / TOKENS


def damped(gram: Tensor, damp: float) -> Tensor:
    return gram + damp * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)


def remove(row: Tensor, hessian: Tensor, j: int) -> Tensor:
    """``row`` without weight ``j``: what is behind it minimises the change of the output, by the
    normal equations of that least-squares problem; what is in front of it is settled.
    """
    new = row.clone()
    behind = torch.arange(j + 1, len(row))
    if len(behind):
        right = hessian[behind, j] * row[j]
        new[behind] += torch.linalg.solve(hessian[behind][:, behind], right)
    new[j] = 0.0
    return new


def cost(row: Tensor, hessian: Tensor, j: int) -> float:
    """What the output loses when weight ``j`` goes and those behind it make up for it."""
    change = remove(row, hessian, j) - row
    return float(change @ hessian @ change)


def reference(weight: Tensor, hessian: Tensor, gone: Tensor) -> Tensor:
    """Exact removal of a fixed mask, row by row, column by column."""
    rows = []
    for row, mask in zip(weight.clone(), gone, strict=True):
        for j in torch.nonzero(mask).flatten().tolist():
            row = remove(row, hessian, j)
        rows.append(row)
    return torch.stack(rows)


def by_blocks(weight: Tensor, hessian: Tensor, share: float, block: int) -> Tensor:
    """The published choice: of every block of columns, rows together, those that cost least."""
    work = weight.clone()
    for start in range(0, weight.shape[1], block):
        columns = range(start, min(start + block, weight.shape[1]))
        costs = {(r, j): cost(work[r], hessian, j) for r in range(len(work)) for j in columns}
        chosen = sorted(costs, key=costs.__getitem__)[: int(share * len(costs))]
        for r, j in sorted(chosen, key=lambda place: place[1]):
            work[r] = remove(work[r], hessian, j)
    return work


def by_groups(weight: Tensor, hessian: Tensor, pattern: Pattern) -> Tensor:
    """The published choice for a pattern: row by row, when a group begins."""
    rows = []
    for row in weight.clone():
        for start in range(0, len(row), pattern.of):
            costs = {j: cost(row, hessian, j) for j in range(start, start + pattern.of)}
            for j in sorted(sorted(costs, key=costs.__getitem__)[: pattern.zeros]):
                row = remove(row, hessian, j)
        rows.append(row)
    return torch.stack(rows)


def test_two_inputs_by_hand() -> None:
    # H = [[1, 1/2], [1/2, 1]]: without its first weight, the second of (1, 2) becomes 2 + 1/2.
    gram = tensor([[1.0, 0.5], [0.5, 1.0]], dtype=torch.float64)
    weight = tensor([[1.0, 2.0]], dtype=torch.float64)
    found = sparsegpt(weight, gram, 0.5, None, damp=0.0)
    torch.testing.assert_close(found, tensor([[0.0, 2.5]], dtype=torch.float64))


def test_three_inputs_that_have_nothing_in_common() -> None:
    # Costs w^2 h: 9 * 1, 1 * 25, 4 * 4; nothing can make up for anything.
    gram = torch.diag(tensor([1.0, 25.0, 4.0], dtype=torch.float64))
    weight = tensor([[3.0, -1.0, 2.0]], dtype=torch.float64)
    found = sparsegpt(weight, gram, 1 / 3, None, damp=0.0)
    torch.testing.assert_close(found, tensor([[0.0, -1.0, 2.0]], dtype=torch.float64))


@pytest.mark.parametrize("mask", ["wanda", "magnitude"])
@pytest.mark.parametrize("block", [5, 128])
def test_a_fixed_mask_is_removed_exactly(mask: str, block: int) -> None:
    weight, _, gram = problem()
    found = sparsegpt(weight, gram, 0.5, None, mask=mask, block=block)
    score = weight.abs() * (gram.diagonal().sqrt() if mask == "wanda" else 1.0)
    if mask == "wanda":
        limit = score.sort(1).values[:, INPUTS // 2 - 1 : INPUTS // 2]
    else:
        limit = score.flatten().sort().values[ROWS * INPUTS // 2 - 1]
    gone = score <= limit
    assert torch.equal(found == 0, gone)
    torch.testing.assert_close(found, reference(weight, damped(gram, 0.01), gone))


@pytest.mark.parametrize("block", [6, 8, 128])
@pytest.mark.parametrize("seed", [1, 2])
def test_its_own_mask(block: int, seed: int) -> None:
    weight, _, gram = problem(seed)
    found = sparsegpt(weight, gram, 0.5, None, block=block)
    torch.testing.assert_close(found, by_blocks(weight, damped(gram, 0.01), 0.5, block))


@pytest.mark.parametrize("pattern", [Pattern(2, 4), Pattern(4, 8)], ids=str)
@pytest.mark.parametrize("block", [6, 128])  # 6 would cut groups in two
def test_its_own_pattern(pattern: Pattern, block: int) -> None:
    weight, _, gram = problem(3)
    found = sparsegpt(weight, gram, 0.5, pattern, block=block)
    torch.testing.assert_close(found, by_groups(weight, damped(gram, 0.01), pattern))
    assert set((found == 0).reshape(-1, pattern.of).sum(1).tolist()) == {pattern.zeros}


def test_the_scale_of_the_second_moments_does_not_matter() -> None:
    weight, _, gram = problem()
    one, two = (sparsegpt(weight, factor * gram, 0.5, None) for factor in (1.0, 1e-7))
    torch.testing.assert_close(one, two)


@pytest.mark.parametrize("block", [7, 128])
@pytest.mark.parametrize("share", [0.3, 0.5, 0.77])
def test_the_share_is_exact_whatever_the_blocks(share: float, block: int) -> None:
    weight, _, gram = problem()
    found = sparsegpt(weight, gram, share, None, block=block)
    assert int((found == 0).sum()) == int(share * ROWS * INPUTS)


def test_it_beats_the_mask_alone_on_what_was_read() -> None:
    weight, x, gram = problem()
    found = sparsegpt(weight, gram, 0.5, None)
    error = (x @ (found - weight).T).square().sum()
    alone = (x @ (weight * (found != 0) - weight).T).square().sum()
    assert error < 0.7 * alone


def test_dead_inputs_lose_their_weights_and_disturb_nobody() -> None:
    weight, x, _ = problem()
    x[:, [2, 17]] = 0.0
    gram = x.T @ x / TOKENS
    found = sparsegpt(weight, gram, 0.5, None, mask="magnitude")
    assert not found[:, [2, 17]].any()
    alive = [j for j in range(INPUTS) if j not in (2, 17)]
    # Damping is relative to what is alive.
    hessian = damped(gram[alive][:, alive], 0.01)
    gone = magnitude_mask(weight)[:, alive]
    torch.testing.assert_close(found[:, alive], reference(weight[:, alive], hessian, gone))
    assert not sparsegpt(weight, torch.zeros_like(gram), 0.5, None).any()


def magnitude_mask(weight: Tensor) -> Tensor:
    limit = weight.abs().flatten().sort().values[ROWS * INPUTS // 2 - 1]
    return weight.abs() <= limit


def test_damping_grows_until_there_is_a_factor() -> None:
    weight, _, gram = problem()
    # Not positive definite, as fp32 sums of few tokens can be; 0.01 does not mend it, 0.1 does.
    size = float(gram.diagonal().mean())
    values, vectors = torch.linalg.eigh(gram)
    values[0] = -0.05 * size
    broken = vectors @ torch.diag(values) @ vectors.T
    broken = (broken + broken.T) / 2
    found = sparsegpt(weight, broken, 0.5, None, mask="magnitude")
    torch.testing.assert_close(
        found, reference(weight, damped(broken, 0.1), magnitude_mask(weight))
    )
    with pytest.raises(RunError, match="not positive definite"):
        sparsegpt(weight, broken, 0.5, None, tries=1)


def test_low_precision_in_and_out_but_not_between() -> None:
    weight, _, gram = problem()
    low = weight.bfloat16()
    found = sparsegpt(low, gram.float(), 0.5, None)
    assert found.dtype == torch.bfloat16
    exact = sparsegpt(low.double(), gram, 0.5, None)
    assert float((found.double() - exact).abs().max()) < 0.01 * float(exact.abs().max())

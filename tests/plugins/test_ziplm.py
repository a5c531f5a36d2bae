"""Removal by second order, one structure at a time, and the two ways of choosing levels."""

from __future__ import annotations

import itertools

import pytest
import torch
from effcompress_plugins.darwinlm import evolution
from effcompress_plugins.efficientllm import obs_update
from effcompress_plugins.ziplm import _grouped, _single, dynamic_program, ziplm
from torch import Tensor

H = torch.tensor([[2.0, 1, 0], [1, 2, 0], [0, 0, 1]], dtype=torch.float64)
W = torch.tensor([[1.0, 1, 1], [1, 0, 2]], dtype=torch.float64)


def error_without(weight_OI: Tensor, hess_II: Tensor, gone: list[int]) -> float:
    """Least squares of the kept columns, in closed form: tr(dW H dW^T)."""
    keep = [i for i in range(weight_OI.shape[1]) if i not in gone]
    change_OI = weight_OI.clone()
    if keep:
        right_OK = (weight_OI @ hess_II)[:, keep]
        best_OK = torch.linalg.solve(hess_II[keep][:, keep], right_OK.T).T
        change_OI[:, keep] -= best_OK
    return float(((change_OI @ hess_II) * change_OI).sum())


def made_up(inputs: int, outputs: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    dice = torch.Generator().manual_seed(seed)
    x_TI = torch.randn(3 * inputs, inputs, generator=dice, dtype=torch.float64)
    x_TI = x_TI @ torch.randn(inputs, inputs, generator=dice, dtype=torch.float64)
    weight_OI = torch.randn(outputs, inputs, generator=dice, dtype=torch.float64)
    return weight_OI, x_TI.T @ x_TI / len(x_TI)


def test_scores_and_errors_by_hand() -> None:
    """First scores (3, 1.5, 5): column 1; then (6.5, -, 5): column 2; in all 13 = tr(W H W^T)."""
    inverse = torch.linalg.inv(H)
    torch.testing.assert_close(
        W.square().sum(0) / inverse.diagonal(), torch.tensor([3.0, 1.5, 5]).double()
    )
    error = ziplm(W, H, 1, damp=0.0, relative=False)
    torch.testing.assert_close(error, torch.tensor([13.0, 1.5, 6.5]).double())
    part = ziplm(W, H, 1, damp=0.0)
    torch.testing.assert_close(
        part, torch.tensor([1.0, 0.1153846, 0.5]).double(), atol=1e-7, rtol=0
    )


def test_after_two_removals_the_rest_is_least_squares() -> None:
    order, added = _single(W, torch.linalg.inv(H), 1)
    assert order.tolist() == [1, 2, 0]
    torch.testing.assert_close(added, torch.tensor([1.5, 5.0, 6.5]).double())
    first = obs_update(W, H, torch.tensor([1]), damp=0.0, tries=1)
    torch.testing.assert_close(first, torch.tensor([[1.5, 0, 1], [1, 0, 2]]).double())
    both = obs_update(W, H, torch.tensor([1, 2]), damp=0.0, tries=1)
    torch.testing.assert_close(both, torch.tensor([[1.5, 0, 0], [1, 0, 0]]).double())


@pytest.mark.parametrize("inputs", [5, 70, 140])
def test_blocks_of_removals_are_the_removals_one_by_one(inputs: int) -> None:
    """More than one block of 64, and the error of every prefix that of least squares without it."""
    weight_OI, hess_II = made_up(inputs, 7)
    inverse_II = torch.linalg.inv(hess_II)
    order, added = _single(weight_OI, inverse_II, 1)
    slow, errors = _grouped(weight_OI, inverse_II, 1)
    assert order.tolist() == slow.tolist() and sorted(order.tolist()) == list(range(inputs))
    torch.testing.assert_close(added, errors, rtol=1e-6, atol=1e-9)
    for n in (1, inputs // 2, inputs):
        joint = error_without(weight_OI, hess_II, order[:n].tolist())
        assert float(added[:n].sum()) == pytest.approx(joint, rel=1e-6)


def test_the_next_to_go_is_the_one_that_adds_least() -> None:
    weight_OI, hess_II = made_up(6, 3)
    order, _ = _single(weight_OI, torch.linalg.inv(hess_II), 1)
    gone: list[int] = []
    for j in order.tolist():
        left = [i for i in range(6) if i not in gone]
        assert j == min(left, key=lambda i: error_without(weight_OI, hess_II, [*gone, i]))
        gone.append(j)


@pytest.mark.parametrize("size", [2, 3])
def test_heads_go_whole(size: int) -> None:
    weight_OI, hess_II = made_up(4 * size, 5, seed=size)
    error_G = ziplm(weight_OI, hess_II, size, damp=0.0, relative=False)
    gone: list[int] = []
    for g in error_G.argsort().tolist():
        gone += range(g * size, (g + 1) * size)
        assert float(error_G[g]) == pytest.approx(error_without(weight_OI, hess_II, gone), rel=1e-7)


def test_an_input_that_is_always_zero_goes_for_nothing() -> None:
    weight_OI, hess_II = made_up(4, 3)
    hess_II[2], hess_II[:, 2] = 0.0, 0.0
    error = ziplm(weight_OI, hess_II, 1)
    assert int(error.argmin()) == 2 and float(error[2]) == 0.0
    assert float(error.max()) == pytest.approx(1.0)


def test_inputs_are_not_changed() -> None:
    weight_OI, hess_II = made_up(9, 4)
    before = weight_OI.clone(), hess_II.clone()
    ziplm(weight_OI, hess_II, 3)
    assert torch.equal(weight_OI, before[0]) and torch.equal(hess_II, before[1])


ERRORS = [[0.0, 0.2, 1.0]] * 4
COSTS = [[3.0, 2.0, 0.0]] * 4
BEST = (2, 0, 1, 0)


def distance(levels: list[int], sequences: int) -> float:
    """A loss of whole models whose least at this cost is BEST, which errors do not show."""
    return sum((a - b) ** 2 for a, b in zip(levels, BEST, strict=True)) + 0.1 / sequences


def dice() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def test_a_search_over_factors_finds_what_errors_do_not_show() -> None:
    plain = dynamic_program(ERRORS, COSTS, 8.0, distance, 4, dice())
    found = dynamic_program(ERRORS, COSTS, 8.0, distance, 4, dice(), search=40, patience=20)
    assert plain == [1, 1, 1, 1]
    assert distance(found, 4) < distance(plain, 4)
    again = dynamic_program(ERRORS, COSTS, 8.0, distance, 4, dice(), search=40, patience=20)
    assert found == again


def test_without_a_search_the_loss_is_not_asked_for() -> None:
    def never(levels: list[int], sequences: int) -> float:
        raise AssertionError

    assert dynamic_program(ERRORS, COSTS, 12.0, never, 4, dice()) == [0, 0, 0, 0]


@pytest.mark.parametrize("start", ["uniform", "least_error"])
def test_evolution_comes_to_the_best_and_never_costs_more(start: str) -> None:
    asked: list[tuple[tuple[int, ...], int]] = []

    def loss(levels: list[int], sequences: int) -> float:
        asked.append((tuple(levels), sequences))
        assert sum(c[k] for c, k in zip(COSTS, levels, strict=True)) <= 8.0
        return distance(levels, sequences)

    kinds = ["ffn"] * 4
    found = evolution(ERRORS, COSTS, 8.0, kinds, loss, 8, dice(), generations=8, start=start)  # type: ignore[arg-type]
    best = min(
        (c for c in itertools.product(range(3), repeat=4) if sum(COSTS[0][k] for k in c) <= 8.0),
        key=lambda c: distance(list(c), 8),
    )
    assert tuple(found) == best == BEST
    assert {n for _, n in asked} == {1, 2, 4, 8}  # ever more text
    again = evolution(ERRORS, COSTS, 8.0, kinds, loss, 8, dice(), generations=8, start=start)  # type: ignore[arg-type]
    assert found == again


def test_a_parent_that_is_best_stays() -> None:
    def loss(levels: list[int], sequences: int) -> float:
        return float(levels != [1, 1, 1, 1])

    found = evolution(ERRORS, COSTS, 8.0, ["ffn"] * 4, loss, 8, dice(), generations=3)
    assert found == [1, 1, 1, 1]

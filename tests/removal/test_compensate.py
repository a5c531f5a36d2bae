"""The second-order update against a dense reference in fp64 that is written another way."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from effcompress_plugins.efficientllm import obs_bias, obs_update
from effcompress_plugins.flap import bias_mean
from torch import Tensor

DAMP = 0.01


def problem(kind: str, seed: int, outputs: int = 24, inputs: int = 40) -> tuple[Tensor, Tensor]:
    """``weight_OI`` and ``x_TI`` in fp64."""
    make = torch.Generator().manual_seed(seed)
    weight = torch.randn(outputs, inputs, generator=make, dtype=torch.float64)
    tokens = 12 if kind == "few samples" else 400
    x = torch.randn(tokens, inputs, generator=make, dtype=torch.float64)
    if kind == "correlated":
        mixing = torch.randn(inputs // 4, inputs, generator=make, dtype=torch.float64)
        x = x[:, : inputs // 4] @ mixing + 0.05 * x
    if kind == "dead inputs":
        x[:, [3, 17, 39]] = 0.0
    return weight, x


def reference(weight_OI: Tensor, gram_II: Tensor, gone: list[int]) -> np.ndarray:
    """Ridge regression of the old output on the inputs that stay, drawn towards the old weights:
    ``min |(W - V) X|^2 + lambda |W - V|^2`` with ``V[:, gone] = 0``, by normal equations.
    """
    w, h = weight_OI.numpy().astype(np.float64), gram_II.numpy().astype(np.float64)
    size = np.diag(h)[np.diag(h) > 0].mean()
    damped = h + DAMP * size * np.eye(len(h))
    stay = [i for i in range(w.shape[1]) if i not in gone]
    new = np.zeros_like(w)
    new[:, stay] = np.linalg.solve(damped[np.ix_(stay, stay)], damped[stay] @ w.T).T
    return new


def error(change_OI: Tensor, x_TI: Tensor) -> float:
    return float((x_TI @ change_OI.T).square().sum())


@pytest.mark.parametrize("gone", [[5], [3, 4, 17], list(range(10, 26))])
@pytest.mark.parametrize("kind", ["independent", "correlated", "dead inputs", "few samples"])
@pytest.mark.parametrize("seed", [0, 1])
def test_update_is_the_best_there_is(kind: str, gone: list[int], seed: int) -> None:
    weight, x = problem(kind, seed)
    gram = x.T @ x / len(x)
    new = obs_update(weight, gram, torch.tensor(gone), damp=DAMP)
    want = torch.from_numpy(reference(weight, gram, gone))
    assert float((new - want).norm() / want.norm()) < 1e-6
    assert not new[:, gone].any()
    alone = weight.clone()
    alone[:, gone] = 0.0
    assert error(new - weight, x) <= error(alone - weight, x) * (1 + 1e-12)


def test_correlated_inputs_take_over() -> None:
    weight, x = problem("correlated", 3)
    gone = torch.arange(10)
    new = obs_update(weight, x.T @ x / len(x), gone, damp=1e-4)
    alone = weight.clone()
    alone[:, gone] = 0.0
    assert error(new - weight, x) < 0.05 * error(alone - weight, x)


def test_one_after_another_is_all_at_once() -> None:
    """With the damping held, removing one channel at a time ends at the same weights."""
    weight, x = problem("correlated", 4)
    gram = x.T @ x / len(x) + torch.eye(40, dtype=torch.float64)
    at_once = obs_update(weight, gram, torch.tensor([2, 9, 30]), damp=0.0)
    step, left = weight, gram.clone()
    for channel in (2, 9, 30):
        step = obs_update(step, left, torch.tensor([channel]), damp=0.0)
        left[channel], left[:, channel] = 0.0, 0.0
        left[channel, channel] = 1.0  # gone: coupled with nothing
    assert torch.allclose(step, at_once, rtol=1e-9, atol=1e-12)


def test_damping_grows_until_it_helps() -> None:
    weight, _ = problem("independent", 5)
    broken = torch.eye(40, dtype=torch.float64)
    broken[0, 0] = -0.5  # rounding can do this to a real one, if not as much
    new = obs_update(weight, broken, torch.tensor([1]), damp=1e-3)
    assert torch.isfinite(new).all() and not new[:, 1].any()


@pytest.mark.parametrize("gram", [torch.zeros(40, 40), torch.full((40, 40), torch.nan)])
def test_nothing_to_learn_from_changes_nothing(gram: Tensor) -> None:
    weight, _ = problem("independent", 6)
    assert torch.equal(obs_update(weight, gram, torch.tensor([1])), weight)


def test_fp32_weights_and_moments() -> None:
    weight, x = problem("correlated", 7)
    gram = (x.T @ x / len(x)).float()
    new = obs_update(weight.float(), gram, torch.tensor([0, 1]), damp=DAMP)
    want = torch.from_numpy(reference(weight.float(), gram, [0, 1]))
    assert new.dtype == torch.float32
    assert float((new - want).norm() / want.norm()) < 1e-6


@pytest.mark.parametrize("gone", [[5], [3, 4, 17]])
@pytest.mark.parametrize("kind", ["independent", "correlated", "dead inputs", "few samples"])
def test_with_an_intercept(kind: str, gone: list[int]) -> None:
    """Ridge regression of the old output on the inputs that stay and a constant, which is not
    punished; by augmented normal equations.
    """
    weight, x = problem(kind, seed=3)
    x = x + torch.arange(x.shape[1], dtype=torch.float64) / 20 * (x.abs().sum(0) > 0)
    mean, gram = x.mean(0), x.T @ x / len(x)
    new, more = obs_bias(weight, gram, mean, torch.tensor(gone), damp=DAMP)
    centred = x - mean
    cov = (centred.T @ centred / len(x)).numpy()
    size = np.diag(cov)[np.diag(cov) > 1e-12].mean()
    stay = [i for i in range(x.shape[1]) if i not in gone]
    ones = np.ones((len(x), 1))
    design = np.hstack([x.numpy()[:, stay], ones])
    ridge = DAMP * size * np.eye(len(stay) + 1)
    ridge[-1, -1] = 0.0
    prior = np.vstack([weight.numpy()[:, stay].T, np.zeros((1, len(weight)))])
    normal = design.T @ design / len(x) + ridge
    wanted = np.linalg.solve(normal, design.T @ (x @ weight.T).numpy() / len(x) + ridge @ prior)
    found = np.vstack([new.numpy()[:, stay].T, more.numpy()[None]])
    assert np.linalg.norm(found - wanted) / np.linalg.norm(wanted) < 1e-6
    assert not new[:, gone].any()


def test_the_mean_of_the_output_stays() -> None:
    weight, x = problem("correlated", seed=4)
    x = x + 0.7
    mean, gram = x.mean(0), x.T @ x / len(x)
    gone = torch.tensor([2, 9, 30])
    before = weight @ mean
    for new, more in (
        bias_mean(weight, mean, gone),
        obs_bias(weight, gram, mean, gone),
    ):
        left = new.clone()
        left[:, gone] = 0.0
        torch.testing.assert_close(left @ mean + more, before)
    by_hand = bias_mean(
        torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([5.0, 0.5, -1.0]), gone=torch.tensor([0, 2])
    )
    assert by_hand[1].tolist() == [1 * 5 + 3 * -1]

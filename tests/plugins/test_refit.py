"""Refits against the normal equations, solved by hand in fp64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from effcompress.registry import REGISTRY

T, I, O = 60, 5, 3


@pytest.fixture
def moments() -> dict[str, Tensor]:
    """Of 60 tokens whose inputs and targets have means far from zero."""
    draw = torch.Generator().manual_seed(0)
    x_TI = torch.randn(T, I, generator=draw, dtype=torch.float64) + 2.0
    t_TO = x_TI @ torch.randn(I, O, generator=draw, dtype=torch.float64) + 5.0
    t_TO = t_TO + 0.1 * torch.randn(T, O, generator=draw, dtype=torch.float64)
    return {
        "weight": torch.randn(O, I, generator=draw, dtype=torch.float64),
        "gram": x_TI.T @ x_TI / T,
        "cross": t_TO.T @ x_TI / T,
        "mean": x_TI.mean(0),
        "target_mean": t_TO.mean(0),
    }


def test_ridge_regression_is_drawn_towards_the_weight(moments: dict[str, Tensor]) -> None:
    given = {name: moments[name] for name in ("weight", "gram", "cross")}
    found = REGISTRY.get("refit", "least_squares").function(*given.values(), damp=0.5)
    d = 0.5 * float(given["gram"].diagonal().mean())
    eye = torch.eye(I, dtype=torch.float64)
    right = given["cross"] + d * given["weight"]
    torch.testing.assert_close(found, right @ torch.linalg.inv(given["gram"] + d * eye))
    far = REGISTRY.get("refit", "least_squares").function(*given.values(), damp=1e9)
    torch.testing.assert_close(far, given["weight"], rtol=1e-5, atol=1e-5)


def test_an_intercept_is_not_punished(moments: dict[str, Tensor]) -> None:
    new, more = REGISTRY.get("refit", "least_squares_bias").function(*moments.values(), damp=0.5)
    mean, target = moments["mean"], moments["target_mean"]
    gram = moments["gram"] - mean.outer(mean)
    cross = moments["cross"] - target.outer(mean)
    d = 0.5 * float(gram.diagonal().mean())
    wanted = (cross + d * moments["weight"]) @ torch.linalg.inv(
        gram + d * torch.eye(I, dtype=torch.float64)
    )
    torch.testing.assert_close(new, wanted)
    torch.testing.assert_close(new @ mean + more, target)

"""Refits against the normal equations, solved by hand in fp64."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from effcompress.distributed.world import ALONE
from effcompress.measure.moments import Moments, Parts
from effcompress.registry import REGISTRY, Bound
from effcompress.runner.recovery import _Change

TOKENS, INPUTS, OUTPUTS = 60, 5, 3


@pytest.fixture
def moments() -> dict[str, Tensor]:
    """Of 60 tokens whose inputs and targets have means far from zero."""
    draw = torch.Generator().manual_seed(0)
    x_TI = torch.randn(TOKENS, INPUTS, generator=draw, dtype=torch.float64) + 2.0
    t_TO = x_TI @ torch.randn(INPUTS, OUTPUTS, generator=draw, dtype=torch.float64) + 5.0
    t_TO = t_TO + 0.1 * torch.randn(TOKENS, OUTPUTS, generator=draw, dtype=torch.float64)
    return {
        "weight": torch.randn(OUTPUTS, INPUTS, generator=draw, dtype=torch.float64),
        "gram": x_TI.T @ x_TI / TOKENS,
        "cross": t_TO.T @ x_TI / TOKENS,
        "mean": x_TI.mean(0),
        "target_mean": t_TO.mean(0),
    }


def test_ridge_regression_is_drawn_towards_the_weight(moments: dict[str, Tensor]) -> None:
    given = {name: moments[name] for name in ("weight", "gram", "cross")}
    found = REGISTRY.get("refit", "least_squares").function(*given.values(), damp=0.5)
    d = 0.5 * float(given["gram"].diagonal().mean())
    eye = torch.eye(INPUTS, dtype=torch.float64)
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
        gram + d * torch.eye(INPUTS, dtype=torch.float64)
    )
    torch.testing.assert_close(new, wanted)
    torch.testing.assert_close(new @ mean + more, target)


def test_an_intercept_adds_to_the_bias_that_is_there(moments: dict[str, Tensor]) -> None:
    layer = torch.nn.Linear(INPUTS, OUTPUTS, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(moments["weight"])
        layer.bias.copy_(torch.tensor([10.0, 20.0, 30.0]))
    module = torch.nn.ModuleDict({"o": layer})
    pruned = SimpleNamespace(parameters=lambda: dict(module.named_parameters()))
    bound = Bound(REGISTRY.get("refit", "least_squares_bias"))
    state: Any = SimpleNamespace(module=module, pruned=pruned, world=ALONE)
    _, more = bound(**moments)
    given = {name: value for name, value in moments.items() if name != "weight"}
    with torch.no_grad():
        whole = Moments(**given, square=torch.tensor(1.0, dtype=torch.float64))
        _Change(state, bound)("o.weight", Parts(whole))
    wanted = torch.tensor([10.0, 20.0, 30.0], dtype=torch.float64) + more
    torch.testing.assert_close(layer.bias.detach(), wanted)

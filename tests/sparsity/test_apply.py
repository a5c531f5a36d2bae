"""What a method returns is looked at; zeros that are held stay."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from effcompress.errors import PluginError, RunError
from effcompress.registry import Bound, Registry
from effcompress.sparsity.apply import count, hold, require_held, require_pattern, sparsified
from effcompress.spec import Pattern

WEIGHT = torch.arange(1.0, 25.0).reshape(3, 8)


def bound(function: Callable[..., object]) -> Bound:
    return Bound(Registry().add("sparsifier", "mine", function, "new"))


def half(weight: Tensor) -> Tensor:
    return weight * (torch.arange(8) % 2)


def changes(weight: Tensor) -> Tensor:
    return weight.mul_(torch.arange(8) % 2)


def other_shape(weight: Tensor) -> Tensor:
    return weight[:, ::2]


def too_few(weight: Tensor) -> Tensor:
    return weight * (torch.arange(8) > 0)


def at_the_end(weight: Tensor) -> Tensor:
    return weight * (torch.arange(8) > 3)


def infinite(weight: Tensor) -> Tensor:
    return half(weight) / 0.0


def test_a_good_method_passes() -> None:
    new = sparsified(bound(half), WEIGHT, None, 0.5, Pattern(2, 4), "here")
    assert torch.equal(new, half(WEIGHT))


@pytest.mark.parametrize(
    ("method", "error", "said"),
    [
        (changes, PluginError, "changes its weight"),
        (other_shape, PluginError, r"returned \(3, 4\) for a weight of shape \(3, 8\)"),
        (too_few, PluginError, "left 12.5% zeros where 50.0% were asked for"),
        (at_the_end, PluginError, "left a group that is not 2:4"),
        (infinite, RunError, "here: 'mine' made a weight that is not finite"),
        (lambda weight: None, PluginError, "returned NoneType"),
    ],
)
def test_a_bad_one_is_named(method: Callable[..., object], error: type, said: str) -> None:
    with pytest.raises(error, match=said):
        sparsified(bound(method), WEIGHT.clone(), None, 0.5, Pattern(2, 4), "here")


def test_norms_come_from_either_moment() -> None:
    seen = []

    def keeps(weight: Tensor, input_norm: Tensor) -> Tensor:
        seen.append(input_norm)
        return half(weight)

    x = torch.randn(20, 8)
    gram = x.T @ x / 20
    for moment in (gram, gram.diagonal()):
        sparsified(bound(keeps), WEIGHT, moment, 0.5, None, "here")
    torch.testing.assert_close(seen[0], x.square().mean(0).sqrt())
    torch.testing.assert_close(seen[0], seen[1])
    with pytest.raises(RunError, match="here: what this layer reads is not finite"):
        sparsified(bound(keeps), WEIGHT, gram / 0.0, 0.5, None, "here")


def test_inputs_must_divide_into_groups() -> None:
    require_pattern(None, (3, 7), 1, "x")
    require_pattern(Pattern(2, 4), (7, 8), 1, "x")
    with pytest.raises(RunError, match="x: 7 inputs do not divide into groups of 4"):
        require_pattern(Pattern(2, 4), (7, 8), 0, "x")


@pytest.mark.parametrize("how", [{"foreach": True}, {"fused": True}, {"foreach": False}])
def test_held_zeros_stay_zero_and_the_rest_learns(how: dict[str, bool]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1))
    with torch.no_grad():
        model[0].weight.mul_(torch.rand(8, 8) > 0.5)
    zeros = {"0.weight": model[0].weight.detach() == 0}
    start = model[0].weight.detach().clone()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5, **how)
    for _ in range(5):
        model(torch.randn(16, 8)).square().mean().backward()
        hold(model, zeros)
        optimizer.step()
        optimizer.zero_grad()
    require_held(model, zeros)
    assert count(model, ["0.weight"]) == int(zeros["0.weight"].sum())
    state = optimizer.state[model[0].weight]
    for moment in (state["exp_avg"], state["exp_avg_sq"]):
        assert not moment[zeros["0.weight"]].any() and moment[~zeros["0.weight"]].all()
    living = ~zeros["0.weight"]
    assert (model[0].weight[living] != start[living]).all()
    model(torch.randn(16, 8)).square().mean().backward()
    optimizer.step()  # nobody held them
    with pytest.raises(RunError, match=r"0\.weight: a weight that was made zero"):
        require_held(model, zeros)

"""Criteria of activations: three numbers by hand, and what they refuse."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from effcompress.errors import CoverageError, PluginError, RunError
from effcompress.registry import REGISTRY, Bound, Plugin, Registry
from effcompress.saliency.inputs import score_inputs
from effcompress.types import GroupSet, Side

W = torch.tensor([[1.0, -2.0, 3.0], [4.0, 0.0, -1.0]])
STATS = {
    "input_mean": torch.tensor([1.0, 0.0, 2.0]),
    "input_norm": torch.tensor([2.0, 3.0, 0.5]),
    "input_variance": torch.tensor([3.0, 9.0, 0.25]),
    "input_abs": torch.tensor([2.0, 4.0, 1.0]),
    "input_fluctuation": torch.tensor([5.0, 1.0, 2.0]),
}


class Fixed:
    """One layer of three inputs that everybody reads, under two names."""

    def __init__(self) -> None:
        self.params = {"a": 1, "b": 1}
        self.owner = {"a": "a", "b": "a"}

    def parts(self, _param: str) -> list[None]:
        return [None]

    def read(self, _param: str, _part: int | None = None) -> dict[str, Tensor]:
        return STATS

    def shape(self, _param: str) -> tuple[int, int]:
        rows, columns = W.shape
        return rows, columns

    def weight(self, param: str, _part: int | None = None) -> Tensor:
        return W if param == "a" else 2 * W


def units(kind: str = "ffn", params: str = "a") -> GroupSet:
    return GroupSet(f"{kind}.0", kind, 0, 3, tuple(Side(p, 1, f"{kind}.0") for p in params))


def scored(name: str, s: GroupSet, influence: float | None = None, **knobs: object) -> list[float]:
    criterion = Bound(REGISTRY.get("criterion", name), knobs)
    given = {} if influence is None else {"influence": {s.name: influence}}
    return score_inputs([s], criterion, Fixed(), given)[s.name].tolist()


def test_wanda() -> None:
    assert scored("wanda", units()) == pytest.approx([5 * 2, 2 * 3, 4 * 0.5])
    assert scored("wanda", units(params="ab")) == pytest.approx([30, 18, 6])


def test_flap() -> None:
    plain = {"standardise": False}
    assert scored("flap", units(), **plain) == pytest.approx([3 * 17, 9 * 4, 0.25 * 10])
    assert scored("flap", units(), metric="IFV", **plain) == pytest.approx([3, 9, 0.25])
    assert scored("flap", units(), metric="WIFN", **plain) == pytest.approx([5, 3, 1])
    assert scored("flap", units(), compat=True, **plain) == pytest.approx([5 * 17, 4, 20])
    squared = scored("flap", units("attention"), **plain)
    assert squared == pytest.approx([51**2, 36**2, 2.5**2])


def test_flap_standardises_within_a_layer() -> None:
    value = torch.tensor([51.0, 36.0, 2.5])
    expected = (value - value.mean()) / value.std()
    assert scored("flap", units()) == pytest.approx(expected.tolist())


def test_flap_takes_the_mean_over_a_head() -> None:
    head = GroupSet("attention.0", "attention", 0, 1, (Side("a", 1, "attention.0", inner=3),))
    squares = [51.0**2, 36.0**2, 2.5**2]
    found = scored("flap", head, standardise=False)
    assert found == pytest.approx([sum(squares) / 3])


def test_minitron() -> None:
    assert scored("minitron", units()) == pytest.approx([4, 16, 1])
    # The stream is measured once for layers that read the same tensor, and is not squared.
    assert scored("minitron", units("hidden", "ab")) == pytest.approx([2, 4, 1])
    assert scored("minitron", units("layer"), influence=0.25) == [0.25]


def test_layers() -> None:
    assert scored("block_influence", units("layer"), influence=0.125) == [0.125]
    last = GroupSet("layer.7", "layer", 7, 1, ())
    assert scored("depth_order", last) == pytest.approx([1 / 8])
    assert scored("depth_order", last, keep="last") == pytest.approx([8])


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(PluginError, match="takes influence, which 'ffn' has not"):
        scored("block_influence", units())
    with pytest.raises(PluginError, match="takes input_norm, which 'layer' has not"):
        scored("wanda", units("layer"))
    with pytest.raises(CoverageError, match="no linear layer reads"):
        scored("wanda", units(params=""))


def _bound(function: object) -> Bound:
    registry = Registry()
    plugin: Plugin = registry.add("criterion", "own", function, "test")  # type: ignore[arg-type]
    return Bound(plugin)


def test_a_wrong_answer_is_named() -> None:
    def short(input_norm: Tensor) -> Tensor:
        return input_norm[:2]

    def endless(input_norm: Tensor) -> Tensor:
        return input_norm / 0.0

    with pytest.raises(PluginError, match=r"returned \(2,\)"):
        score_inputs([units()], _bound(short), Fixed(), {})
    with pytest.raises(RunError, match="not finite"):
        score_inputs([units()], _bound(endless), Fixed(), {})


def test_both_ways_of_measuring_are_refused() -> None:
    def both(grad: Tensor, input_norm: Tensor) -> Tensor:
        return grad * input_norm

    with pytest.raises(PluginError, match="measured layer by layer"):
        _bound(both)


def test_influence_is_averaged_over_cuts() -> None:
    observe = REGISTRY.get("selector", "adaptive").companion.function
    state = observe(None, {0: 1.0, 1: 2.0, 2: 6.0})
    state = observe(state, {0: 3.0, 2: 6.0})  # layer 1 is gone by then
    assert state == {"0": [4.0, 2], "1": [2.0, 1], "2": [12.0, 2]}


def test_adaptive_selector() -> None:
    adaptive = REGISTRY.get("selector", "adaptive").function
    fraction, layer = torch.tensor([0.5, 0.5, 0.1, 0.3]), torch.tensor([0, 2, 1, -1])
    # Means 2, 2, 6; centred -4/3, -4/3, 8/3; over the largest -0.5, -0.5, 1. No layer: 0.
    state = {"0": [4.0, 2], "1": [2.0, 1], "2": [12.0, 2]}
    found = adaptive(fraction, layer, state, amplitude=0.5)
    assert found.tolist() == pytest.approx([0.5 / 1.25, 0.5 / 0.5, 0.1 / 1.25, 0.3])
    assert math.isfinite(float(adaptive(fraction, layer, state)[1])), "rates stay above zero"
    assert adaptive(fraction, layer, {"0": [1.0, 1]}).tolist() == pytest.approx(fraction.tolist())


def test_gradients_of_masks_by_hand() -> None:
    """Two tokens, three mini-groups: within a micro-batch Taylor's cancel, Fisher's add up."""
    mask_grad_TG = torch.tensor([[1.0, -2.0, 3.0], [-1.0, -2.0, 0.0]])
    found = {
        name: REGISTRY.get("criterion", name).function(mask_grad_TG.clone()).tolist()
        for name in ("mask_taylor", "mask_fisher")
    }
    assert found == {"mask_taylor": [0.0, 4.0, 3.0], "mask_fisher": [1.0, 4.0, 4.5]}


def test_reductions_by_hand() -> None:
    """Three matrices, one mini-group of two positions."""
    positions_MGB = torch.tensor([[[1.0, -4.0]], [[2.0, 5.0]], [[3.0, 2.0]]])
    wanted = {
        "mean": [[2.0, 1.0]],
        "max": [[3.0, 5.0]],
        "prod": [[6.0, -40.0]],
        "last": [[3.0, 2.0]],
    }
    for name, value in wanted.items():
        assert REGISTRY.get("reduction", name).function(positions_MGB).tolist() == value, name

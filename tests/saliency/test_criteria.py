"""Hand-computed three-number tests: w = (1, -2, 3), g = (0.5, 1, -2), h = (4, 1, 2)."""

from __future__ import annotations

import pytest
import torch

from effcompress.registry import REGISTRY, Bound

W, G, H = torch.tensor([1.0, -2.0, 3.0]), torch.tensor([0.5, 1.0, -2.0]), torch.tensor([4.0, 1, 2])


@pytest.mark.parametrize(
    ("name", "knobs", "expected"),
    [
        ("magnitude", {}, [1, 2, 3]),
        ("magnitude", {"norm": "l2"}, [1, 4, 9]),
        ("taylor", {}, [0.5, 2, 6]),
        ("taylor_second", {}, [2, 2, 9]),
        ("taylor_mixed", {}, [1.5, 4, 15]),
    ],
)
def test_three_numbers(name: str, knobs: dict, expected: list[float]) -> None:
    criterion = Bound(REGISTRY.get("criterion", name), knobs)
    before = W.clone(), G.clone(), H.clone()
    assert criterion(weight=W, grad=G, hess=H).tolist() == expected
    assert all(torch.equal(a, b) for a, b in zip(before, (W, G, H), strict=True))  # pure


def test_random_is_uniform() -> None:
    uniform = torch.rand(1000, generator=torch.Generator().manual_seed(0))
    value = Bound(REGISTRY.get("criterion", "random"))(uniform=uniform)
    assert 0 <= value.min() < value.max() < 1
    assert abs(float(value.mean()) - 0.5) < 0.05

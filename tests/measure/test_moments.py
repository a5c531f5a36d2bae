"""Moments summed sequence by sequence against those of all tokens at once."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from effcompress.distributed.world import ALONE
from effcompress.estimate.memory import _fit_bytes
from effcompress.measure import moments
from effcompress.measure.moments import Moments, Parts, Sums

INPUTS, OUTPUTS = 6, 4


def drawn(dtype: torch.dtype, offset: float) -> list[tuple[Tensor, Tensor]]:
    """Inputs and targets of five sequences of different lengths, with means far from zero."""
    draw = torch.Generator().manual_seed(0)
    rows = [torch.randn(n, INPUTS + OUTPUTS, generator=draw, dtype=dtype) for n in (7, 3, 9, 5, 8)]
    return [(row[:, :INPUTS] + offset, row[:, INPUTS:] - offset) for row in rows]


def direct(pairs: list[tuple[Tensor, Tensor]]) -> Moments:
    x, t = (torch.cat(each).double() for each in zip(*pairs, strict=True))
    n = len(x)
    return Moments(x.T @ x / n, t.T @ x / n, x.mean(0), t.mean(0), t.square().sum() / n)


def summed(pairs: list[tuple[Tensor, Tensor]], held: set[int] | None) -> Parts:
    sums = Sums(OUTPUTS, INPUTS, torch.device("cpu"), split=held is not None)
    for n, pair in enumerate(pairs):
        sums.add(*pair, held=n in (held or ()))
    return sums.means(ALONE)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_all_seen_and_held_are_those_of_their_tokens(dtype: torch.dtype, tolerance: float) -> None:
    pairs = drawn(dtype, 3.0)
    whole, parts = summed(pairs, None), summed(pairs, {1, 4})
    assert whole.seen is None and whole.held is None
    assert parts.seen is not None and parts.held is not None
    wanted = [direct(pairs)] * 2 + [direct([pairs[n] for n in ns]) for ns in ((0, 2, 3), (1, 4))]
    found = [whole.all, parts.all, parts.seen, parts.held]
    for mine, theirs in zip(found, wanted, strict=True):
        for name, value in vars(theirs).items():
            torch.testing.assert_close(vars(mine)[name], value, rtol=tolerance, atol=tolerance)


def test_products_wait_before_they_are_added(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many tokens come before products go into fp64, all of them count."""
    pairs = drawn(torch.float64, 1.0)
    for late in (1, 8, 1000):
        monkeypatch.setattr(moments, "LATE", late)
        parts = summed(pairs, {0, 4})
        assert parts.seen is not None
        for mine, wanted in ((parts.all, direct(pairs)), (parts.seen, direct(pairs[1:4]))):
            torch.testing.assert_close(mine.gram, wanted.gram, rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(mine.cross, wanted.cross, rtol=1e-12, atol=1e-12)


def test_a_large_mean_does_not_hide_the_covariance() -> None:
    """Single precision of x x^T alone would leave nothing of a variance of 1 beside 3000^2."""
    pairs = drawn(torch.float32, 3000.0)
    mine, wanted = summed(pairs, None).all, direct(pairs)
    mean, other = mine.mean, wanted.mean
    found, exact = mine.gram - mean.outer(mean), wanted.gram - other.outer(other)
    torch.testing.assert_close(found, exact, rtol=1e-3, atol=1e-3)


def test_the_error_is_that_of_the_tokens() -> None:
    pairs = drawn(torch.float64, 1.0)
    draw = torch.Generator().manual_seed(1)
    weight = torch.randn(OUTPUTS, INPUTS, generator=draw, dtype=torch.float64)
    bias = torch.randn(OUTPUTS, generator=draw, dtype=torch.float64)
    x, t = (torch.cat(each) for each in zip(*pairs, strict=True))
    power = t.square().sum()
    for b in (None, bias):
        left = t - x @ weight.T - (0.0 if b is None else b)
        wanted = float(left.square().sum() / power)
        assert direct(pairs).error(weight, b) == pytest.approx(wanted, rel=1e-10)
    scale = torch.rand(INPUTS, generator=draw, dtype=torch.float64) + 0.5
    scaled = Parts(direct(pairs), None, direct(pairs)).scaled(scale)
    assert scaled.seen is None and scaled.held is not None
    for one in (scaled.all, scaled.held):
        assert one.error(weight * scale, bias) == pytest.approx(wanted, rel=1e-10)


@pytest.mark.parametrize("held", [None, {1}])
def test_the_estimate_counts_the_matrices_that_there_are(held: set[int] | None) -> None:
    """Less the temporaries of a solve: three matrices of the gram's shape, four of the weight's."""
    parts = summed(drawn(torch.float32, 0.0), held)
    each = [m for m in (parts.all, parts.seen, parts.held) if m is not None]
    there = sum(t.numel() * t.element_size() for m in each for t in (m.gram, m.cross))
    refit: Any = SimpleNamespace(candidates=held)
    solve = 8 * (3 * INPUTS**2 + 4 * INPUTS * OUTPUTS)
    assert _fit_bytes(refit, INPUTS, OUTPUTS) == there + solve

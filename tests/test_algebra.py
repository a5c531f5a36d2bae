"""Symmetric products against the whole ones."""

from __future__ import annotations

import pytest
import torch

from effcompress.algebra import NARROW, PANELS, add_gram, mirror


@pytest.mark.parametrize("width", [1, 7, NARROW - 1, NARROW, NARROW + 3, PANELS * 96])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_half_of_a_product_is_the_whole(width: int, dtype: torch.dtype) -> None:
    draw = torch.Generator().manual_seed(width)
    one, two = (torch.randn(n, width, generator=draw, dtype=dtype) for n in (5, 9))
    total = torch.zeros(width, width, dtype=dtype)
    add_gram(total, one, 0.25)
    add_gram(mirror(total), two)
    wanted = 0.25 * one.double().T @ one.double() + two.double().T @ two.double()
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    torch.testing.assert_close(mirror(total).double(), wanted, rtol=tolerance, atol=tolerance)

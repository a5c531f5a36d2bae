"""The rotation of SliceGPT, by hand."""

from __future__ import annotations

import pytest
import torch
from effcompress_plugins.slicegpt import slicegpt

from effcompress.model.modeling_pruned import UnitNorm

D = torch.float64


def turned(moment: torch.Tensor, kept: int = 1, **knobs: object) -> torch.Tensor:
    uniform = torch.rand(moment.shape, generator=torch.Generator().manual_seed(1), dtype=D)
    return slicegpt(moment, uniform, kept, **knobs)


def test_the_strongest_direction_comes_first() -> None:
    """Tokens (3, 4) and (0, 0): eigenvalues 25 and 0 of their sum; damping moves no vector."""
    x = torch.tensor([[3.0, 4.0], [0.0, 0.0]], dtype=D)
    moment = x.T @ x
    for damp in (0.0, 0.01, 1.0):
        basis = turned(moment, orientation="pca", damp=damp)
        torch.testing.assert_close(basis[:, 0].abs(), torch.tensor([0.6, 0.8], dtype=D))
        values = (basis.T @ moment @ basis).diagonal()
        torch.testing.assert_close(values, torch.tensor([25.0, 0.0], dtype=D), rtol=0, atol=1e-12)


def test_a_random_orientation_turns_what_stays_only() -> None:
    x = torch.randn(50, 6, generator=torch.Generator().manual_seed(0), dtype=D)
    moment = x.T @ x
    plain, other = turned(moment, 4, orientation="pca"), turned(moment, 4)
    torch.testing.assert_close(other.T @ other, torch.eye(6, dtype=D))
    torch.testing.assert_close(plain[:, 4:], other[:, 4:])
    assert float((plain[:, :4] - other[:, :4]).abs().max()) > 0.1
    kept = [basis[:, :4] @ basis[:, :4].T for basis in (plain, other)]
    torch.testing.assert_close(*kept)


@pytest.mark.parametrize(
    ("x", "channels", "expected"),
    [
        # After a slice the square sum is still divided by the source's two channels.
        ([2.0], 2, [1.4142136]),
        # No mean is subtracted: that would give (-1, 1).
        ([1.0, 3.0], 2, [0.4472136, 1.3416408]),
    ],
)
def test_a_norm_divides_by_the_source_s_channels(
    x: list[float], channels: int, expected: list[float]
) -> None:
    found = UnitNorm(channels, 0.0)(torch.tensor(x, dtype=D))
    torch.testing.assert_close(found, torch.tensor(expected, dtype=D), rtol=0, atol=1e-7)

"""Quantities in words, as pages and cards say them."""

from __future__ import annotations

import pytest

from effcompress.record.readable import duration, percent, power, size


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(3.21, "3.2 s"), (42.4, "42 s"), (125, "2 min 5 s"), (7325, "2 h 2 min")],
)
def test_durations(seconds: float, said: str) -> None:
    assert duration(seconds) == said


@pytest.mark.parametrize(
    ("fraction", "said"),
    [(0.15, "15.0 %"), (0.0002, "0.02 %"), (12.0, "1200 %"), (-0.1, "\u221210.0 %"), (0, "0.0 %")],
)
def test_percentages(fraction: float, said: str) -> None:
    assert percent(fraction) == said


def test_powers_and_sizes() -> None:
    assert power(3.2e-7) == "3.2\u00b710\u207b\u2077" and power(1e3) == "10\u00b3"
    assert size(269_000_000) == "269 MB" and size(2_690_000) == "2.69 MB"

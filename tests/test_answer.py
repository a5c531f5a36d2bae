"""Quantities in the tables of reading commands."""

from __future__ import annotations

import pytest

from effcompress.answer import duration, short, size


@pytest.mark.parametrize(
    ("count", "said"),
    [(999, "999"), (1500, "1.5k"), (469_327_000, "469.3M"), (1.5e12, "1.5T"), (-2e9, "-2B")],
)
def test_counts(count: float, said: str) -> None:
    assert short(count) == said


@pytest.mark.parametrize(
    ("count", "said"),
    [(0, "-"), (12, "12 B"), (1500, "1.50 kB"), (323e6, "323 MB"), (2.694e9, "2.69 GB")],
)
def test_sizes(count: float, said: str) -> None:
    assert size(count) == said


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.25, "0.25 s"), (119, "119 s"), (720, "12 min"), (86400, "24 h")]
)
def test_durations(seconds: float, said: str) -> None:
    assert duration(seconds) == said

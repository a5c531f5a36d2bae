"""Numbers, sizes and durations as people read them."""

from __future__ import annotations

import pytest

from effcompress.record.readable import clock_time, duration, exact_count, size, with_error
from effcompress.record.readable import count as shortened


@pytest.mark.parametrize(
    ("count", "said"),
    [(999, "999"), (1500, "1.5k"), (469_327_000, "469.3M"), (1.5e12, "1.5T"), (-2e9, "\u22122B")],
)
def test_counts(count: float, said: str) -> None:
    assert exact_count(count) == said


@pytest.mark.parametrize(
    ("count", "said"), [(999.4, "999"), (999_960, "1M"), (134_515_008, "134.5M"), (0, "0")]
)
def test_counts_with_one_decimal(count: float, said: str) -> None:
    assert shortened(count) == said


def test_a_fraction_with_its_error() -> None:
    assert with_error(0.55, 0.114) == "55.0 \u00b1 11.4" and with_error(0.55, None) == "55.0"
    assert with_error(0.55, 0.014, width=4) == "55.0 \u00b1  1.4"


@pytest.mark.parametrize(
    ("count", "said"),
    [(0, "-"), (12, "12 B"), (1500, "1.50 kB"), (323e6, "323 MB"), (2.694e9, "2.69 GB")],
)
def test_sizes(count: float, said: str) -> None:
    assert size(count) == said


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.25, "0.25 s"),
        (42.4, "42 s"),
        (119, "1 min 59 s"),
        (720, "12 min"),
        (86400, "24 h"),
        (11_100, "3 h 5 min"),
        (1_226_880, "14.2 days"),
    ],
)
def test_durations(seconds: float, said: str) -> None:
    assert duration(seconds) == said


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (4.4, "0:04"),
        (59.6, "1:00"),
        (65, "1:05"),
        (3599, "59:59"),
        (7389, "2:03:09"),
        (200000, "2 days"),
    ],
)
def test_clock_times(seconds: float, said: str) -> None:
    assert clock_time(seconds) == said

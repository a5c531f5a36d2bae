from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from effcompress.recipe.quantities import count, fraction, nearest_count, nearest_fraction


@pytest.mark.parametrize(
    ("written", "number"),
    [("469M", 469_000_000), ("72B", 72 * 10**9), ("1.5k", 1500), ("12", 12), (7, 7), (1e9, 10**9)],
)
def test_counts(written, number):
    assert count(written) == number


@pytest.mark.parametrize("written", ["469 MB", "1.2345k", "-3M", "M", "", "1e3", "3m"])
def test_no_counts(written):
    with pytest.raises(ValueError):
        count(written)


@given(st.integers(0, 10**6), st.sampled_from([("k", 10**3), ("M", 10**6), ("T", 10**12)]))
def test_units_multiply_exactly(number, unit):
    assert count(f"{number}{unit[0]}") == number * unit[1]


def test_fractions():
    assert fraction("85%") == 0.85
    assert fraction("12.5%") == 0.125
    assert fraction(1) == 1.0


@pytest.mark.parametrize("written", ["120%", "85 %", "0.5", -0.1, 1.5])
def test_no_fractions(written):
    with pytest.raises(ValueError):
        fraction(written)


def test_what_was_probably_meant():
    assert nearest_count("469 MB") == "469M"
    assert nearest_count("1,000") == "1000"
    assert nearest_count("2GB") == "2B"
    assert nearest_count("many") is None
    assert nearest_fraction(85) == "85%"
    assert nearest_fraction("85 percent") == "85%"
    assert nearest_fraction("0,85") == "0.85"
    assert nearest_fraction("120%") is None

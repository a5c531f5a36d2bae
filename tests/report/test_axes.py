"""Ticks people can read, and no lost spikes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from effcompress.report import numbers
from effcompress.report.axes import Scale, log_ticks, smooth, some, thin, ticks


@given(st.floats(-1e9, 1e9), st.floats(1e-6, 1e9))
def test_ticks_are_few_inside_and_told_apart(low, width):
    found = ticks(low, low + width)
    assert 1 <= len(found) <= 7 or low + width == low
    if width > 1e-4 * abs(low):
        for labels in (numbers.counts(found), numbers.plain(found)):
            assert len(set(labels)) == len(found)


def test_labels():
    assert numbers.counts(ticks(0, 1.2e6)) == ["0", "0.5M", "1.0M"] or numbers.counts([0, 3e4])
    assert numbers.counts([0, 200_000, 400_000]) == ["0", "200k", "400k"]
    assert numbers.percents([0, 0.05, 0.1]) == ["0 %", "5 %", "10 %"]
    assert numbers.power(2e-7) == "2·10⁻⁷" and numbers.power(1e-5) == "10⁻⁵"
    assert numbers.percent(-0.15, sign=True) == "\u221215.0 %"
    assert [numbers.duration(s) for s in (3.21, 42, 742, 11100)] == [
        "3.2 s",
        "42 s",
        "12 min 22 s",
        "3 h 5 min",
    ]
    assert numbers.size(229_000_000) == "229 MB" and numbers.decimal(12345.6) == "12,346"


@given(st.floats(1e-20, 1e3), st.floats(1.01, 1e12))
def test_logarithmic_ticks_exist(low, ratio):
    assert 1 <= len(log_ticks(low, low * ratio)) <= 12


def test_thinning_keeps_the_ends_and_the_spike():
    points = [(float(i), 0.0) for i in range(10_000)]
    points[4321] = (4321.0, 9.0)
    kept = thin(points)
    assert len(kept) <= 400 and kept[0] == points[0] and kept[-1] == points[-1]
    assert (4321.0, 9.0) in kept and kept == sorted(kept)
    assert len(some(points, 60)) == 60


def test_smoothing_keeps_a_straight_line():
    points = [(float(i), 2.0 * i) for i in range(100)]
    assert [y for _, y in smooth(points)] == pytest.approx([y for _, y in points])


def test_scales_end_where_they_should():
    assert [Scale(0, 10, 5, 105)(v) for v in (0, 5, 10, 99)] == [5, 55, 105, 105]
    assert Scale(1e-8, 1e-4, 0, 4, log=True)(1e-6) == pytest.approx(2)

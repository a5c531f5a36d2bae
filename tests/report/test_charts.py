"""Ticks people can read, and no lost spikes."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from effcompress.record import readable
from effcompress.report import charts
from effcompress.report.charts import Scale, smooth, span, thin


def test_numbers_as_people_read_them():
    assert readable.power(2e-7) == "2·10⁻⁷" and readable.power(1e-5) == "10⁻⁵"
    assert readable.percent(-0.15, sign=True) == "\u221215.0 %"
    assert [readable.duration(s) for s in (3.21, 42, 742, 11100)] == [
        "3.2 s",
        "42 s",
        "12 min 22 s",
        "3 h 5 min",
    ]
    assert readable.size(229_000_000) == "229 MB" and readable.decimal(12345.6) == "12,346"


@pytest.mark.parametrize(
    ("labels", "top", "log", "expected"),
    [
        (charts.COUNT, 1.2e6, False, {"200k", "1M"}),
        (charts.COUNT, 3e9, False, {"1B", "3B"}),
        (charts.COUNT, 0.5, False, {"0", "0.2"}),
        (charts.PERCENT, 0.15, False, {"0 %", "5 %", "10 %"}),
        (charts.PLAIN, 3.1, False, {"1", "3"}),
        (charts.POWER, 2e-4, False, {"0", "2e-4", "1.5e-4"}),
        (charts.POWER, 1e-4, True, {"1e-8", "1e-5"}),
        (charts.PLAIN, 4000.0, True, {"10", "1,000"}),
    ],
)
def test_ticks_are_few_and_told_apart(labels, top, log, expected):
    """The drawing's own ticks, with its labels: 2 to 8 of them, each once."""
    low = (1e-9 if top < 1 else 2.0) if log else 0.0
    line = charts.Line("", [(0, low), (1, top)], "ffn")
    chart = charts.Chart("T", [line], "y", labels, str, x_title="x", log=log, zero=not log)
    svg = charts.draw(chart)
    grid = svg.split("role-axis-label")[2].split("</g>")[0]
    found = re.findall(r">([^<>]+)</text>", grid)
    assert expected <= set(found) and 2 <= len(found) <= 8 and len(set(found)) == len(found)


@given(st.floats(-1e9, 1e9), st.floats(0, 1e9), st.booleans())
def test_the_axis_shows_every_value_and_some_air(low, wide, zero):
    first, last = span([low, low + wide], zero=zero)
    assert first <= low and low + wide <= last and first < last
    assert not zero or first <= 0


def test_thinning_keeps_the_ends_and_the_spike():
    points = [(float(i), 0.0) for i in range(10_000)]
    points[4321] = (4321.0, 9.0)
    kept = thin(points)
    assert len(kept) <= 400 and kept[0] == points[0] and kept[-1] == points[-1]
    assert (4321.0, 9.0) in kept and kept == sorted(kept)


def test_smoothing_keeps_a_straight_line():
    points = [(float(i), 2.0 * i) for i in range(100)]
    assert [y for _, y in smooth(points)] == pytest.approx([y for _, y in points])


def test_scales_are_those_of_the_drawing():
    scale = Scale(1e-8, 1e-4, 0, 4, log=True)
    assert scale(1e-6) == pytest.approx(2) and scale.encoding["domain"] == [1e-8, 1e-4]
    assert [Scale(0, 10, 5, 105)(v) for v in (0, 5, 10)] == [5, 55, 105]


def test_the_engine_of_charts_is_loaded_when_something_is_drawn():
    code = "import sys, effcompress.report, effcompress.report.comparison.page; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert "effcompress.report.charts" in loaded.stdout.split()
    assert "vl_convert" not in loaded.stdout.split() and not loaded.stderr


DRAW = """
from effcompress.report import charts
line = charts.Line("a\\x1b[2J\\ud800 b", [(0.0, 1.0), (1.0, 2.0)], "after")
chart = charts.Chart("title\\x07", [line], "y", charts.PLAIN, str, marks=[0.5], marks_label="\\x00")
print("a\ufffd[2J" in charts.draw(chart))
"""


def test_a_character_that_xml_forbids_does_not_abort_the_process():
    """The library that draws panics, which nothing can catch: hence a process of its own."""
    done = subprocess.run([sys.executable, "-c", DRAW], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr[-500:]

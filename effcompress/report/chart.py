"""A line chart as an SVG, and its points as a table, made from nothing but the numbers."""

from __future__ import annotations

import csv
import io
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from effcompress.report import numbers
from effcompress.report.axes import Point, Scale, log_ticks, some, span, thin, ticks

WIDTH, HEIGHT = 460, 290
LEFT, TOP, BOTTOM = 68, 40, 42
LEGEND, STAGES = 18, 26
"""Heights of a row of the legend, and of the names of stages, above the drawing."""
SPOTS = 60
"""Places along a chart that tell their numbers when pointed at."""

Labels = Callable[[Sequence[float]], list[str]]


@dataclass(frozen=True)
class Line:
    """One course of numbers. ``label`` stands at its end, ``name`` in the legend; ``tone`` is a
    colour class (and a pattern of dashes); ``steps`` keeps a value until the next.
    """

    label: str
    points: Sequence[Point]
    tone: str
    name: str = ""
    steps: bool = False
    faint: bool = False
    told: bool = True
    """Whether its numbers are told when the chart is pointed at."""


@dataclass(frozen=True)
class Chart:
    """Lines over one axis. ``marks`` are places on it where something happened; ``stages`` begin at
    theirs; ``goal`` is a level to reach, with its label. ``tell`` writes one value, ``y_labels``
    the ticks. Titles of axes say the unit.
    """

    title: str
    unit: str
    lines: Sequence[Line]
    x_title: str
    y_title: str
    y_labels: Labels
    tell: Callable[[float], str]
    log: bool = False
    zero: bool = False
    marks: Sequence[float] = ()
    marks_label: str = ""
    stages: Sequence[tuple[str, float]] = ()
    goal: tuple[str, float] | None = None
    x_end: float | None = None
    """Where the axis ends, if not where the lines do: pictures over tokens share one axis."""

    @property
    def right(self) -> float:
        """Where the drawing ends: names of lines stand beside it."""
        names = [line.label for line in self.lines if line.told] + [self.marks_label]
        longest = max(len(name) for name in names)
        return WIDTH - (18 if not longest else 20 + 6.6 * longest)

    @property
    def top(self) -> float:
        """Where the drawing begins: below the legend and the names of stages."""
        rows = max((row for _, row, _ in _placed(self)), default=-1) + 1
        return TOP + LEGEND * rows + STAGES * bool(self.stages)


def draw(chart: Chart) -> str:
    """The chart as an ``<svg>`` element."""
    points = [p for line in chart.lines for p in line.points]
    low, high = span(
        [y for _, y in points] + ([chart.goal[1]] if chart.goal else []),
        zero=chart.zero,
        log=chart.log,
    )
    xs = [x for x, _ in points]
    first, last = (
        (0.0 if min(xs) >= 0 else min(xs)),
        max(xs) if chart.x_end is None else chart.x_end,
    )
    x = Scale(first, last if last > first else first + 1, LEFT, chart.right)
    y = Scale(low, high, HEIGHT - BOTTOM, chart.top, chart.log)
    inner = [
        head(chart.title, chart.unit),
        *_legend(chart),
        *_grid(chart, x, y),
        *_stages(chart, x),
        *_marks(chart, x),
        *_goal(chart, y),
        *(_course(line, x, y) for line in chart.lines),
        *_names(chart, x, y),
        *_spots(chart, x, y),
    ]
    return frame("".join(inner), WIDTH, HEIGHT, ", ".join(filter(None, (chart.title, chart.unit))))


def table(chart: Chart) -> str:
    """The points of all lines as CSV, not thinned: one row per place, one column per line.

    Where a line has several points at one place (cuts of one step), so many rows have that place.
    """
    cells: dict[tuple[float, int], dict[int, float]] = {}
    for column, line in enumerate(chart.lines):
        seen: Counter[float] = Counter()
        for place, value in line.points:
            cells.setdefault((place, seen[place]), {})[column] = value
            seen[place] += 1
    names = [line.name or line.label for line in chart.lines]
    # A label that is a value (the final size) names no column.
    several = len(names) > 1
    header = [f"{n or 'each'} ({chart.y_title})" if several else chart.y_title for n in names]
    written = io.StringIO()
    writer = csv.writer(written, lineterminator="\n")
    writer.writerow([chart.x_title, *header])
    for (place, _), row in sorted(cells.items()):
        values = [row.get(column) for column in range(len(names))]
        writer.writerow([f"{place:.12g}", *("" if v is None else f"{v:.9g}" for v in values)])
    return written.getvalue()


def frame(inner: str, width: float, height: float, label: str) -> str:
    """An ``<svg>`` element around ``inner``."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="pic" viewBox="0 0 {width:g} {height:g}" '
        f'role="img" aria-label="{escape(label)}">{inner}</svg>'
    )


def text(x: float, y: float, words: str, classes: str = "", anchor: str = "start") -> str:
    """A text element."""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" class="{classes}" text-anchor="{anchor}">'
        f"{escape(words)}</text>"
    )


def head(title: str, unit: str) -> str:
    """Title and unit of a picture, in its upper left corner."""
    rest = f'<tspan dx="8" class="unit">{escape(unit)}</tspan>' if unit else ""
    return f'<text x="0" y="15" class="title">{escape(title)}{rest}</text>'


def _grid(chart: Chart, x: Scale, y: Scale) -> list[str]:
    floor, right = HEIGHT - BOTTOM, chart.right
    levels = log_ticks(y.low, y.high) if chart.log else ticks(y.low, y.high)
    out: list[str] = []
    for value, label in zip(levels, chart.y_labels(levels), strict=True):
        out.append(f'<path class="grid" d="M{LEFT} {y(value):.1f}H{right}"/>')
        out.append(text(LEFT - 7, y(value) + 4, label, "tick", "end"))
    places = [v for v in ticks(x.low, x.high, 4) if v == int(v)]
    for value, label in zip(places, numbers.counts(places), strict=True):
        out.append(f'<path class="axis" d="M{x(value):.1f} {floor}v4"/>')
        out.append(text(x(value), floor + 17, label, "tick", "middle"))
    out.append(f'<path class="axis" d="M{LEFT} {floor}H{right}"/>')
    out.append(text((LEFT + right) / 2, HEIGHT - 6, chart.x_title, "unit", "middle"))
    middle = (chart.top + floor) / 2
    out.append(
        f'<text transform="translate(2 {middle:.1f}) rotate(-90)" class="unit" '
        f'text-anchor="middle">{escape(chart.y_title)}</text>'
    )
    return out


def _legend(chart: Chart) -> list[str]:
    out: list[str] = []
    for line, row, x in _placed(chart):
        y = TOP - 4 + LEGEND * row
        out.append(f'<path class="line {line.tone}" d="M{x:.1f} {y - 4}h26"/>')
        out.append(text(x + 33, y, line.name, "tick"))
    return out


def _placed(chart: Chart) -> list[tuple[Line, int, float]]:
    """Line, row of the legend, place in it: as many in a row as its width takes."""
    found: list[tuple[Line, int, float]] = []
    x, row = float(LEFT), 0
    for line in chart.lines:
        wide = 33 + 6.3 * len(line.name)
        if x > LEFT and x + wide > WIDTH:
            x, row = float(LEFT), row + 1
        if line.name:
            found.append((line, row, x))
            x += wide + 14
    return found


def _stages(chart: Chart, x: Scale) -> list[str]:
    """A border where each stage begins, and its name behind it, lower where two are close."""
    out: list[str] = []
    free = 0.0
    low = False
    for name, begin in chart.stages:
        place, low = x(begin), x(begin) < free and not low
        y = chart.top - STAGES + (21 if low else 9)
        free = place + 6.3 * len(name) + 10
        if begin > x.low:
            out.append(f'<path class="border" d="M{place:.1f} {y - 9:.1f}V{HEIGHT - BOTTOM}"/>')
        out.append(text(place + 4, y, name, "tick stage"))
    return out


def _marks(chart: Chart, x: Scale) -> list[str]:
    if not chart.marks:
        return []
    floor = HEIGHT - BOTTOM
    places = sorted({round(x(m), 1) for m in chart.marks})
    path = "".join(f"M{p:g} {floor}v-9" for p in places)
    label = text(chart.right + 8, floor - 1, chart.marks_label, "tick")
    return [f'<path class="mark" d="{path}"/>', label]


def _goal(chart: Chart, y: Scale) -> list[str]:
    if chart.goal is None:
        return []
    label, value = chart.goal
    return [
        f'<path class="goal" d="M{LEFT} {y(value):.1f}H{chart.right:.1f}"/>',
        text(LEFT + 6, y(value) - 6, label, "tick"),
    ]


def _course(line: Line, x: Scale, y: Scale) -> str:
    places = [(x(a), y(b)) for a, b in thin(line.points)]
    if len(places) == 1:
        (a, b) = places[0]
        return f'<circle class="dot {line.tone}" cx="{a:.1f}" cy="{b:.1f}" r="4"/>'
    path = f"M{places[0][0]:.1f} {places[0][1]:.1f}"
    path += "".join(
        f"H{a:.1f}V{b:.1f}" if line.steps else f"L{a:.1f} {b:.1f}" for a, b in places[1:]
    )
    return f'<path class="line {line.tone}{" faint" if line.faint else ""}" d="{path}"/>'


def _names(chart: Chart, x: Scale, y: Scale) -> list[str]:
    """The name of each line beside its end, pushed apart where two ends are close."""
    named = [(y(line.points[-1][1]), line) for line in _told(chart) if line.label]
    named.sort(key=lambda pair: pair[0])
    out: list[str] = []
    previous = float("-inf")
    room = HEIGHT - BOTTOM - 14 * len(named) + (0 if chart.marks else 14)
    for i, (place, line) in enumerate(named):
        place = max(min(place + 4, room + 14 * i), previous + 14)
        out.append(text(x(line.points[-1][0]) + 8, place, line.label, f"name {line.tone}"))
        previous = place
    return out


def _told(chart: Chart) -> list[Line]:
    return [line for line in chart.lines if line.told]


def _spots(chart: Chart, x: Scale, y: Scale) -> list[str]:
    """Invisible strips that show their numbers when pointed at."""
    told = _told(chart)
    leader = max(told, key=lambda line: len(line.points))
    places = [p[0] for p in some(leader.points, SPOTS)]
    width = max(4.0, (chart.right - LEFT) / max(1, len(places)))
    out: list[str] = []
    for place in places:
        known = [(line, value) for line in told if (value := _at(line, place)) is not None]
        words = [f"{line.label or 'value'}: {chart.tell(value)}" for line, value in known]
        title = f"{numbers.count(place)} {chart.x_title}\n" + "\n".join(words)
        dots = "".join(
            f'<circle class="dot {line.tone}" cx="{x(place):.1f}" cy="{y(value):.1f}" r="3"/>'
            for line, value in known
        )
        out.append(
            f'<g class="spot"><rect x="{x(place) - width / 2:.1f}" y="{chart.top:g}" '
            f'width="{width:.1f}" height="{HEIGHT - chart.top - BOTTOM:g}"/>{dots}'
            f"<title>{escape(title)}</title></g>"
        )
    return out


def _at(line: Line, place: float) -> float | None:
    """The value of a line at ``place``: that of the last point up to there."""
    index = bisect_right(line.points, place, key=lambda p: p[0])
    return line.points[index - 1][1] if index else None

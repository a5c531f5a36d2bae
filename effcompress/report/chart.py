"""A line chart as an SVG, made from nothing but the numbers."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from effcompress.report import numbers
from effcompress.report.axes import Point, Scale, log_ticks, some, span, thin, ticks

WIDTH, HEIGHT = 460, 270
LEFT, TOP, BOTTOM = 52, 40, 42
SPOTS = 60
"""Places along a chart that tell their numbers when pointed at."""

Labels = Callable[[Sequence[float]], list[str]]


@dataclass(frozen=True)
class Line:
    """One course of numbers. ``tone`` is a colour class; ``steps`` keeps a value until the next."""

    label: str
    points: Sequence[Point]
    tone: str
    steps: bool = False
    faint: bool = False
    told: bool = True
    """Whether its numbers are told when the chart is pointed at."""


@dataclass(frozen=True)
class Chart:
    """Lines over one axis. ``marks`` are places on it where something happened; ``goal`` is a level
    to reach, with its label. ``tell`` writes one value, ``y_labels`` the ticks.
    """

    title: str
    unit: str
    lines: Sequence[Line]
    x_title: str
    y_labels: Labels
    tell: Callable[[float], str]
    log: bool = False
    zero: bool = False
    marks: Sequence[float] = ()
    marks_label: str = ""
    goal: tuple[str, float] | None = None
    x_end: float | None = None
    """Where the axis ends, if not where the lines do: pictures over tokens share one axis."""

    @property
    def right(self) -> float:
        """Where the drawing ends: names of lines stand beside it."""
        names = [line.label for line in self.lines if line.told] + [self.marks_label]
        longest = max(len(name) for name in names)
        return WIDTH - (18 if not longest else 20 + 6.6 * longest)


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
    y = Scale(low, high, HEIGHT - BOTTOM, TOP, chart.log)
    inner = [
        head(chart.title, chart.unit),
        *_grid(chart, x, y),
        *_marks(chart, x),
        *_goal(chart, y),
        *(_course(line, x, y) for line in chart.lines),
        *_names(chart, x, y),
        *_spots(chart, x, y),
    ]
    return frame("".join(inner), WIDTH, HEIGHT, f"{chart.title}, {chart.unit}")


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
    rest = f'<tspan dx="8" class="unit">{escape(unit)}</tspan>'
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
            f'<g class="spot"><rect x="{x(place) - width / 2:.1f}" y="{TOP}" width="{width:.1f}" '
            f'height="{HEIGHT - TOP - BOTTOM}"/>{dots}<title>{escape(title)}</title></g>'
        )
    return out


def _at(line: Line, place: float) -> float | None:
    """The value of a line at ``place``: that of the last point up to there."""
    index = bisect_right(line.points, place, key=lambda p: p[0])
    return line.points[index - 1][1] if index else None

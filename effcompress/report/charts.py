"""Charts as SVG, drawn by Vega-Lite: lines over an axis, named points, bars, columns per layer.

Colours are CSS variables of ``templates/palette.css``, so that a chart follows the light or dark
mode of its reader. Text stays text. Sizes and positions of names are in pixels of the view box.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from effcompress.report import numbers
from effcompress.report.render import render

Point = tuple[float, float]
Layer = dict[str, Any]
"""A layer of a Vega-Lite specification, which is JSON."""

WIDTH, HEIGHT = 460, 306
LEFT, BOTTOM, AIR = 68, 42, 18
"""Room for the labels of the axes, and right of a chart without names."""
MARGIN = 14
"""Around a picture that is a file of its own."""
LETTER, LINE = 6.7, 14
"""Width of a letter and height of a line of text."""
STRIPS = 60
"""Places along a chart that show their values as a tooltip."""

# Labels of ticks, as Vega expressions. SI writes 10^9 as G, people write parameters as B.
COUNT = "replace(format(datum.value, '~s'), 'G', 'B')"
PERCENT = "format(100 * datum.value, '~') + ' %'"
PLAIN = "format(datum.value, ',~')"
POWER = "datum.value ? replace(format(datum.value, '~e'), '+', '') : '0'"

TONES = {"loss": "after", "dense": "ink", "speed": "hidden", "rate": "spare", "goal": "soft"}
"""Tone -> variable of the palette, where they differ."""
DASHES = {
    "attention": [8, 4],
    "hidden": [0.1, 4.6],
    "spare": [10, 4, 0.1, 4],
    "spare2": [4, 5],
    "goal": [5, 4],
}
SOLID = [1, 0]
SHAPES = ("circle", "square", "diamond", "triangle-up")


@dataclass(frozen=True)
class Line:
    """One series. ``label`` stands at its end, ``name`` in the legend; ``tone`` gives its colour
    and its dashes. ``told``: whether tooltips show its values.
    """

    label: str
    points: Sequence[Point]
    tone: str
    name: str = ""
    faint: bool = False
    told: bool = True
    thin: bool = False


@dataclass(frozen=True)
class Chart:
    """Lines over one axis. ``marks`` are places on it where something happened; ``stages`` begin at
    theirs; ``goal`` is a level to reach, with its label. ``tell`` writes one value, ``y_labels`` is
    an expression for the ticks. Titles of axes say the unit. ``steps``: a value holds until the
    next.
    """

    title: str
    unit: str
    lines: Sequence[Line]
    x_title: str
    y_title: str
    y_labels: str
    tell: Callable[[float], str]
    log: bool = False
    zero: bool = False
    steps: bool = False
    marks: Sequence[float] = ()
    marks_label: str = ""
    stages: Sequence[tuple[str, float]] = ()
    goal: tuple[str, float] | None = None
    x_end: float | None = None
    """Where the axis ends, if not where the lines do: pictures over tokens share one axis."""


@dataclass(frozen=True)
class Spot:
    """One named point. ``shape`` is one of ``SHAPES``; ``error`` reaches as far up as down;
    ``told`` is its tooltip.
    """

    name: str
    x: float
    y: float
    tone: str
    told: str
    shape: str = SHAPES[0]
    error: float | None = None


@dataclass(frozen=True)
class Scatter:
    """Points over two axes. ``zero``: the x axis begins at 0."""

    title: str
    unit: str
    spots: Sequence[Spot]
    x_title: str
    y_title: str
    x_labels: str
    y_labels: str
    log: bool = False
    zero: bool = False


@dataclass(frozen=True)
class Bar:
    """One horizontal bar with its value in words; ``tone`` None: an outline."""

    name: str
    value: float
    said: str
    tone: str | None


@dataclass(frozen=True)
class Frame:
    """The drawing inside a picture: its size, and the room left of it, above, right and below."""

    width: float
    height: float
    left: float
    top: float
    right: float
    bottom: float


@dataclass(frozen=True)
class Scale:
    """Values from ``low`` to ``high`` on pixels from ``start`` to ``stop``, as Vega places them."""

    low: float
    high: float
    start: float
    stop: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, value = (
            (math.log10(v) if self.log else v) for v in (self.low, self.high, value)
        )
        return self.start + (value - low) / (high - low) * (self.stop - self.start)

    @property
    def encoding(self) -> dict[str, Any]:
        """The same scale in Vega-Lite's words."""
        kind = "log" if self.log else "linear"
        return {"type": kind, "domain": [self.low, self.high], "nice": False, "zero": False}


def draw(chart: Chart) -> str:
    """Returns the lines of a chart as an ``<svg>`` element."""
    points = [p for line in chart.lines for p in line.points]
    goal = [chart.goal[1]] if chart.goal else []
    low, high = span([y for _, y in points] + goal, zero=chart.zero, log=chart.log)
    first = min(0.0, *(x for x, _ in points))
    last = max(x for x, _ in points) if chart.x_end is None else chart.x_end
    columns, rows = _legend_size([line.name for line in chart.lines if line.name])
    top = _head(chart.unit) + LINE + 18 * rows + 26 * bool(chart.stages)
    names = [line.label for line in chart.lines if line.told] + [chart.marks_label]
    longest = max(map(len, names))
    frame = _frame(WIDTH, HEIGHT, LEFT, top, 20 + LETTER * longest if longest else AIR, BOTTOM)
    x = Scale(first, last if last > first else first + 1, 0, frame.width)
    y = Scale(low, high, frame.height, 0, chart.log)
    layers = [
        _lines(chart, x, y, {"columns": columns, "legendY": _head(chart.unit) + 8 - frame.top}),
        *_stages(chart, x, frame),
        *_marks(chart, x, frame),
        *_goal(chart, y, frame),
        _texts(_ends(chart, x, y), bold=True),
        _strips(chart, x, frame),
    ]
    return _svg(chart.title, chart.unit, frame, layers)


def table(chart: Chart) -> str:
    """Returns the points of all lines as CSV, not thinned: one row per place, one column per line.

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


def scatter(picture: Scatter) -> str:
    """Returns named points with error bars as an ``<svg>`` element."""
    frame = _frame(940, 430, 76, 52, 24, 46)
    reaches = [_reach(spot, log=picture.log) for spot in picture.spots]
    x = Scale(*span([s.x for s in picture.spots], zero=picture.zero), 0, frame.width)
    y = Scale(*span([v for r in reaches for v in r], log=picture.log), frame.height, 0, picture.log)
    data = [
        {
            "x": spot.x,
            "y": spot.y,
            "low": max(low, y.low),
            "high": high,
            "color": _colour(spot.tone),
            "shape": spot.shape,
            "told": spot.told,
        }
        for spot, (low, high) in zip(picture.spots, reaches, strict=True)
    ]
    axes = {
        "x": _axis("x", picture.x_title, picture.x_labels, x, tickCount=6),
        "y": _axis("y", picture.y_title, picture.y_labels, y),
        "color": _own("color"),
    }
    errors = [row for row, spot in zip(data, picture.spots, strict=True) if spot.error]
    bar = {**axes, "y": {**axes["y"], "field": "low"}, "y2": {"field": "high"}}
    names, leads = _names([(s.name, x(s.x), y(s.y), _colour(s.tone)) for s in picture.spots], frame)
    layers: list[Layer] = [
        _layer({"type": "rule", "opacity": 0.7, "strokeWidth": 1.3}, errors, bar),
        _layer({"type": "rule", "color": "var(--soft)", "strokeWidth": 0.7}, leads, _BOX),
        _texts(names, bold=True),
        _layer(
            {"type": "point", "filled": True, "opacity": 1, "size": 75, "aria": True},
            data,
            {**axes, "shape": _own("shape"), "description": {"field": "told"}},
        ),
    ]
    return _svg(picture.title, picture.unit, frame, layers)


def bars(title: str, unit: str, rows: Sequence[Bar]) -> str:
    """Returns horizontal bars, one below the other, as an ``<svg>`` element."""
    left = 14 + LETTER * max(len(row.name) for row in rows)
    room = 14 + LETTER * max(len(row.said) for row in rows)
    pitch = 25
    top = _head(unit) + 12
    frame = _frame(WIDTH, top + pitch * len(rows) + 6, left, top, room, 6)
    x = Scale(0, max(row.value for row in rows) or 1.0, 0, frame.width)
    boxes = [
        {
            "x": 0,
            "x2": max(1.5, x(row.value)),
            "y": pitch * k,
            "y2": pitch * k + 19,
            "color": _colour(row.tone or "grid"),
            "stroke": "var(--soft)" if row.tone is None else "none",
        }
        for k, row in enumerate(rows)
    ]
    names = [
        _text(-10, pitch * k + 14, row.name, _colour(row.tone or "ink"), "right")
        for k, row in enumerate(rows)
    ]
    said = [
        _text(box["x2"] + 7, box["y"] + 14, row.said, "var(--soft)")
        for box, row in zip(boxes, rows, strict=True)
    ]
    layers = [_boxes(boxes), _texts(names, bold=True), _texts(said)]
    return _svg(title, unit, frame, layers)


def left(title: str, unit: str, rows: Sequence[tuple[str, int, int, str]]) -> str:
    """Returns what is left of each (name, before, after, tone): fractions of equally long bars."""
    top, pitch = _head(unit) + 10, 54
    frame = _frame(WIDTH, max(HEIGHT, top + pitch * len(rows)), 1, top, 1, 0)
    boxes: list[dict[str, Any]] = []
    texts: list[dict[str, Any]] = []
    for k, (name, before, after, tone) in enumerate(rows):
        fraction, y = after / before if before else 1.0, pitch * k
        said = f"{after:,} of {before:,}  ({numbers.percent(fraction)})"
        texts += [_text(0, y + 12, name, _colour(tone), bold=True)]
        texts += [_text(frame.width, y + 12, said, "var(--soft)", "right")]
        box = {"x": 0, "x2": frame.width, "y": y + 20, "y2": y + 36, "told": f"{name}: {said}"}
        boxes += [{**box, "color": "var(--grid)", "stroke": "var(--soft)"}]
        boxes += [{**box, "x2": fraction * frame.width, "color": _colour(tone), "stroke": "none"}]
    return _svg(title, unit, frame, [_boxes(boxes, told=True), _texts(texts)])


def layers(title: str, unit: str, before: Sequence[int], after: Sequence[int], tone: str) -> str:
    """Returns one column for each layer as an ``<svg>``: before as an outline, after filled."""
    frame = _frame(WIDTH, HEIGHT, LEFT, _head(unit) + LINE, 12, BOTTOM)
    data = [
        {
            "layer": k,
            "before": had,
            "after": has,
            "told": f"layer {k}: {has:,} of {had:,} "
            f"({numbers.percent(has / had if had else 1)} kept)",
        }
        for k, (had, has) in enumerate(zip(before, after, strict=True))
    ]
    y = Scale(0, max(*before, 1), frame.height, 0)
    every = -(-len(data) // 8)
    ticks = {"values": [*range(0, len(data), every)], "labelAngle": 0, "ticks": False}
    encoding = {
        "x": {
            "field": "layer",
            "type": "ordinal",
            "title": "layer",
            "axis": ticks,
            "scale": {"paddingInner": 0.26},
        },
        "description": {"field": "told"},
    }
    tick = _axis("before", "", COUNT, y, tickMinStep=1, tickCount=4)
    outline = {"fill": "var(--grid)", "stroke": "var(--soft)", "strokeWidth": 0.8}
    return _svg(
        title,
        unit,
        frame,
        [
            _layer({"type": "bar", "aria": True, **outline}, data, {**encoding, "y": tick}),
            _layer(
                {"type": "bar", "aria": True, "color": _colour(tone)},
                data,
                {**encoding, "y": {**tick, "field": "after"}},
            ),
        ],
    )


def span(values: Sequence[float], *, zero: bool = False, log: bool = False) -> Point:
    """Returns the stretch that an axis shows: all values and a little air, never empty."""
    low, high = min(values), max(values)
    if log:
        return (low / 1.5, high * 1.5)
    if zero:
        low = min(low, 0.0)
    air = (high - low) * 0.06 or abs(high) * 0.05 or 1.0
    return (low if zero and low == 0 else low - air, high + air)


def thin(points: Sequence[Point], most: int = 400) -> list[Point]:
    """Returns at most ``most`` points: first, last, and the lowest and highest of each stretch, so
    that every spike stays.
    """
    if len(points) <= most:
        return list(points)
    kept: list[Point] = []
    number = (most - 2) // 2
    for i in range(number):
        chunk = points[i * len(points) // number : (i + 1) * len(points) // number]
        kept += sorted({min(chunk, key=lambda p: p[1]), max(chunk, key=lambda p: p[1])})
    return [points[0], *(p for p in kept if p not in (points[0], points[-1])), points[-1]]


def some(points: Sequence[Point], most: int) -> list[Point]:
    """Returns at most ``most`` points, evenly picked, first and last among them."""
    if len(points) <= most:
        return list(points)
    return [points[round(i * (len(points) - 1) / (most - 1))] for i in range(most)]


def smooth(points: Sequence[Point], fraction: float = 0.04) -> list[Point]:
    """Returns the centred running mean over ``fraction`` of the points."""
    half = max(1, round(len(points) * fraction / 2))
    sums = [0.0]
    for _, y in points:
        sums.append(sums[-1] + y)
    result: list[Point] = []
    for i, (x, _) in enumerate(points):
        reach = min(half, i, len(points) - 1 - i)
        result.append((x, (sums[i + reach + 1] - sums[i - reach]) / (2 * reach + 1)))
    return result


def alone(svg: str) -> str:
    """Returns a picture as a file of its own: with its style inside, on a ground with a margin."""
    opening, rest = svg.split(">", 1)
    width, height = (float(n) for n in re.findall(r'viewBox="0 0 (\S+) (\S+)"', opening)[0])
    box = f'viewBox="{-MARGIN} {-MARGIN} {width + 2 * MARGIN:g} {height + 2 * MARGIN:g}"'
    opening = re.sub(r'viewBox="[^"]*"', box, opening)
    ground = f'<rect class="ground" x="{-MARGIN}" y="{-MARGIN}" width="100%" height="100%"/>'
    return f"{opening}><style>{render('palette.css')}</style>{ground}{rest}\n"


# The parts of a chart


def _lines(chart: Chart, x: Scale, y: Scale, place: dict[str, float]) -> Layer:
    """The lines, their axes and their legend. A line with a single point is a dot."""
    keys = [line.name or f"line {k}" for k, line in enumerate(chart.lines)]
    data = [
        {"x": a, "y": b, "line": key, "width": _width(line), "opacity": 0.32 if line.faint else 1}
        for key, line in zip(keys, chart.lines, strict=True)
        for a, b in thin(line.points)
    ]
    shown = [key for key, line in zip(keys, chart.lines, strict=True) if line.name]
    legend = {"values": shown, "orient": "none", "legendX": 10 - LEFT, **place} if shown else None
    alone = {key for key, line in zip(keys, chart.lines, strict=True) if len(line.points) == 1}
    encoding = {
        "x": _axis("x", chart.x_title, COUNT, x, tickCount=4, tickMinStep=1, grid=False),
        "y": _axis("y", chart.y_title, chart.y_labels, y),
        "color": _by_line(keys, [_colour(line.tone) for line in chart.lines], legend),
    }
    stroke = {
        "strokeDash": _by_line(keys, [DASHES.get(x.tone, SOLID) for x in chart.lines], legend),
        "strokeWidth": _own("width"),
        "opacity": _own("opacity"),
    }
    mark = {"type": "line", "strokeCap": "round", "strokeJoin": "round"}
    if chart.steps:
        mark["interpolate"] = "step-after"
    dots = [row for row in data if row["line"] in alone]
    dot = {"type": "point", "filled": True, "size": 60, "opacity": 1}
    found = [_layer(mark, data, {**encoding, **stroke})]
    return {"layer": found + ([_layer(dot, dots, encoding)] if dots else [])}


def _width(line: Line) -> float:
    return 1.0 if line.faint or line.thin else 2.2


def _by_line(keys: Sequence[str], values: Sequence[Any], legend: Any) -> dict[str, Any]:
    scale = {"domain": [*keys], "range": [*values]}
    return {"field": "line", "type": "nominal", "title": None, "scale": scale, "legend": legend}


def _legend_size(names: Sequence[str]) -> tuple[int, int]:
    """Columns and rows of a legend that is no wider than the picture."""
    if not names:
        return 1, 0
    wide = 46 + 6.3 * max(map(len, names))
    columns = max(1, min(len(names), int((WIDTH - 4) // wide)))
    return columns, -(-len(names) // columns)


def _stages(chart: Chart, x: Scale, frame: Frame) -> list[Layer]:
    """A border where each stage begins, and its name behind it, lower where two are close."""
    if not chart.stages:
        return []
    texts, borders = [], []
    free, low = 0.0, False
    for name, begin in chart.stages:
        place, low = x(begin), x(begin) < free and not low
        y = -5 if low else -17
        free = place + LETTER * len(name) + 10
        if begin > x.low:
            borders.append({"x": place, "x2": place, "y": y - 9, "y2": frame.height})
        texts.append(_text(place + 4, y, name, "var(--soft)"))
    rule = {"type": "rule", "color": "var(--soft)", "opacity": 0.75}
    return [_layer(rule, borders, _BOX, name="stages"), _texts(texts, italic=True)]


def _marks(chart: Chart, x: Scale, frame: Frame) -> list[Layer]:
    if not chart.marks:
        return []
    places = sorted({round(x(mark), 1) for mark in chart.marks})
    data = [{"x": p, "x2": p, "y": frame.height - 9, "y2": frame.height} for p in places]
    label = _text(frame.width + 8, frame.height - 1, chart.marks_label, "var(--soft)")
    rule = {"type": "rule", "color": "var(--soft)", "opacity": 0.5, "strokeWidth": 0.8}
    return [_layer(rule, data, _BOX), _texts([label])]


def _goal(chart: Chart, y: Scale, frame: Frame) -> list[Layer]:
    if chart.goal is None:
        return []
    label, value = chart.goal
    rule = {"type": "rule", "color": "var(--soft)", "strokeDash": DASHES["goal"]}
    line = {"x": 0, "x2": frame.width, "y": y(value), "y2": y(value)}
    return [_layer(rule, [line], _BOX), _texts([_text(6, y(value) - 6, label, "var(--soft)")])]


def _ends(chart: Chart, x: Scale, y: Scale) -> list[dict[str, Any]]:
    """The label of each line beside its end, pushed apart where two ends are close."""
    named = [line for line in chart.lines if line.told and line.label]
    named.sort(key=lambda line: y(line.points[-1][1]))
    room = y.start - LINE * len(named) + (0 if chart.marks else LINE)
    found, previous = [], -math.inf
    for k, line in enumerate(named):
        place, value = line.points[-1]
        previous = max(min(y(value) + 4, room + LINE * k), previous + LINE)
        found.append(_text(x(place) + 8, previous, line.label, _colour(line.tone)))
    return found


def _strips(chart: Chart, x: Scale, frame: Frame) -> Layer:
    """Invisible strips whose tooltips show the values of all lines at one place."""
    told = [line for line in chart.lines if line.told]
    places = [p[0] for p in some(max(told, key=lambda line: len(line.points)).points, STRIPS)]
    half = max(4.0, frame.width / len(places)) / 2
    data = []
    for place in places:
        known = [(line, value) for line in told if (value := _at(line, place)) is not None]
        words = [f"{line.label or 'value'}: {chart.tell(value)}" for line, value in known]
        text = "\n".join([f"{numbers.count(place)} {chart.x_title}", *words])
        box = {"x": x(place) - half, "x2": x(place) + half, "y": 0, "y2": frame.height}
        data.append({**box, "told": text})
    mark = {"type": "rect", "color": "var(--soft)", "opacity": 0, "aria": True}
    return _layer(mark, data, {**_BOX, "description": {"field": "told"}}, name="strips")


def _at(line: Line, place: float) -> float | None:
    """The value of a line at ``place``: that of the last point up to there."""
    index = bisect_right(line.points, place, key=lambda p: p[0])
    return line.points[index - 1][1] if index else None


def _reach(spot: Spot, *, log: bool) -> tuple[float, float]:
    """Both ends of the error bar."""
    error = spot.error or 0.0
    # An error bar on a logarithmic axis may reach below zero.
    return max(spot.y - error, spot.y / 2) if log else spot.y - error, spot.y + error


Box = tuple[float, float, float, float]
"""Left, top, right, bottom."""


def _names(
    points: Sequence[tuple[str, float, float, str]], frame: Frame
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The name of each (name, x, y, colour) beside its point, moved up or down where it would cover
    another, and thin lines from moved names to their points. Vega's own label transform drops names
    that have no room.
    """
    taken: list[Box] = [(x - 6.5, y - 6.5, x + 6.5, y + 6.5) for _, x, y, _ in points]
    texts, leads = [], []
    for name, x, y, colour in sorted(points, key=lambda p: p[2]):
        wide = LETTER * len(name)
        boxes = list(_places(x, y, wide, frame))
        free = (b for b in boxes if not any(_overlap(b, other) for other in taken))
        box = next(free, boxes[0])
        taken.append(box)
        right = box[0] > x
        place, top = box[0] + 1 if right else box[2] - 1, box[3] - 3
        texts.append(_text(place, top, name, colour, "left" if right else "right"))
        if abs(top - 4 - y) > 1:
            near = place - 3 if right else place + 3
            leads.append({"x": x, "y": y, "x2": near, "y2": top - 4})
    return texts, leads


def _places(x: float, y: float, wide: float, frame: Frame) -> Iterator[Box]:
    """Places for a name: right of its point, left of it, then farther and farther up and down."""
    inside = False
    for step in range(100):
        away = 22 if step else 10
        for rise in dict.fromkeys((-step * LINE / 4, step * LINE / 4)):
            top = y + 4 + rise
            for start in (x + away, x - away - wide):
                box = (start - 1, top - LINE + 3, start + wide + 1, top + 3)
                across = box[0] > 0 and box[2] < frame.width + frame.right
                if across and box[1] > -14 and box[3] < frame.height:
                    inside = True
                    yield box
    if not inside:
        yield (x + 9, y - 7, x + 11 + wide, y + 7)


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


# Vega-Lite


def _own(field: str) -> dict[str, Any]:
    """A field whose values are pixels, colours, shapes or widths as they are."""
    kind = "quantitative" if field in _PIXELS else "nominal"
    return {"field": field, "type": kind, "scale": None, "legend": None}


_PIXELS = ("x", "y", "width", "opacity")
_BOX: dict[str, Any] = {
    axis: {"field": axis, "type": "quantitative", "scale": None, "axis": None} for axis in "xy"
} | {"x2": {"field": "x2"}, "y2": {"field": "y2"}}
"""Two corners in pixels."""


def _colour(tone: str) -> str:
    return f"var(--{TONES.get(tone, tone)})"


def _axis(field: str, title: str, labels: str, scale: Scale, **axis: Any) -> dict[str, Any]:
    if scale.log:
        # With fewer ticks than decades, Vega takes powers of ten alone; else all multiples of them.
        decades = math.log10(scale.high / scale.low)
        axis["tickCount"] = min(6, int(decades)) if decades >= 2 else 3
        if 1 <= decades < 2:
            lead = "substring(format(datum.value, 'e'), 0, 1)"
            labels = f"indexof('125', {lead}) < 0 ? '' : {labels}"
    return {
        "field": field,
        "type": "quantitative",
        "title": title or None,
        "scale": scale.encoding,
        "axis": {"labelExpr": labels, "tickCount": 5, **axis},
    }


def _layer(mark: Layer, data: list[Any], encoding: Layer, name: str = "") -> Layer:
    drawn = {"data": {"values": data}, "mark": {"aria": False, **mark}, "encoding": encoding}
    return {"name": name, **drawn} if name else drawn


def _text(
    x: float, y: float, text: str, colour: str, align: str = "left", *, bold: bool = False
) -> dict[str, Any]:
    return {"x": x, "y": y, "text": text, "color": colour, "align": align, "bold": bold}


def _texts(rows: Sequence[dict[str, Any]], *, bold: bool = False, italic: bool = False) -> Layer:
    """Text at pixels: (x, baseline)."""
    style = "italic" if italic else "normal"
    mark: Layer = {"type": "text", "baseline": "alphabetic", "fontSize": 12, "fontStyle": style}
    mark["align"] = {"expr": "datum.align"}
    mark["fontWeight"] = 600 if bold else {"expr": "datum.bold ? 600 : 400"}
    text = {axis: _BOX[axis] for axis in "xy"}
    text |= {"color": _own("color"), "text": {"field": "text", "type": "nominal"}}
    return _layer(mark, [*rows], text)


def _boxes(rows: list[dict[str, Any]], *, told: bool = False) -> Layer:
    """Rounded boxes at pixels, filled with their ``color`` and outlined with their ``stroke``."""
    encoding = {**_BOX, "fill": {**_own("color")}, "stroke": _own("stroke")}
    if told:
        encoding["description"] = {"field": "told"}
    mark = {"type": "rect", "cornerRadius": 3, "strokeWidth": 0.8, "opacity": 1, "aria": told}
    return _layer(mark, rows, encoding)


def _head(unit: str) -> int:
    """Height of the title, and of the unit below it."""
    return 34 if unit else 18


def _frame(
    width: float, height: float, left: float, top: float, right: float, bottom: float
) -> Frame:
    return Frame(width - left - right, height - top - bottom, left, top, right, bottom)


_AXIS = {
    "labelColor": "var(--soft)",
    "titleColor": "var(--soft)",
    "labelFontSize": 12,
    "titleFontSize": 12,
    "titleFontWeight": "normal",
    "gridColor": "var(--grid)",
    "domainColor": "var(--soft)",
    "tickColor": "var(--soft)",
    "domainOpacity": 0.6,
    "tickOpacity": 0.6,
    "tickSize": 4,
}
_CONFIG = {
    "font": "sans-serif",  # palette.css names the fonts; this one is for measuring
    "view": {"stroke": None},
    "axis": _AXIS,
    "axisY": {"domain": False, "ticks": False, "labelPadding": 7, "titleX": -58},
    "axisX": {"grid": False},
    "legend": {
        "labelColor": "var(--soft)",
        "labelFontSize": 12,
        "labelLimit": 0,
        "symbolSize": 680,
        "symbolStrokeWidth": 2.2,
        "padding": 0,
        "columnPadding": 18,
    },
}


def _svg(title: str, unit: str, frame: Frame, layers: Sequence[Layer]) -> str:
    """Draws a specification, and turns Vega's labels of single marks into tooltips."""
    import vl_convert  # it brings a JavaScript engine: only when something is drawn

    head = [_text(-frame.left, 15 - frame.top, title, "var(--ink)")]
    below = [_text(-frame.left, 31 - frame.top, unit, "var(--soft)")] if unit else []
    heading = _texts(head, bold=True)
    heading["mark"]["fontSize"] = 15
    spec = {
        "width": frame.width,
        "height": frame.height,
        "padding": {
            "left": frame.left,
            "top": frame.top,
            "right": frame.right,
            "bottom": frame.bottom,
        },
        "autosize": "none",
        "background": None,
        "config": _CONFIG,
        "layer": [*layers, heading, _texts(below)],
        "resolve": {"axis": {"x": "shared", "y": "shared"}},
    }
    drawn = vl_convert.vegalite_to_svg(json.dumps(spec), allowed_base_urls=[])
    width = frame.left + frame.width + frame.right
    height = frame.top + frame.height + frame.bottom
    label = ", ".join(filter(None, (title, unit)))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="pic" viewBox="0 0 {width:g} {height:g}" '
        f'role="img" aria-label="{escape(label)}">{_tooltips(drawn.split(">", 1)[1])}'
    )


def _tooltips(inner: str) -> str:
    inner = re.sub(r'<(\w+) aria-label="([^"]*)"([^>]*)/>', r"<\1\3><title>\2</title></\1>", inner)
    inner = re.sub(r' (?:role|aria-[a-z]+|pointer-events)="[^"]*"', "", inner)
    # Coordinates to a hundredth of a pixel.
    return re.sub(r"(\d+\.\d\d)\d+", r"\1", inner)

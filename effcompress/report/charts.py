"""Charts as SVG, drawn by Vega-Lite: lines over an axis, named points, bars, columns per layer.

Colours are CSS variables of ``templates/palette.css``, so that a chart follows the light or dark
mode of its reader. Text stays text. Sizes and positions of names are in pixels of the view box.
"""

import csv
import io
import json
import math
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import accumulate
from typing import Any

from effcompress.errors import printable
from effcompress.record import readable
from effcompress.report.render import render

Point = tuple[float, float]
Row = dict[str, Any]
"""A row of the data that a template of a chart asks for."""

WIDTH, HEIGHT = 460, 306
LEFT, BOTTOM, AIR = 68, 42, 18
"""Room for the labels of the axes, and right of a chart without names."""
MARGIN = 14
"""Around a picture that is a file of its own."""
LETTER, LINE = 6.7, 14
"""Width of a letter and height of a line of text."""
TOKENS = "tokens trained on"
STRIPS = 60
"""Places along a chart that show their values as a tooltip."""

# Labels of ticks, as Vega expressions. SI writes 10^9 as G, people write parameters as B.
# Below 1 it has other letters: 0.5 would be 500m.
COUNT = "replace(format(datum.value, datum.value < 1 ? '~' : '~s'), 'G', 'B')"
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
    "bad": [12, 3],
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
    """Lines over one axis; ``unit`` stands below the title. ``marks`` are places on the axis where
    something happened; ``stages`` begin at theirs; ``goal`` is a level to reach, with its label.
    ``tell`` writes one value, ``y_labels`` is an expression for the ticks. Titles of axes say the
    unit. ``steps``: a value holds until the next.
    """

    title: str
    lines: Sequence[Line]
    y_title: str
    y_labels: str
    tell: Callable[[float], str]
    unit: str = ""
    x_title: str = TOKENS
    log: bool = False
    zero: bool = False
    steps: bool = False
    marks: Sequence[float] = ()
    marks_label: str = ""
    stages: Sequence[tuple[str, float]] = ()
    goal: tuple[str, float] | None = None
    x_end: float | None = None
    """Where the axis ends, if not where the lines do: pictures over tokens share one axis."""
    x_start: float | None = None
    """Where it begins, if not at 0."""


@dataclass(frozen=True)
class Spot:
    """One named point: a shape of ``SHAPES``, an ``error`` up and down, ``told`` as its tooltip."""

    name: str
    x: float
    y: float
    tone: str
    told: str
    shape: str = SHAPES[0]
    error: float | None = None


@dataclass(frozen=True)
class Bar:
    """One horizontal bar below its name and its value in words; ``tone`` None: an outline.
    ``full``: length of the outline around it, if it has one.
    """

    name: str
    value: float
    said: str
    tone: str | None
    full: float | None = None


@dataclass(frozen=True)
class Frame:
    """A picture's size, and the room around its drawing, of which ``width`` and ``height`` are."""

    whole_width: float
    whole_height: float
    left: float
    top: float
    right: float
    bottom: float

    @property
    def width(self) -> float:
        return self.whole_width - self.left - self.right

    @property
    def height(self) -> float:
        return self.whole_height - self.top - self.bottom


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
    values = [y for line in chart.lines for _, y in line.points]
    places = [x for line in chart.lines for x, _ in line.points]
    names = [line.label for line in chart.lines if line.told] + [chart.marks_label]
    longest = max(map(len, names))
    keyed = [len(line.name) for line in chart.lines if line.name]
    # A legend that is no wider than the picture.
    wide = 46 + 6.3 * max(keyed, default=0)
    columns = max(1, min(len(keyed), int((WIDTH - 4) // wide)))
    rows = -(-len(keyed) // columns)
    top = _head(chart.unit) + LINE + 18 * rows + 26 * bool(chart.stages)
    frame = Frame(WIDTH, HEIGHT, LEFT, top, 20 + LETTER * longest if longest else AIR, BOTTOM)
    low, high = span(
        values + ([chart.goal[1]] if chart.goal else []), zero=chart.zero, log=chart.log
    )
    first = min(0.0, *places) if chart.x_start is None else chart.x_start
    last = max(places) if chart.x_end is None else chart.x_end
    x = Scale(first, last if last > first else first + 1, 0, frame.width)
    y = Scale(low, high, frame.height, 0, chart.log)
    keys = [line.name or f"line {k}" for k, line in enumerate(chart.lines)]
    points: list[Row] = []
    dots: list[Row] = []
    for key, line in zip(keys, chart.lines, strict=True):
        width = 1.0 if line.faint or line.thin else 2.2
        style = {"line": key, "width": width, "opacity": 0.32 if line.faint else 1.0}
        marks = [{"x": place, "y": value, **style} for place, value in thin(line.points)]
        points += marks
        dots += marks if len(marks) == 1 else []
    shown = [key for key, line in zip(keys, chart.lines, strict=True) if line.name]
    at = {"legendX": 10 - LEFT, "legendY": _head(chart.unit) + 8 - top, "columns": columns}
    at |= {"orient": "none", "symbolType": "stroke"}  # lines, where all that is drawn are dots too
    borders, stages = _stages(chart, x, frame)
    marks, labels = _marks(chart, x, y, frame)
    return _svg(
        "lines",
        chart.title,
        chart.unit,
        frame,
        texts=[*stages, *labels, *_ends(chart, x, y)],
        rules={"stages": borders, "marks": marks},
        strips=_strips(chart, x, frame),
        points=points,
        dots=dots,
        keys=keys,
        colours=[_colour(line.tone) for line in chart.lines],
        dashes=[DASHES.get(line.tone, SOLID) for line in chart.lines],
        legend={"values": shown, **at} if shown else None,
        interpolate="step-after" if chart.steps else "linear",
        x=_axis("x", chart.x_title, COUNT, x, tickCount=4, tickMinStep=1, grid=False),
        y=_axis("y", chart.y_title, chart.y_labels, y),
    )


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


def scatter(
    spots: Sequence[Spot],
    title: str,
    unit: str,
    x_axis: tuple[str, str],
    y_axis: tuple[str, str],
    *,
    log: bool = False,
    zero: bool = False,
) -> str:
    """Returns named points with error bars as an ``<svg>`` element. An axis is its title and the
    expression for its ticks; ``zero``: the x axis begins at 0.
    """
    frame = Frame(940, 430, 76, 52, 24, 46)
    reaches = [_reach(spot, log=log) for spot in spots]
    x = Scale(*span([s.x for s in spots], zero=zero), 0, frame.width)
    y = Scale(*span([v for r in reaches for v in r], log=log), frame.height, 0, log)
    names, leads = _names([(s.name, x(s.x), y(s.y), _colour(s.tone)) for s in spots], frame)
    points = [{**vars(spot), "color": _colour(spot.tone)} for spot in spots]
    errors = [
        {**point, "low": max(low, y.low), "y": high}
        for point, (low, high) in zip(points, reaches, strict=True)
        if point["error"]
    ]
    axes = {"x": _axis("x", *x_axis, x, tickCount=6), "y": _axis("y", *y_axis, y)}
    more = {"points": points, "errors": errors, **axes}
    return _svg("scatter", title, unit, frame, texts=names, rules={"leads": leads}, **more)


def bars(title: str, unit: str, rows: Sequence[Bar]) -> str:
    """Returns horizontal bars, one below the other, as an ``<svg>`` element."""
    top, pitch = _head(unit) + 10, 42
    frame = Frame(WIDTH, top + pitch * len(rows) + 4, 1, top, 1, 0)
    x = Scale(0, max(row.full or row.value for row in rows) or 1.0, 0, frame.width)
    boxes: list[Row] = []
    texts: list[Row] = []
    for k, row in enumerate(rows):
        colour = _colour(row.tone or "grid")
        texts.append(_text(0, pitch * k + 12, row.name, _colour(row.tone or "ink"), weight=600))
        texts.append(_text(frame.width, pitch * k + 12, row.said, "var(--soft)", align="right"))
        box = {"x": 0, "y": pitch * k + 18, "y2": pitch * k + 32, "told": f"{row.name}: {row.said}"}
        outlined = row.value if row.tone is None else row.full
        if outlined:
            edge = {"fill": "var(--grid)", "stroke": "var(--soft)"}
            boxes.append({**box, **edge, "x2": x(outlined)})
        if row.tone:
            length = max(1.5, x(row.value))
            boxes.append({**box, "fill": colour, "stroke": "none", "x2": length})
    return _svg("bars", title, unit, frame, texts=texts, boxes=boxes)


def layers(title: str, unit: str, before: Sequence[int], after: Sequence[int], tone: str) -> str:
    """Returns one column for each layer as an ``<svg>``: before as an outline, after filled."""
    frame = Frame(WIDTH, HEIGHT, LEFT, _head(unit) + LINE, 12, BOTTOM)
    columns = [
        {
            "layer": k,
            "before": had,
            "after": has,
            "told": f"layer {k}: {has:,} of {had:,} "
            f"({readable.percent(has / had if had else 1)} kept)",
        }
        for k, (had, has) in enumerate(zip(before, after, strict=True))
    ]
    y = Scale(0, max(*before, 1), frame.height, 0)
    return _svg(
        "columns",
        title,
        unit,
        frame,
        columns=columns,
        ticks=[*range(0, len(columns), -(-len(columns) // 8))],
        colour=_colour(tone),
        y=_axis("before", "", COUNT, y, tickMinStep=1, tickCount=4),
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
    """Returns at most ``most`` points: first, last, the lowest and highest of each stretch."""
    if len(points) <= most:
        return list(points)
    kept: list[Point] = []
    number = (most - 2) // 2
    for i in range(number):
        chunk = points[i * len(points) // number : (i + 1) * len(points) // number]
        kept += sorted({min(chunk, key=lambda p: p[1]), max(chunk, key=lambda p: p[1])})
    return [points[0], *(p for p in kept if p not in (points[0], points[-1])), points[-1]]


def smooth(points: Sequence[Point], fraction: float = 0.04) -> list[Point]:
    """Returns the centred running mean over ``fraction`` of the points."""
    half = max(1, round(len(points) * fraction / 2))
    sums = [0.0, *accumulate(y for _, y in points)]
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


def _stages(chart: Chart, x: Scale, frame: Frame) -> tuple[list[Row], list[Row]]:
    """A border where each stage begins, and its name behind it, lower where two are close."""
    borders: list[Row] = []
    texts: list[Row] = []
    free, low = 0.0, False
    for name, begin in chart.stages:
        place, low = x(begin), x(begin) < free and not low
        y = -5 if low else -17
        free = place + LETTER * len(name) + 10
        if begin > x.low:
            borders.append(_rule(place, y - 9, place, frame.height, opacity=0.75))
        texts.append(_text(place + 4, y, name, "var(--soft)", style="italic"))
    return borders, texts


def _marks(chart: Chart, x: Scale, y: Scale, frame: Frame) -> tuple[list[Row], list[Row]]:
    """Short lines at the marks, a dashed one at the goal, and their labels."""
    floor = frame.height
    places = sorted({round(x(mark)) for mark in chart.marks})  # no closer than pixels
    rules = [_rule(p, floor - 9, p, floor, opacity=0.5, width=0.8) for p in places]
    labels = [_text(frame.width + 8, floor - 1, chart.marks_label, "var(--soft)")]
    if chart.goal is not None:
        label, value = chart.goal
        rules.append(_rule(0, y(value), frame.width, y(value), dash=DASHES["goal"]))
        labels.append(_text(6, y(value) - 6, label, "var(--soft)"))
    return rules, labels


def _ends(chart: Chart, x: Scale, y: Scale) -> list[Row]:
    """The label of each line beside its end, pushed apart where two ends are close."""
    named = [line for line in chart.lines if line.told and line.label]
    named.sort(key=lambda line: y(line.points[-1][1]))
    room = y.start - LINE * len(named) + (0 if chart.marks else LINE)
    found, previous = [], -math.inf
    for k, line in enumerate(named):
        place, value = line.points[-1]
        previous = max(min(y(value) + 4, room + LINE * k), previous + LINE)
        found.append(_text(x(place) + 8, previous, line.label, _colour(line.tone), weight=600))
    return found


def _strips(chart: Chart, x: Scale, frame: Frame) -> list[Row]:
    """Invisible strips whose tooltips show the values of all lines at one place."""
    told = [line for line in chart.lines if line.told]
    longest = max(told, key=lambda line: len(line.points)).points
    places = [place for place, _ in longest[:: -(-len(longest) // STRIPS)]]
    half = max(4.0, frame.width / len(places)) / 2
    strips = []
    for place in places:
        words = []
        for line in told:
            # The value of a line is that of its last point up to here.
            if index := bisect_right(line.points, place, key=lambda p: p[0]):
                value = chart.tell(line.points[index - 1][1])
                words.append(f"{line.label or 'value'}: {value}")
        text = "\n".join([f"{readable.count(place)} {chart.x_title}", *words])
        strips.append({**_rule(x(place) - half, 0, x(place) + half, frame.height), "told": text})
    return strips


def _reach(spot: Spot, *, log: bool) -> tuple[float, float]:
    """Both ends of the error bar."""
    error = spot.error or 0.0
    # An error bar on a logarithmic axis may reach below zero.
    return max(spot.y - error, spot.y / 2) if log else spot.y - error, spot.y + error


Box = tuple[float, float, float, float]
"""Left, top, right, bottom."""


def _names(
    points: Sequence[tuple[str, float, float, str]], frame: Frame
) -> tuple[list[Row], list[Row]]:
    """The name of each (name, x, y, colour) beside its point, moved up or down where it would cover
    another, and thin lines from moved names to their points. Vega's own label transform drops names
    that have no room.
    """
    taken: list[Box] = [(x - 6.5, y - 6.5, x + 6.5, y + 6.5) for _, x, y, _ in points]
    texts, leads = [], []
    for name, x, y, colour in sorted(points, key=lambda p: p[2]):
        wide = LETTER * len(name)
        boxes = list(_places(x, y, wide, frame))
        free = (
            b
            for b in boxes
            if not any(b[0] < c[2] and c[0] < b[2] and b[1] < c[3] and c[1] < b[3] for c in taken)
        )
        box = next(free, boxes[0])
        taken.append(box)
        right = box[0] > x
        place, top = box[0] + 1 if right else box[2] - 1, box[3] - 3
        align = "left" if right else "right"
        texts.append(_text(place, top, name, colour, align=align, weight=600))
        if abs(top - 4 - y) > 1:
            near = place - 3 if right else place + 3
            leads.append(_rule(x, y, near, top - 4, width=0.7, opacity=0.7))
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


# Vega-Lite


def _colour(tone: str) -> str:
    return f"var(--{TONES.get(tone, tone)})"


def _rule(x: float, y: float, x2: float, y2: float, **style: Any) -> Row:
    """A line, or a box, between two corners in pixels."""
    return {"x": x, "y": y, "x2": x2, "y2": y2, "dash": SOLID, "opacity": 1, "width": 1, **style}


def _text(x: float, y: float, text: str, colour: str, **style: Any) -> Row:
    """Text that begins (or ends, by ``align``) at (x, baseline) in pixels."""
    plain = {"align": "left", "weight": 400, "size": 12, "style": "normal"}
    return {"x": x, "y": y, "text": text, "color": colour, **plain, **style}


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


def _head(unit: str) -> int:
    """Height of the title, and of the unit below it."""
    return 34 if unit else 18


def _drawable(value: Any) -> Any:
    """Returns JSON values with only ``printable`` text in them."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, list):
        return [_drawable(one) for one in value]
    if isinstance(value, dict):
        return {key: _drawable(one) for key, one in value.items()}
    return value


def _svg(
    kind: str,
    title: str,
    unit: str,
    frame: Frame,
    *,
    texts: Sequence[Row] = (),
    rules: Mapping[str, Sequence[Row]] | None = None,
    strips: Sequence[Row] = (),
    **data: Any,
) -> str:
    """Draws the specification ``<kind>.json.jinja``, filled in with ``data``."""
    import vl_convert  # it brings a JavaScript engine: only when something is drawn

    heading = [
        _text(-frame.left, 15 - frame.top, title, "var(--ink)", size=15, weight=650),
        _text(-frame.left, 31 - frame.top, unit, "var(--soft)"),
    ]
    spec = render(
        f"{kind}.json.jinja",
        frame=frame,
        texts=[*heading, *texts],
        rules=rules or {},
        strips=[*strips],
        **data,
    )
    # A character that XML forbids (a control character in the name of a folder) would abort the
    # process: that library panics.
    spec = json.dumps(_drawable(json.loads(spec)))
    inner = vl_convert.vegalite_to_svg(spec, allowed_base_urls=[]).split(">", 1)[1]
    # Vega writes descriptions of marks as labels; browsers show <title> as a tooltip.
    inner = re.sub(r'<(\w+) aria-label="([^"]*)"([^>]*)/>', r"<\1\3><title>\2</title></\1>", inner)
    inner = re.sub(r' (?:role|aria-[a-z]+|pointer-events)="[^"]*"', "", inner)
    inner = re.sub(r"(\d+\.\d\d)\d+", r"\1", inner)  # hundredths of a pixel
    label = escape(", ".join(filter(None, (title, unit))))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="pic" '
        f'viewBox="0 0 {frame.whole_width:g} {frame.whole_height:g}" '
        f'role="img" aria-label="{label}">{inner}'
    )

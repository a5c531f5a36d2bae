"""Points with names and error bars as an SVG, made from nothing but the numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape

from effcompress.report.axes import Scale, log_ticks, span, ticks
from effcompress.report.chart import Labels, frame, head, text

WIDTH, HEIGHT = 940, 430
LEFT, TOP, RIGHT, BOTTOM = 76, 40, 24, 46
LETTER, LINE = 6.7, 14.0
"""Width of a letter, height of a line of text."""
FINE = 4
"""Steps in which a name is moved by the height of a line."""
DOT = 4.5
SHAPES = ("circle", "square", "diamond", "triangle")


@dataclass(frozen=True)
class Spot:
    """One point. ``tone`` is a colour class, ``shape`` one of ``SHAPES``; ``error`` reaches as far
    up as down; ``told`` is shown when it is pointed at.
    """

    name: str
    x: float
    y: float
    tone: str
    told: str
    shape: str = "circle"
    error: float | None = None


@dataclass(frozen=True)
class Scatter:
    """Points over two axes. ``zero``: the axis begins at 0."""

    title: str
    unit: str
    spots: Sequence[Spot]
    x_title: str
    y_title: str
    x_labels: Labels
    y_labels: Labels
    log: bool = False
    zero: bool = False


Box = tuple[float, float, float, float]
"""Left, top, right, bottom."""
Place = tuple[float, float]


def draw(scatter: Scatter) -> str:
    """The points as an ``<svg>`` element."""
    low, high = span([v for s in scatter.spots for v in _reach(s, scatter.log)], log=scatter.log)
    start, stop = span([s.x for s in scatter.spots], zero=scatter.zero)
    x = Scale(start, stop, LEFT, WIDTH - RIGHT)
    y = Scale(low, high, HEIGHT - BOTTOM, TOP, scatter.log)
    inner = [
        head(scatter.title, scatter.unit),
        *_grid(scatter, x, y),
        *(_bar(s, x, y, scatter.log) for s in scatter.spots if s.error),
        *_names(scatter.spots, x, y),
        *(_spot(s, x(s.x), y(s.y)) for s in scatter.spots),
    ]
    return frame("".join(inner), WIDTH, HEIGHT, f"{scatter.title}, {scatter.unit}")


def _reach(spot: Spot, log: bool) -> Iterator[float]:
    """The values that the axis must show for a point."""
    error = spot.error or 0.0
    yield spot.y + error
    # An error bar on a logarithmic axis may reach below zero.
    yield max(spot.y - error, spot.y / 2) if log else spot.y - error


def _grid(scatter: Scatter, x: Scale, y: Scale) -> Iterator[str]:
    floor, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    levels = log_ticks(y.low, y.high) if scatter.log else ticks(y.low, y.high)
    for value, label in zip(levels, scatter.y_labels(levels), strict=True):
        yield f'<path class="grid" d="M{LEFT} {y(value):.1f}H{right}"/>'
        yield text(LEFT - 7, y(value) + 4, label, "tick", "end")
    places = ticks(x.low, x.high, 6)
    for value, label in zip(places, scatter.x_labels(places), strict=True):
        yield f'<path class="axis" d="M{x(value):.1f} {floor}v4"/>'
        yield text(x(value), floor + 17, label, "tick", "middle")
    yield f'<path class="axis" d="M{LEFT} {floor}H{right}"/>'
    yield text((LEFT + right) / 2, HEIGHT - 6, scatter.x_title, "unit", "middle")
    yield (
        f'<text transform="translate(4 {(TOP + floor) / 2:.1f}) rotate(-90)" class="unit" '
        f'text-anchor="middle">{escape(scatter.y_title)}</text>'
    )


def _bar(spot: Spot, x: Scale, y: Scale, log: bool) -> str:
    """The error bar, with a short stroke at either end."""
    at = x(spot.x)
    top, low = (y(value) for value in _reach(spot, log))
    return (
        f'<path class="error {spot.tone}" d="M{at:.1f} {top:.1f}V{low:.1f}'
        f'M{at - 4:.1f} {top:.1f}h8M{at - 4:.1f} {low:.1f}h8"/>'
    )


def _spot(spot: Spot, x: float, y: float) -> str:
    r = DOT
    shapes: dict[str, Callable[[], str]] = {
        "circle": lambda: f'<circle class="dot {spot.tone}" cx="{x:.1f}" cy="{y:.1f}" r="{r}"/>',
        "square": lambda: _shape(spot.tone, f"M{x - r:.1f} {y - r:.1f}h{2 * r}v{2 * r}h{-2 * r}z"),
        "diamond": lambda: _shape(
            spot.tone,
            f"M{x:.1f} {y - r - 1.5:.1f}l{r + 1.5} {r + 1.5}l{-r - 1.5} {r + 1.5}"
            f"l{-r - 1.5} {-r - 1.5}z",
        ),
        "triangle": lambda: _shape(
            spot.tone, f"M{x:.1f} {y - r - 1:.1f}l{r + 1} {2 * r + 1}h{-2 * r - 2}z"
        ),
    }
    return f"<g>{shapes[spot.shape]()}<title>{escape(spot.told)}</title></g>"


def _shape(tone: str, path: str) -> str:
    return f'<path class="shape {tone}" d="{path}"/>'


def _names(spots: Sequence[Spot], x: Scale, y: Scale) -> Iterator[str]:
    """The name of each point beside it, moved up or down (with a thin line to the point) where it
    would lie on another.
    """
    taken = [_around(x(s.x), y(s.y)) for s in spots]
    for spot in sorted(spots, key=lambda s: y(s.y)):
        at = (x(spot.x), y(spot.y))
        place, anchor, box = _free(len(spot.name) * LETTER, at, taken)
        taken.append(box)
        left, top = place
        if abs(top - 4 - at[1]) > 1:
            near = left - 3 if anchor == "start" else left + 3
            yield f'<path class="lead" d="M{at[0]:.1f} {at[1]:.1f}L{near:.1f} {top - 4:.1f}"/>'
        yield text(left, top, spot.name, f"name {spot.tone}", anchor)


def _around(x: float, y: float) -> Box:
    return (x - DOT - 2, y - DOT - 2, x + DOT + 2, y + DOT + 2)


def _free(wide: float, at: tuple[float, float], taken: Sequence[Box]) -> tuple[Place, str, Box]:
    """The first place for a name that covers nothing: right of the point, left of it, then farther
    and farther up and down. Where all are taken, the first.
    """
    x, y = at
    found: list[tuple[Place, str, Box]] = []
    for step in range(25 * FINE):
        for rise in dict.fromkeys((-step, step)):
            away = 10 if not step else 22
            top = y + 4 + rise * LINE / FINE
            for anchor, left in (("start", x + away), ("end", x - away)):
                first = left if anchor == "start" else left - wide
                box = (first - 1, top - LINE + 3, first + wide + 1, top + 3)
                inside = box[0] > LEFT and box[2] < WIDTH and box[1] > TOP - 14
                if inside and box[3] < HEIGHT - BOTTOM:
                    found.append(((left, top), anchor, box))
                    if not any(_overlap(box, other) for other in taken):
                        return found[-1]
    box = _around(x, y)
    return found[0] if found else ((x + 10, y + 4), "start", box)


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]

"""The pictures of a comparison."""

import statistics

from effcompress.record import readable
from effcompress.report import charts
from effcompress.report.charts import SHAPES, Bar, Chart, Line, Point, Spot, draw, smooth
from effcompress.report.comparison import columns
from effcompress.report.comparison.columns import QUALITY, Column
from effcompress.report.comparison.dots import FAR, edge
from effcompress.report.comparison.rows import Comparison, Row

TONES = ("after", "attention", "hidden", "spare", "spare2")
"""Colours of methods, in turn."""
LINES = 12
"""Lines that one chart can name beside their ends."""
ABOVE = 1.12
"""How far above the others, as a factor, those beyond the scale are drawn."""
SAME = 0.01
"""Relative difference below which a cost counts as the same for all methods."""


def pictures(comparison: Comparison) -> dict[str, str]:
    """Returns name -> ``<svg>``, in reading order; only those that there are numbers for."""
    sizes, flops = len(comparison.sizes) > 1, _vary(comparison, "flops")
    drawn = {
        "parameters": _quality_over(comparison, "params", charts.COUNT) if sizes else "",
        "operations": _quality_over(comparison, "flops", charts.POWER, zero=True) if flops else "",
        "loss": _loss(comparison),
        "prune_seconds": _bars(comparison, "prune_seconds"),
        "prune_memory": _bars(comparison, "prune_memory"),
    }
    return {name: svg for name, svg in drawn.items() if svg}


def look(comparison: Comparison, row: Row) -> tuple[str, str]:
    """Returns tone and shape of a row, the same in all pictures."""
    if row.size is None:
        return "dense", SHAPES[0]
    number = [r.label for r in comparison.rows if r.size is not None].index(row.label)
    return TONES[number % len(TONES)], SHAPES[number // len(TONES) % len(SHAPES)]


def _column(comparison: Comparison, key: str) -> Column:
    return next(c for c in comparison.columns if c.key == key)


def _vary(comparison: Comparison, key: str) -> bool:
    """Whether methods differ in a column by more than ``SAME``."""
    means = [r.values[key].mean for r in comparison.rows if r.size is not None and key in r.values]
    return bool(means) and max(means) - min(means) > SAME * max(means)


def _quality_over(comparison: Comparison, key: str, labels: str, *, zero: bool = False) -> str:
    """Perplexity over another column; empty where that column is zero for all. What is far beyond
    the best is drawn at the upper edge, with its value.
    """
    over, quality = _column(comparison, key), _column(comparison, QUALITY)
    rows = [r for r in comparison.rows if key in r.values and QUALITY in r.values]
    methods = [row for row in rows if row.size is not None]
    top = edge(methods) if methods else 0.0
    # Of several dense models only the usual one, and only where methods come near it.
    dense = next((r for r in rows if r.size is None and r.values[QUALITY].mean <= top), None)
    rows = [*([dense] if dense else []), *methods]
    inside = [m for r in rows if (m := r.values[QUALITY].mean) <= top]
    spots: list[Spot] = []
    for row in rows:
        tone, shape = look(comparison, row)
        x, y = row.values[key], row.values[QUALITY]
        told = f"{row.label}\n{over.title} {over.cell(x)}\nperplexity {quality.cell(y)}"
        if y.mean > top:
            name = f"{row.label} \u2191 {quality.write(y.mean)}"
            spots.append(Spot(name, x.mean, max(inside) * ABOVE, tone, told, shape))
        else:
            error = y.deviation and min(y.deviation, max(inside) * ABOVE - y.mean)
            spots.append(Spot(row.label, x.mean, y.mean, tone, told, shape, error))
    if len(spots) < 2 or not any(s.x for s in spots):
        return ""
    log = max(inside) / min(inside) > FAR
    bars = "; bars: standard deviation over the seeds" if any(s.error for s in spots) else ""
    beyond = "; \u2191: beyond the scale" if len(inside) < len(spots) else ""
    title, unit = f"Perplexity over {over.title}", f"lower is better{bars}{beyond}"
    x_axis = (over.title, labels)
    y_title = "perplexity (logarithmic)" if log else "perplexity"
    y_axis = (y_title, charts.POWER if max(inside) >= columns.HUGE else charts.PLAIN)
    return charts.scatter(spots, title, unit, x_axis, y_axis, log=log, zero=zero)


def _loss(comparison: Comparison) -> str:
    """Training loss over tokens: one line per method, the mean of its seeds."""
    lines: list[Line] = []
    for row in comparison.rows:
        course = _mean_course(row)
        if row.size is not None and len(course) > 1:
            tone, shape = look(comparison, row)
            lines.append(Line(row.label, smooth(course), tone, thin=shape != SHAPES[0]))
    if not lines:
        return ""
    title = "Training loss" + (f" of the best {LINES}" if len(lines) > LINES else "")
    axis = ("nats per token", charts.PLAIN, readable.decimal)
    return draw(Chart(title, lines[:LINES], *axis, unit="smoothed, mean of the seeds"))


def _mean_course(row: Row) -> list[Point]:
    """Point by point where all seeds have the same tokens; else the first seed's."""
    courses = [facts.losses for facts in row.done if facts.losses]
    if not courses:
        return []
    places = [tokens for tokens, _ in courses[0]]
    alike = [c for c in courses if [tokens for tokens, _ in c] == places]
    means = (
        statistics.fmean(losses) for losses in zip(*([y for _, y in c] for c in alike), strict=True)
    )
    return [(float(tokens), loss) for tokens, loss in zip(places, means, strict=True)]


def _bars(comparison: Comparison, key: str) -> str:
    column = _column(comparison, key)
    bars = [
        Bar(row.label, (mean := row.values[key].mean), column.write(mean), look(comparison, row)[0])
        for row in comparison.rows
        if key in row.values
    ]
    if not any(bar.value for bar in bars):
        return ""
    unit = "the sum of all events" if key == "prune_seconds" else "peak"
    return charts.bars(column.title[0].upper() + column.title[1:], unit, bars)

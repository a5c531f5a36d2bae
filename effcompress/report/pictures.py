"""Which pictures a record gives, and what is in them."""

from __future__ import annotations

import re
from collections.abc import Iterator

from effcompress.kinds import KINDS, of
from effcompress.report import bars, numbers
from effcompress.report.axes import Point, smooth
from effcompress.report.chart import Chart, Line, draw
from effcompress.report.gather import Record
from effcompress.report.style import PICTURE

AIR = 14
"""Room around a picture that stands alone."""
USUAL = ("attention", "ffn", "hidden")
"""Kinds with a colour of their own; shown even when they were left alone."""


def pictures(record: Record) -> dict[str, str]:
    """Name -> ``<svg>``, in reading order; only those the record has numbers for."""
    drawn = {
        "parameters": _parameters(record),
        "perplexity": _perplexity(record),
        "removed": _removed(record),
        "saliency": _saliency(record),
        "loss": _loss(record),
        "left": _left(record),
        **dict(_shapes(record)),
        "speed": _speed(record),
        "learning_rate": _learning_rate(record),
    }
    return {name: svg for name, svg in drawn.items() if svg}


def alone(svg: str) -> str:
    """A picture as a file of its own: with its style inside, and a ground to stand on."""
    opening, rest = svg.split(">", 1)
    width, height = (float(n) for n in re.findall(r'viewBox="0 0 (\S+) (\S+)"', opening)[0])
    box = f'viewBox="{-AIR} {-AIR} {width + 2 * AIR:g} {height + 2 * AIR:g}"'
    opening = re.sub(r'viewBox="[^"]*"', box, opening)
    ground = f'<rect class="ground" x="{-AIR}" y="{-AIR}" width="100%" height="100%"/>'
    return f"{opening}><style>{PICTURE}</style>{ground}{rest}\n"


def tone(kind: str, others: tuple[str, ...] = ()) -> str:
    """Colour class of a kind; the less usual ones share two."""
    if kind in USUAL:
        return kind
    return ("spare", "spare2")[others.index(kind) % 2 if kind in others else 0]


def kinds(record: Record) -> list[str]:
    """Kinds of mini-groups in the record, the usual ones first; of the others, those that lost
    something.
    """
    widths = record.started_widths
    found = {k for k in (n.split(".")[0] for n in widths) if k in USUAL}
    found |= {name.split(".")[0] for cut in record.cuts for name in cut.share_removed}
    order = [*KINDS, *sorted(found - KINDS.keys())]
    return sorted(found, key=order.index)


def _over(record: Record) -> tuple[str, dict[int, float]]:
    """The axis that cuts are drawn over, and the place of each: tokens, or the running number where
    no training lies between them.
    """
    if record.tokens and len({cut.tokens for cut in record.cuts}) > 1:
        return "tokens", {i: cut.tokens for i, cut in enumerate(record.cuts)}
    return "removals", {i: i + 1.0 for i in range(len(record.cuts))}


def _parameters(record: Record) -> str:
    start = record.params_before
    if start is None or record.params_after is None:
        return ""
    title = "tokens" if record.tokens else "removals"
    course = [(0.0, float(start))]
    if record.tokens:
        course += sorted(
            [(float(c.tokens), float(c.params)) for c in record.cuts]
            + [(float(s.tokens), float(s.params)) for s in record.steps],
            key=lambda point: (point[0], -point[1]),
        )
    else:
        course += [(i + 1.0, float(cut.params)) for i, cut in enumerate(record.cuts)]
    target = (f"target {numbers.count(record.target)}", record.target) if record.target else None
    line = Line(numbers.count(record.params_after), course, "after", steps=True)
    return draw(
        Chart(
            "Parameters",
            f"over {title}",
            [line],
            title,
            numbers.counts,
            lambda value: f"{value:,.0f}",
            goal=target,
        )
    )


def _by_kind(record: Record, field: str, *, start: bool) -> tuple[str, list[Line]]:
    """A line for each kind out of the mappings that cuts carry."""
    title, places = _over(record)
    present = kinds(record)
    lines: list[Line] = []
    for kind in present:
        points: list[Point] = [(0.0, 0.0)] if start else []
        for i, cut in enumerate(record.cuts):
            value = getattr(cut, field).get(kind)
            if value is not None and (start or value > 0):
                points.append((places[i], float(value)))
        if start and record.tokens and title == "tokens":
            points.append((float(record.tokens), points[-1][1]))
        if points:
            others = tuple(k for k in present if k not in USUAL)
            lines.append(Line(of(kind).short, points, tone(kind, others), steps=start))
    return title, lines


def _removed(record: Record) -> str:
    if not record.cuts:
        return ""
    title, lines = _by_kind(record, "share_removed", start=True)
    told = numbers.percent
    return draw(
        Chart("Removed", "share of each kind", lines, title, numbers.percents, told, zero=True)
    )


def _saliency(record: Record) -> str:
    title, lines = _by_kind(record, "saliency", start=False)
    if not lines:
        return ""
    unit = "lowest of each kind, per parameter it frees; logarithmic"
    end = float(record.tokens) if title == "tokens" else None
    labels, told = numbers.powers, numbers.power
    return draw(Chart("Saliency", unit, lines, title, labels, told, log=True, x_end=end))


def _loss(record: Record) -> str:
    if not record.steps:
        return ""
    raw = [(float(s.tokens), s.loss) for s in record.steps]
    lines = [Line("", raw, "loss", faint=True, told=False), Line("smoothed", smooth(raw), "loss")]
    if len(raw) < 3:
        lines = [Line("", raw, "loss")]
    places = [float(cut.tokens) for cut in record.cuts]
    return draw(
        Chart(
            "Training loss",
            "nats per token",
            lines,
            "tokens",
            numbers.plain,
            numbers.decimal,
            marks=places,
            marks_label="cuts" if places else "",
        )
    )


def _speed(record: Record) -> str:
    rates = [(float(s.tokens), s.tokens_per_second) for s in record.steps]
    if not rates:
        return ""
    lines = [Line("", rates, "speed", faint=True, told=False), Line("", smooth(rates), "speed")]
    told = numbers.count
    return draw(
        Chart(
            "Training speed", "tokens per second", lines, "tokens", numbers.counts, told, zero=True
        )
    )


def _learning_rate(record: Record) -> str:
    if not record.steps:
        return ""
    line = Line("", [(float(s.tokens), s.learning_rate) for s in record.steps], "rate")
    labels, told = numbers.rates, numbers.small
    return draw(Chart("Learning rate", "", [line], "tokens", labels, told, zero=True))


def _perplexity(record: Record) -> str:
    first = record.before or record.after
    if first is None:
        return ""
    values: dict[str, bars.Pair] = {}
    for name, score in first.domains.items():
        later = record.after.domains.get(name) if record.after and record.before else None
        values[name] = (score.perplexity, later.perplexity if later else None)
    return bars.pairs("Perplexity", "per token, lower is better", values) if values else ""


def _shapes(record: Record) -> Iterator[tuple[str, str]]:
    for kind in kinds(record):
        names = [n for n in record.started_widths if n.startswith(f"{kind}.")]
        if not names:
            continue
        names.sort(key=lambda name: int(name.rsplit(".", 1)[1]))
        before = [record.started_widths[name] for name in names]
        after = [record.widths.get(name, had) for name, had in zip(names, before, strict=True)]
        title = of(kind).title
        short, _, detail = title.partition(" (")
        unit = "per layer" + (f", {detail.rstrip(')')}" if detail else "")
        yield f"shape_{kind}", bars.layers(short, unit, before, after, tone(kind))


def _left(record: Record) -> str:
    rows: list[tuple[str, int, int, str]] = []
    for kind in kinds(record):
        names = [n for n in record.started_widths if n.split(".")[0] == kind]
        had = sum(record.started_widths[n] for n in names)
        has = sum(record.widths.get(n, record.started_widths[n]) for n in names)
        if names:
            rows.append((of(kind).title, had, has, tone(kind)))
    if record.params_before and record.params_after:
        rows.append(("Parameters", record.params_before, record.params_after, "after"))
    return bars.left("What is left", "outline: before, filled: after", rows) if rows else ""

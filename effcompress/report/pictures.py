"""Which pictures a record gives, and what is in them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from effcompress.record import readable
from effcompress.record.events import Sparsify
from effcompress.record.kind_labels import KINDS, of
from effcompress.report import charts
from effcompress.report.charts import Bar, Chart, Line, Point, draw, smooth, table
from effcompress.report.gather import Record
from effcompress.report.speed import expected
from effcompress.types import axis_kind, axis_layer

TOKENS = "tokens trained on"
USUAL = ("attention", "ffn", "hidden")
"""Kinds with a colour of their own; shown even when they were not cut."""


@dataclass(frozen=True)
class Picture:
    """``svg`` is an element for a page, ``table`` the points of its lines as CSV, if it has any."""

    svg: str
    table: str = ""


def pictures(record: Record) -> dict[str, Picture]:
    """Returns name -> picture, in reading order; only those that the record has numbers for. A run
    that zeroes weights and cuts nothing has no pictures of shapes.
    """
    made = record.sparsified
    shaped = made is None or bool(record.cuts)
    drawn: dict[str, Chart | str | None] = {
        "parameters": _parameters(record) if shaped else None,
        "zeros": _zeros(made) if made else None,
        "perplexity": _perplexity(record),
        "removed": _removed(record),
        "saliency": _saliency(record),
        "loss": _loss(record),
        "left": _left(record) if shaped else None,
        **(dict(_shapes(record)) if shaped else {}),
        "speed": _speed(record),
        "learning_rate": _learning_rate(record),
    }
    return {
        name: Picture(draw(it), table(it)) if isinstance(it, Chart) else Picture(it)
        for name, it in drawn.items()
        if it
    }


def tone(kind: str, others: tuple[str, ...] = ()) -> str:
    """Returns the tone of a kind; all but the usual three take turns with two tones."""
    if kind in USUAL:
        return kind
    return ("spare", "spare2")[others.index(kind) % 2 if kind in others else 0]


def kinds(record: Record) -> list[str]:
    """Returns the kinds of axes in the record, the usual ones first; of the others, those that were
    cut.
    """
    widths = record.started_widths
    found = {k for k in map(axis_kind, widths) if k in USUAL}
    found |= {axis_kind(name) for cut in record.cuts for name in cut.share_removed}
    order = [*KINDS, *sorted(found - KINDS.keys())]
    return sorted(found, key=order.index)


def _over(record: Record) -> tuple[str, dict[int, float]]:
    """Returns the title of the axis that cuts are drawn over, and the place of each cut on it:
    tokens, or the number of the cut where no step of training is between them.
    """
    places = {cut.tokens for cut in record.cuts}
    alone = len(record.cuts) == 1 and places != {0}
    if record.tokens and (len(places) > 1 or alone):
        return TOKENS, {i: cut.tokens for i, cut in enumerate(record.cuts)}
    return "removals", {i: i + 1.0 for i in range(len(record.cuts))}


def _stages(record: Record, title: str = TOKENS) -> list[tuple[str, float]]:
    """Where the stages begin, on an axis over tokens."""
    return [(s.name, float(s.tokens)) for s in record.stages] if title == TOKENS else []


def _parameters(record: Record) -> Chart | None:
    start = record.params_before
    if start is None or record.params_after is None:
        return None
    title = TOKENS if record.tokens else "removals"
    course = [(0.0, float(start))]
    if record.tokens:
        course += sorted(
            [(float(c.tokens), float(c.params)) for c in record.cuts]
            + [(float(s.tokens), float(s.params)) for s in record.steps],
            key=lambda point: (point[0], -point[1]),
        )
    else:
        course += [(i + 1.0, float(cut.params)) for i, cut in enumerate(record.cuts)]
    target = (f"target {readable.count(record.target)}", record.target) if record.target else None
    line = Line(readable.count(record.params_after), course, "after")
    return Chart(
        "Parameters",
        "of the model as a function",
        [line],
        title,
        "parameters",
        charts.COUNT,
        lambda value: f"{value:,.0f}",
        steps=True,
        stages=_stages(record, title),
        goal=target,
    )


def _zeros(made: Sparsify) -> str | None:
    """Weights of each layer that are not zero."""
    if not made.layers:
        return None
    had = [0] * (1 + max(row.layer for row in made.layers))
    has = [*had]
    for row in made.layers:
        had[row.layer], has[row.layer] = row.weights, row.weights - row.zeroed
    return charts.layers("Weights that are not zero", "per layer, linear layers", had, has, "after")


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
        if start and record.tokens and title == TOKENS:
            points.append((float(record.tokens), points[-1][1]))
        if points:
            others = tuple(k for k in present if k not in USUAL)
            words = of(kind)
            lines.append(Line(words.short, points, tone(kind, others), words.plural))
    return title, lines


def _removed(record: Record) -> Chart | None:
    if not record.cuts:
        return None
    title, lines = _by_kind(record, "share_removed", start=True)
    return Chart(
        "Pruning ratio",
        "fraction of each kind that is gone",
        lines,
        title,
        "fraction removed",
        charts.PERCENT,
        readable.percent,
        zero=True,
        steps=True,
        stages=_stages(record, title),
    )


def _saliency(record: Record) -> Chart | None:
    title, lines = _by_kind(record, "saliency", start=False)
    if not lines:
        return None
    return Chart(
        "Saliency",
        "lowest of each kind at every cut; logarithmic",
        lines,
        title,
        "saliency per freed parameter",
        charts.POWER,
        readable.power,
        log=True,
        stages=_stages(record, title),
        x_end=float(record.tokens) if title == TOKENS else None,
    )


def _smoothed(raw: list[Point], tone: str) -> list[Line]:
    return [Line("", raw, tone, faint=True, told=False), Line("smoothed", smooth(raw), tone)]


def _loss(record: Record) -> Chart | None:
    if not record.steps:
        return None
    raw = [(float(s.tokens), s.loss) for s in record.steps]
    lines = _smoothed(raw, "loss") if len(raw) >= 3 else [Line("", raw, "loss")]
    places = [float(cut.tokens) for cut in record.cuts]
    return Chart(
        "Training loss",
        "",
        lines,
        TOKENS,
        "nats per token",
        charts.PLAIN,
        readable.decimal,
        marks=places,
        marks_label="cuts" if places else "",
        stages=_stages(record),
    )


def _speed(record: Record) -> Chart | None:
    rates = [(float(s.tokens), s.tokens_per_second) for s in record.steps]
    if not rates:
        return None
    lines = _smoothed(rates, "speed")
    if predicted := expected(record):
        lines.append(Line("by FLOPs", predicted, "goal"))
    return Chart(
        "Training speed",
        "",
        lines,
        TOKENS,
        "tokens per second",
        charts.COUNT,
        readable.count,
        zero=True,
    )


def _learning_rate(record: Record) -> Chart | None:
    if not record.steps:
        return None
    line = Line("", [(float(s.tokens), s.learning_rate) for s in record.steps], "rate")
    return Chart(
        "Learning rate",
        "",
        [line],
        TOKENS,
        "learning rate",
        charts.POWER,
        readable.small,
        zero=True,
        stages=_stages(record),
    )


def _perplexity(record: Record) -> str:
    rows: list[Bar] = []
    first = record.before or record.after
    for name, score in first.domains.items() if first else ():
        said = readable.decimal(score.perplexity)
        if record.before is None:
            rows.append(Bar(f"{name}, after", score.perplexity, said, "after"))
            continue
        rows.append(Bar(f"{name}, before", score.perplexity, said, None))
        later = record.after.domains.get(name) if record.after else None
        if later is None:
            rows.append(Bar(f"{name}, after", 0.0, "not measured", "after"))
            continue
        ratio = later.perplexity / score.perplexity if score.perplexity else 1.0
        said = f"{readable.decimal(later.perplexity)}  {readable.percent(ratio - 1, sign=True)}"
        rows.append(Bar(f"{name}, after", later.perplexity, said, "after"))
    return charts.bars("Perplexity", "per token, lower is better", rows) if rows else ""


def _shapes(record: Record) -> Iterator[tuple[str, str]]:
    for kind in kinds(record):
        names = [n for n in record.started_widths if n.startswith(f"{kind}.")]
        if not names:
            continue
        names.sort(key=lambda name: axis_layer(name) or 0)
        before = [record.started_widths[name] for name in names]
        after = [record.widths.get(name, had) for name, had in zip(names, before, strict=True)]
        title = of(kind).title
        short, _, detail = title.partition(" (")
        unit = "per layer" + (f", {detail.rstrip(')')}" if detail else "")
        yield f"shape_{kind}", charts.layers(short, unit, before, after, tone(kind))


def _left(record: Record) -> str:
    rows: list[Bar] = []
    for kind in kinds(record):
        names = [n for n in record.started_widths if axis_kind(n) == kind]
        had = sum(record.started_widths[n] for n in names)
        has = sum(record.widths.get(n, record.started_widths[n]) for n in names)
        if names:
            rows.append(_of(of(kind).title, had, has, tone(kind)))
    if record.params_before and record.params_after:
        rows.append(_of("Parameters", record.params_before, record.params_after, "after"))
    return charts.bars("What is left", "outline: before, filled: after", rows) if rows else ""


def _of(name: str, before: int, after: int, tone: str) -> Bar:
    fraction = after / before if before else 1.0
    said = f"{after:,} of {before:,}  ({readable.percent(fraction)})"
    return Bar(name, fraction, said, tone, full=1.0)

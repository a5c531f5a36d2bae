"""Which pictures a record gives, and what is in them."""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from effcompress.record import readable
from effcompress.record.events import Sparsify
from effcompress.record.kind_labels import KINDS, of
from effcompress.report import charts, words
from effcompress.report.charts import COUNT, PERCENT, PLAIN, POWER, TOKENS, Chart, Line, Point
from effcompress.report.gather import Record
from effcompress.report.speed import expected
from effcompress.types import Widths, axis_kind, axis_layer

USUAL = ("attention", "ffn", "hidden")
"""Kinds with a colour of their own; shown even when they were not cut."""
DOMAIN_TONES = ("ffn", "attention", "hidden", "spare", "spare2", "dense", "bad", "goal")
"""Of the domains of a mixture, in their order."""


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
        "energy": _energy(record),
        "perplexity": _perplexity(record),
        "sizes": _sizes(record),
        "removed": _removed(record),
        "saliency": _saliency(record),
        "gates": _gates(record, "expected"),
        "multipliers": _gates(record, "linear"),
        "undecided": _gates(record, "undecided"),
        "loss": _loss(record),
        "mixture": _mixture(record),
        "heldout": _heldout(record),
        "left": _left(record) if shaped else None,
        **(dict(_shapes(record)) if shaped else {}),
        "speed": _speed(record),
        "learning_rate": _learning_rate(record),
    }
    return {
        name: Picture(charts.draw(it), charts.table(it)) if isinstance(it, Chart) else Picture(it)
        for name, it in drawn.items()
        if it
    }


def tone(kind: str, others: tuple[str, ...] = ()) -> str:
    """Returns the tone of a kind; all but the usual three take turns with two tones."""
    if kind in USUAL:
        return kind
    return ("spare", "spare2")[others.index(kind) % 2 if kind in others else 0]


def kinds(record: Record) -> list[str]:
    """Returns the kinds in the record: the usual ones first, then others that were cut."""
    widths = record.started_widths
    found = {k for k in map(axis_kind, widths) if k in USUAL}
    found |= {axis_kind(name) for cut in record.cuts for name in cut.share_removed}
    order = [*KINDS, *sorted(found - KINDS.keys())]
    return sorted(found, key=order.index)


def _axis(record: Record, title: str = TOKENS) -> dict[str, Any]:
    """The axis that a chart is drawn over; one of tokens shows where the stages begin."""
    stages = [(s.name, float(s.tokens)) for s in record.stages] if title == TOKENS else []
    return {"x_title": title, "stages": stages}


def _course(record: Record, field: str) -> list[Point]:
    """A value of every step, over tokens."""
    return [(float(step.tokens), getattr(step, field)) for step in record.steps]


def _parameters(record: Record) -> Chart | None:
    start = record.params_before
    if start is None or record.params_after is None:
        return None
    title = TOKENS if record.tokens else "removals"
    course = [(0.0, float(start))]
    if (sliced := record.rotated) is not None:
        course += [(0.0 if record.tokens else 1.0, float(sliced.params))]
    if record.tokens:
        seen = [(float(e.tokens), float(e.params)) for e in (*record.cuts, *record.steps)]
        course += sorted(seen, key=lambda point: (point[0], -point[1]))
    else:
        course += [(i + 1.0, float(cut.params)) for i, cut in enumerate(record.cuts)]
    line = Line(readable.count(record.params_after), course, "after")
    return Chart(
        "Parameters",
        [line],
        "parameters",
        COUNT,
        "{:,.0f}".format,
        unit="of the model as a function",
        steps=True,
        goal=(f"target {readable.count(record.target)}", record.target) if record.target else None,
        **_axis(record, title),
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


def _energy(record: Record) -> Chart | None:
    """What the slices leave out of the stream, over the layers."""
    if (made := record.rotated) is None or not made.places:
        return None
    lines: list[Line] = []
    for block, kind in (("attention", "attention"), ("feed-forward", "ffn")):
        points = [(float(p.layer), 1.0 - p.energy) for p in made.places if p.block == block]
        lines += [Line(block, points, kind, f"in front of {block}")] if points else []
    return Chart(
        "Energy that is sliced off",
        lines,
        "fraction of the mean square",
        PERCENT,
        "{:.3%}".format,
        unit=f"of the residual stream, {made.channels} {words.ARROW} {made.width} channels",
        x_title="layer",
        zero=True,
    )


def _by_kind(record: Record, field: str, *, start: bool) -> tuple[str, list[Line]]:
    """A line for each kind out of the mappings that cuts carry, over tokens, or over the number of
    the cut where no step of training is between them; the title of that axis comes first.
    """
    title, places = "removals", [i + 1.0 for i in range(len(record.cuts))]
    apart = {cut.tokens for cut in record.cuts}
    if record.tokens and (len(apart) > 1 or (len(record.cuts) == 1 and apart != {0})):
        title, places = TOKENS, [float(cut.tokens) for cut in record.cuts]
    present = kinds(record)
    lines: list[Line] = []
    for kind in present:
        points: list[Point] = [(0.0, 0.0)] if start else []
        for place, cut in zip(places, record.cuts, strict=True):
            value = getattr(cut, field).get(kind)
            if value is not None and (start or value > 0):
                points.append((place, float(value)))
        if start and record.tokens and title == TOKENS:
            points.append((float(record.tokens), points[-1][1]))
        if points:
            others = tuple(k for k in present if k not in USUAL)
            lines.append(Line(of(kind).short, points, tone(kind, others), of(kind).plural))
    return title, lines


def _removed(record: Record) -> Chart | None:
    if not record.cuts:
        return None
    title, lines = _by_kind(record, "share_removed", start=True)
    return Chart(
        "Pruning ratio",
        lines,
        "fraction removed",
        PERCENT,
        readable.percent,
        unit="fraction of each kind that is gone",
        zero=True,
        steps=True,
        **_axis(record, title),
    )


def _saliency(record: Record) -> Chart | None:
    title, lines = _by_kind(record, "saliency", start=False)
    if not lines:
        return None
    return Chart(
        "Saliency",
        lines,
        "saliency per freed parameter",
        POWER,
        readable.power,
        unit="lowest of each kind at every cut; logarithmic",
        log=True,
        x_end=float(record.tokens) if title == TOKENS else None,
        **_axis(record, title),
    )


_OF_GATES: dict[str, tuple[str, str, str, str, Any]] = {
    "expected": (
        *("Learned gates", "expected sparsity", "fraction shut of each kind; dashed: its target"),
        *(PERCENT, readable.percent),
    ),
    "linear": (
        *("Multipliers", "multiplier", "linear; below 0 rewards sparsity"),
        *(PLAIN, readable.decimal),
    ),
    "undecided": (
        *("Undecided gates", "fraction of gates", "open with a probability from .05 to .95"),
        *(PERCENT, readable.percent),
    ),
}
"""Field of a family -> title, title of the axis, what is drawn, and how its values are written."""


def _gates(record: Record, field: str) -> Chart | None:
    """A value of every family of gates, over tokens."""
    if not record.gates:
        return None
    title, axis, unit, ticks, tell = _OF_GATES[field]
    names = list(record.gates[0].families)
    others, lines = tuple(name for name in names if name not in USUAL), list[Line]()
    for name in names:
        seen = [(float(e.tokens), e.families[name]) for e in record.gates if name in e.families]
        said = of(name)
        points = [(at, float(getattr(family, field))) for at, family in seen]
        lines.append(Line(said.short, points, tone(name, others), said.plural))
        if field == "expected":
            asked = [(at, family.target) for at, family in seen]
            lines.append(Line("", asked, "goal", told=False, thin=True))
    zero = field != "linear"
    return Chart(title, lines, axis, ticks, tell, unit=unit, zero=zero, **_axis(record))


def _smoothed(raw: list[Point], tone: str) -> list[Line]:
    return [Line("", raw, tone, faint=True, told=False), Line("smoothed", charts.smooth(raw), tone)]


def _loss(record: Record) -> Chart | None:
    if not record.steps:
        return None
    raw = _course(record, "loss")
    lines = _smoothed(raw, "loss") if len(raw) >= 3 else [Line("", raw, "loss")]
    places = [float(cut.tokens) for cut in record.cuts]
    marks = {"marks": places, "marks_label": "cuts" if places else "", **_axis(record)}
    return Chart("Training loss", lines, "nats per token", PLAIN, readable.decimal, **marks)


def _domains(record: Record) -> dict[str, tuple[str, str]]:
    """Domain -> tone and a label that is not too long, where the mixture changes."""
    names = record.mixtures[0].weights if record.mixtures else ()
    tones = itertools.cycle(DOMAIN_TONES)
    return {name: (next(tones), _short(name)) for name in names}


def _short(name: str) -> str:
    return name if len(name) < 24 else f"{name[:22]}…"


def _mixture(record: Record) -> Chart | None:
    lines: list[Line] = []
    for name, (tone, label) in _domains(record).items():
        course = [(float(event.tokens), event.weights[name]) for event in record.mixtures]
        course.append((float(record.tokens), course[-1][1]))
        lines.append(Line(label, course, tone))
    if not lines:
        return None
    axes = ("fraction of the samples", PERCENT, readable.percent)
    said: Any = {"unit": "as held-out losses change it", "zero": True, "steps": True}
    return Chart("Mixture", lines, *axes, **said, **_axis(record))


def _heldout(record: Record) -> Chart | None:
    lines: list[Line] = []
    for name, (tone, label) in _domains(record).items():
        course = [(float(e.tokens), e.losses[name]) for e in record.mixtures if name in e.losses]
        if course:
            level = record.mixtures[-1].reference[name]
            goal = [(0.0, level), (float(record.tokens), level)]
            lines.append(Line(f"{name}, reference", goal, tone, faint=True, told=False))
            lines.append(Line(label, course, tone))
    if not lines:
        return None
    axes = ("nats per token", PLAIN, readable.decimal)
    said: Any = {"unit": "by domain; faint: what it is compared with"}
    return Chart("Held-out loss", lines, *axes, **said, **_axis(record))


def _speed(record: Record) -> Chart | None:
    rates = _course(record, "tokens_per_second")
    if not rates:
        return None
    lines = _smoothed(rates, "speed")
    if predicted := expected(record):
        lines.append(Line("by FLOPs", predicted, "goal"))
    return Chart("Training speed", lines, "tokens per second", COUNT, readable.count, zero=True)


def _learning_rate(record: Record) -> Chart | None:
    if not record.steps:
        return None
    line = Line("", _course(record, "learning_rate"), "rate")
    axes = ("learning rate", POWER, readable.small)
    return Chart("Learning rate", [line], *axes, zero=True, **_axis(record))


def _perplexity(record: Record) -> str:
    rows: list[charts.Bar] = []
    for name, before, after in words.both(record):
        rows.append(charts.Bar(f"{name}, before", before, readable.decimal(before), None))
        said = "not measured"
        if after is not None:
            change = readable.percent(after / before - 1 if before else 0.0, sign=True)
            said = f"{readable.decimal(after)}  {change}"
        rows.append(charts.Bar(f"{name}, after", after or 0.0, said, "after"))
    for name, score in record.after.domains.items() if record.after and not record.before else ():
        said = readable.decimal(score.perplexity)
        rows.append(charts.Bar(f"{name}, after", score.perplexity, said, "after"))
    return charts.bars("Perplexity", "per token, lower is better", rows) if rows else ""


def _sizes(record: Record) -> Chart | None:
    """Perplexity of each domain over parameters: dense, every size that was passed, final."""
    if not record.sizes:
        return None
    tones, lines = itertools.cycle(DOMAIN_TONES), list[Line]()
    every = words.at_sizes(record)
    for name in dict.fromkeys(domain for _, _, scores in every for domain in scores):
        points = [(float(n), scores[name]) for _, n, scores in every if name in scores]
        lines.append(Line(_short(name), sorted(points), next(tones)))
    return Chart(
        "Quality over size",
        lines,
        "perplexity",
        PLAIN,
        readable.decimal,
        unit="by domain, per token; one run: dense, every size of export.at, final",
        x_title="parameters",
        x_start=0.98 * min(params for _, params, _ in every),
    )


def _shapes(record: Record) -> Iterator[tuple[str, str]]:
    return shape_pictures(kinds(record), record.started_widths, record.widths)


def shape_pictures(kinds: Iterable[str], had: Widths, has: Widths) -> Iterator[tuple[str, str]]:
    """Yields name and picture of every kind that layers have: its units before and after."""
    for kind in kinds:
        names = [n for n in had if n.startswith(f"{kind}.")]
        if not names:
            continue
        names.sort(key=lambda name: axis_layer(name) or 0)
        before = [had[name] for name in names]
        after = [has.get(name, width) for name, width in zip(names, before, strict=True)]
        short, _, detail = of(kind).title.partition(" (")
        unit = "per layer" + (f", {detail.rstrip(')')}" if detail else "")
        yield f"shape_{kind}", charts.layers(short, unit, before, after, tone(kind))


def _left(record: Record) -> str:
    params = record.params_before or 0, record.params_after or 0
    return left_picture(kinds(record), record.started_widths, record.widths, params)


def left_picture(kinds: Iterable[str], had: Widths, has: Widths, params: tuple[int, int]) -> str:
    """Returns a bar for every kind, and one for the parameters: what is left of what there was."""
    left: list[tuple[str, int, int, str]] = []
    for kind in kinds:
        names = [n for n in had if axis_kind(n) == kind]
        before = sum(had[n] for n in names)
        after = sum(has.get(n, had[n]) for n in names)
        left += [(of(kind).title, before, after, tone(kind))] if names else []
    if all(params):
        left.append(("Parameters", *params, "after"))
    rows: list[charts.Bar] = []
    for name, before, after, colour in left:
        fraction = after / before if before else 1.0
        said = f"{after:,} of {before:,}  ({readable.percent(fraction)})"
        rows.append(charts.Bar(name, fraction, said, colour, full=1.0))
    return charts.bars("What is left", "outline: before, filled: after", rows) if rows else ""

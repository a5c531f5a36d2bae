"""Bars: perplexity of each domain, width of each layer, what is left of each kind, one value
of each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from effcompress.report import numbers
from effcompress.report.axes import Scale, ticks
from effcompress.report.chart import BOTTOM, HEIGHT, LEFT, TOP, WIDTH, frame, head, text

Pair = tuple[float, float | None]
"""Before and, if it was measured, after."""


def pairs(title: str, unit: str, values: Mapping[str, Pair]) -> str:
    """Two bars for each name, before (outline) and after (filled), with their numbers."""
    top = max(v for pair in values.values() for v in pair if v is not None)
    side = 12 + 7.2 * max(len(name) for name in values)
    x = Scale(0, top, side, WIDTH - 96)
    inner = [head(title, unit)]
    for i, (name, (before, after)) in enumerate(values.items()):
        y = TOP + 6 + i * 62
        inner.append(text(side - 12, y + 27, name, "name", "end"))
        inner.append(_lying(x, y, before, numbers.decimal(before), "outline"))
        if after is None:
            inner.append(text(side + 4, y + 38, "not measured", "tick"))
            continue
        change = numbers.percent(after / before - 1, sign=True) if before else ""
        inner.append(_lying(x, y + 23, after, numbers.decimal(after), "fill after", change))
    y = TOP + 10 + len(values) * 62
    inner.append(
        f'<rect class="outline" x="{side}" y="{y}" width="12" height="12" rx="2"/>'
        f'<rect class="fill after" x="{side + 76}" y="{y}" width="12" height="12" rx="2"/>'
    )
    inner += [text(side + 18, y + 10, "before", "tick"), text(side + 94, y + 10, "after", "tick")]
    return frame("".join(inner), WIDTH, max(HEIGHT, y + 22), f"{title}, {unit}")


def layers(title: str, unit: str, before: Sequence[int], after: Sequence[int], tone: str) -> str:
    """One column for each layer: what it had as an outline, what it has filled."""
    floor, right = HEIGHT - BOTTOM, WIDTH - 12
    y = Scale(0, max(*before, 1), floor, TOP)
    levels = [v for v in ticks(0, max(*before, 1), 4) if v == int(v)]
    inner = [head(title, unit)]
    for value, label in zip(levels, numbers.counts(levels), strict=True):
        inner.append(f'<path class="grid" d="M{LEFT} {y(value):.1f}H{right}"/>')
        inner.append(text(LEFT - 7, y(value) + 4, label, "tick", "end"))
    pitch = (right - LEFT) / len(before)
    width = min(40.0, pitch * 0.74)
    every = max(1, -(-len(before) // 8))
    for i, (had, has) in enumerate(zip(before, after, strict=True)):
        x = LEFT + pitch * i + (pitch - width) / 2
        inner.append(
            f"<g>{_column(x, width, y(had), floor, 'outline')}"
            f"{_column(x, width, y(has), floor, f'fill {tone}')}"
            f"<title>layer {i}: {has:,} of {had:,} "
            f"({numbers.percent(has / had if had else 1)} kept)</title></g>"
        )
        if i % every == 0:
            inner.append(text(x + width / 2, floor + 17, str(i), "tick", "middle"))
    inner.append(f'<path class="axis" d="M{LEFT} {floor}H{right}"/>')
    inner.append(text((LEFT + right) / 2, HEIGHT - 6, "layer", "unit", "middle"))
    return frame("".join(inner), WIDTH, HEIGHT, f"{title}, {unit}")


def left(title: str, unit: str, rows: Sequence[tuple[str, int, int, str]]) -> str:
    """What is left of each (name, before, after, tone), as shares of bars of equal length."""
    x = Scale(0, 1, 0, WIDTH - 2)
    inner = [head(title, unit)]
    for i, (name, before, after, tone) in enumerate(rows):
        y = TOP + 4 + i * 54
        share = after / before if before else 1.0
        numbers_of = f"{after:,} of {before:,}"
        inner.append(text(0, y + 12, name, f"name {tone}"))
        inner.append(
            text(WIDTH - 2, y + 12, f"{numbers_of}  ({numbers.percent(share)})", "tick", "end")
        )
        inner.append(
            f'<rect class="outline" x="1" y="{y + 20}" width="{x(1):.1f}" height="16" rx="3"/>'
            f'<rect class="fill {tone}" x="1" y="{y + 20}" width="{x(share):.1f}" height="16" '
            f'rx="3"><title>{escape(name)}: {numbers_of}</title></rect>'
        )
    height = max(HEIGHT, TOP + 4 + len(rows) * 54)
    return frame("".join(inner), WIDTH, height, f"{title}, {unit}")


def lying(title: str, unit: str, values: Sequence[tuple[str, float, str, str]]) -> str:
    """One bar for each (name, value, value in words, tone), below each other."""
    side = 12 + 6.9 * max(len(name) for name, *_ in values)
    room = 14 + 6.6 * max(len(said) for _, _, said, _ in values)
    x = Scale(0, max(value for _, value, *_ in values) or 1.0, side, WIDTH - room)
    inner = [head(title, unit)]
    for i, (name, value, said, tone) in enumerate(values):
        y = TOP + i * 25
        inner.append(text(side - 10, y + 14, name, f"name {tone}", "end"))
        inner.append(_lying(x, y, value, said, f"fill {tone}"))
    return frame("".join(inner), WIDTH, TOP + 25 * len(values) + 6, f"{title}, {unit}")


def _lying(x: Scale, y: float, value: float, label: str, tone: str, change: str = "") -> str:
    width = max(1.5, x(value) - x.start)
    more = f'<tspan dx="6" class="strong">{escape(change)}</tspan>' if change else ""
    return (
        f'<rect class="{tone}" x="{x.start:.1f}" y="{y}" width="{width:.1f}" height="19" rx="3"/>'
        f'<text x="{x.start + width + 7:.1f}" y="{y + 14}" class="tick">'
        f"{escape(label)}{more}</text>"
    )


def _column(x: float, width: float, top: float, floor: float, tone: str) -> str:
    height = max(0.0, floor - top)
    return (
        f'<rect class="{tone}" x="{x:.1f}" y="{top:.1f}" width="{width:.1f}" '
        f'height="{height:.1f}" rx="1.5"/>'
    )

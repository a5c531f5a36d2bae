"""The main picture of a comparison: a row for every method, its seeds as dots on one scale."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median_low

from effcompress.record import readable
from effcompress.report.charts import Scale, span
from effcompress.report.comparison.columns import QUALITY, Column
from effcompress.report.comparison.rows import Comparison, Row

BROKEN = 4.0
"""A perplexity this many times that of the best method is marked at the edge, unless more than half
of the methods are as bad.
"""
FAR = 2.5
"""Values this many times apart are drawn on a logarithmic axis."""
TICKS = 5
EDGE = 97
"""Percent of the length at which a scale ends that has something beyond it."""


@dataclass(frozen=True)
class Place:
    """A point of the scale: ``at`` percent of its length, with words."""

    at: float
    told: str


@dataclass(frozen=True)
class Strip:
    """One method: its seeds, their mean, and ``over``, the values that lie beyond the edge."""

    row: Row
    heading: str
    said: str
    told: str
    seeds: tuple[Place, ...]
    mean: float | None
    over: str


@dataclass(frozen=True)
class Dots:
    """The picture. ``dense`` is None where the dense model was not measured."""

    strips: tuple[Strip, ...]
    ticks: tuple[Place, ...]
    dense: Place | None
    log: bool
    over: bool
    means: bool
    hollow: bool


def dots(comparison: Comparison) -> Dots | None:
    """Returns the picture of perplexity, methods in the order of the table; None without values."""
    column = next(c for c in comparison.columns if c.key == QUALITY)
    shown = [row for row in comparison.rows if row.size is not None and QUALITY in row.values]
    if not shown:
        return None
    dense = next((r for r in comparison.rows if r.size is None and QUALITY in r.values), None)
    level = dense and dense.values[QUALITY].mean
    top = edge(shown)
    seeds = {row.label: _seeds(row, column) for row in shown}
    within = [v for some in seeds.values() for _, v in some if v <= top]
    low, high = min(within), max(within)
    if level is not None and low / BROKEN <= level <= top:
        low, high = min(low, level), max(high, level)
    log = high / low > FAR
    marked = any(value > top for some in seeds.values() for _, value in some)
    ends = _span(low, high) if log else span([low, high])
    scale = Scale(*ends, 0, EDGE if marked else 100, log)
    strips: list[Strip] = []
    before: int | None = None
    for row in shown:
        several = len(comparison.sizes) > 1 and row.size is not None and row.size != before
        heading = comparison.sizes[row.size].words if several and row.size is not None else ""
        before = row.size
        strips.append(_strip(row, heading, column, seeds[row.label], scale, top))
    place = None
    if level is not None and scale.low <= level <= scale.high:
        place = Place(_at(scale, level), f"dense model {column.write(level)}")
    ticks = tuple(Place(_at(scale, v), readable.number(v)) for v in _ticks(scale))
    means = any(strip.mean is not None for strip in strips)
    hollow = any(row.unfair for row in shown)
    return Dots(tuple(strips), ticks, place, log, marked, means, hollow)


def edge(rows: Sequence[Row]) -> float:
    """Returns the value beyond which a perplexity no longer shapes the scale: ``BROKEN`` times the
    best of a size, or its median where more than half of its methods are worse than that. Of
    several sizes the largest such value; a method that is alone at its size has no say.
    """
    by_size: dict[int | None, list[float]] = {}
    for row in rows:
        by_size.setdefault(row.size, []).append(row.values[QUALITY].mean)
    several = [means for means in by_size.values() if len(means) > 1]
    every = [mean for means in by_size.values() for mean in means]
    return max(max(BROKEN * min(means), median_low(means)) for means in several or [every])


def _seeds(row: Row, column: Column) -> list[tuple[int, float]]:
    values = ((facts.seed, column.of(facts)) for facts in row.done)
    return [(seed, value) for seed, value in values if value is not None]


def _strip(
    row: Row,
    heading: str,
    column: Column,
    seeds: Sequence[tuple[int, float]],
    scale: Scale,
    top: float,
) -> Strip:
    mean = row.values[QUALITY].mean
    inside = [(seed, value) for seed, value in seeds if value <= top]
    beyond = [f"seed {seed}: {column.write(value)}" for seed, value in seeds if value > top]
    said = column.cell(row.values[QUALITY])
    each = ", ".join(f"{column.write(value)} (seed {seed})" for seed, value in seeds)
    return Strip(
        row,
        heading,
        said,
        f"{row.label}: perplexity {said}" + (f"; {each}" if len(seeds) > 1 else ""),
        tuple(
            Place(_at(scale, value), f"{row.label}, seed {seed}: {column.write(value)}")
            for seed, value in inside
        ),
        _at(scale, mean) if len(inside) > 1 and mean <= scale.high else None,
        f"{row.label}, beyond the scale: {', '.join(beyond)}" if beyond else "",
    )


def _at(scale: Scale, value: float) -> float:
    return round(scale(value), 2)


def _span(low: float, high: float) -> tuple[float, float]:
    """A little air on a logarithmic scale."""
    air = (high / low) ** 0.06
    return low / air, high * air


def _ticks(scale: Scale) -> list[float]:
    """Returns at most ``TICKS`` round values: multiples of one step, on a logarithmic scale powers
    of ten with 2, 3 and 5 times them as far as there is room.
    """
    first, last = (math.floor(math.log10(v)) for v in (scale.low, scale.high))
    if not scale.log:
        wide = scale.high - scale.low
        power = 10.0 ** math.floor(math.log10(wide / TICKS))
        step = next(m * power for m in (1, 2, 2.5, 5, 10, 20) if wide / (m * power) <= TICKS)
        start = math.ceil(scale.low / step)
        return [k * step for k in range(start, math.floor(scale.high / step) + 1)]
    found: list[float] = []
    for leads in ((1, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
        found = [
            lead * 10.0**power
            for power in range(first, last + 1)
            for lead in leads
            if scale.low <= lead * 10.0**power <= scale.high
        ]
        if len(found) <= TICKS + 1:
            return found
    return found[:: -(-len(found) // TICKS)]

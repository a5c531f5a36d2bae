"""What may still be cut without missing the target: arithmetic on widths, no tensors.

A *line* is a queue of candidates: the sets of one kind in lockstep, or one set on its own. Taking
from a line removes one mini-group from each of its sets. The lines of a *pool* (scope ``global``)
share the count of what must stay and of what is gone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import final

from effcompress.types import AxisMap, GroupSet, Widths

TOLERANCE = 0.005
"""A target is met within half a percent (design: ask for a size, get that size)."""


@dataclass(frozen=True)
class Line:
    """Sets that lose their next mini-group together."""

    kind: str
    sets: tuple[str, ...]
    size: int
    minimum: int
    round_to: int = 1
    pool: str = ""
    floor: int = 0
    """Units that stay in the pool."""


def lines_of(sets: Iterable[GroupSet]) -> list[Line]:
    """One line per lockstep kind, one per set otherwise, in the order of the sets."""
    lines: dict[str, Line] = {}
    for s in sets:
        key = s.kind if s.scope == "lockstep" else s.name
        names: tuple[str, ...] = (s.name,)
        if key in lines:  # the narrowest first: it decides what may still go
            before = lines[key].sets
            names = (*before, s.name) if s.size >= lines[key].size else (s.name, *before)
        size = min(s.size, lines[key].size) if key in lines else s.size
        pool = s.kind if s.scope == "global" else ""
        lines[key] = Line(s.kind, names, size, s.minimum, s.round_to, pool, s.floor)
    return list(lines.values())


@final
class Budget:
    """Parameters now, the target, and for each line what its next removal frees."""

    def __init__(self, axes: AxisMap, lines: list[Line], widths: Widths, target: int) -> None:
        self.axes, self.lines, self.target = axes, lines, target
        self.widths = {**axes.widths, **widths}
        self.params = axes.count(self.widths)
        self._prices = [_price(axes, line) for line in lines]
        self._freed: dict[int, int] = {}
        pools = {line.pool for line in lines if line.pool}
        self._pools = {p: [k for k, line in enumerate(lines) if line.pool == p] for p in pools}

    def block(self, k: int) -> int:
        """Units that go at once from every set of line ``k``: one, or as many as lead to the next
        multiple of its ``round_to``.
        """
        line = self.lines[k]
        return self.widths[line.sets[0]] % line.round_to or line.round_to

    def freed(self, k: int) -> int:
        """Parameters that the next removal from line ``k`` frees."""
        if k not in self._freed:
            widths = self.widths
            self._freed[k] = self.block(k) * sum(
                factor * math.prod(widths[name] for name in names)
                for names, factor in self._prices[k].items()
            )
        return self._freed[k]

    def removed(self, k: int) -> float:
        """Share of the units of line ``k`` that are gone; in a pool, of the pool's."""
        line = self.lines[k]
        if not line.pool:
            return self.share(k)
        sizes = sum(self.lines[j].size for j in self._pools[line.pool])
        return 1.0 - self.left(line.pool) / sizes

    def share(self, k: int) -> float:
        """Share of the units of line ``k`` alone that are gone."""
        line = self.lines[k]
        return 1.0 - self.widths[line.sets[0]] / line.size

    def left(self, pool: str) -> int:
        """Units of a pool that are there and do something."""
        lines = [k for k in self._pools[pool] if self.freed(k) > 0]
        return sum(self.widths[self.lines[k].sets[0]] for k in lines)

    def open(self) -> list[int]:
        """Lines whose next removal comes nearer to the target without missing it."""
        return [k for k in range(len(self.lines)) if self._allowed(k)]

    def take(self, k: int) -> None:
        """Remove the next block from every set of line ``k``."""
        block = self.block(k)
        self.params -= self.freed(k)
        self._freed.pop(k)
        for name in self.lines[k].sets:
            self.widths[name] -= block
        gone = set(self.lines[k].sets)
        for other, price in enumerate(self._prices):
            if any(not gone.isdisjoint(names) for names in price):
                self._freed.pop(other, None)

    def movable(self, k: int) -> bool:
        """Whether line ``k`` has a mini-group to give, whatever the target."""
        line = self.lines[k]
        return self.freed(k) > 0 and self.widths[line.sets[0]] - self.block(k) >= line.minimum

    @property
    def reached(self) -> bool:
        """Whether the size is within the tolerance of the target."""
        return abs(self.params - self.target) <= TOLERANCE * self.target

    def _allowed(self, k: int) -> bool:
        if not self.movable(k):
            return False
        line, block, freed = self.lines[k], self.block(k), self.freed(k)
        after = self.params - freed
        nearer = abs(after - self.target) < abs(self.params - self.target)
        if not nearer or after < self.target * (1 - TOLERANCE):
            return False
        if line.floor and self.left(line.pool) - block < line.floor:
            return False
        return line.kind != "layer" or self._floors_hold(line.sets[0])

    def _floors_hold(self, layer: str) -> bool:
        """Whether every pool keeps what it must when this layer takes its blocks along."""
        after = {**self.widths, layer: 0}
        for pool, lines in self._pools.items():
            names = [self.lines[k].sets[0] for k in lines if pool != "layer"]
            left = sum(after[name] for name in names if self.axes.living(name, after))
            if names and left < self.lines[lines[0]].floor:
                return False
        return True


def _price(axes: AxisMap, line: Line) -> dict[tuple[str, ...], int]:
    """What one removal from a line frees, as a polynomial in the widths of the *other* axes:
    ``{names: factor}`` stands for the sum of ``factor * product of widths[names]``.
    """
    terms: dict[tuple[str, ...], int] = {}
    for name in line.sets:
        for param in dict.fromkeys(side.param for side in axes.by_axis[name]):
            for names, factor in axes.terms(param):
                if name in names:
                    others = tuple(n for n in names if n != name)
                    assert len(others) == len(names) - 1, f"{param} is quadratic in {name}"
                    terms[others] = terms.get(others, 0) + factor
    return terms


def least(axes: AxisMap, sets: Iterable[GroupSet]) -> int:
    """Parameters that always remain: every set at its minimum, every pool at its floor (met by what
    costs least).
    """
    sets = list(sets)
    widths = {**axes.widths, **{s.name: s.minimum for s in sets}}
    for s in sets:
        if s.floor and s is next(t for t in sets if t.kind == s.kind):
            pool = [t for t in sets if t.kind == s.kind]
            widths |= _filled(axes, pool, widths)
    return axes.count(widths)


def _filled(axes: AxisMap, pool: list[GroupSet], widths: Mapping[str, int]) -> dict[str, int]:
    """Widths of a pool's sets when ``floor`` units stay in it, the cheapest ones."""

    def price(s: GroupSet) -> int:
        one = {**widths, s.name: widths[s.name] + 1}
        return axes.count(one)

    found = {s.name: s.minimum for s in pool}
    missing = pool[0].floor - sum(found.values())
    for s in sorted(pool, key=price):
        more = max(0, min(s.size - s.minimum, missing))
        found[s.name] += more
        missing -= more
    return found


def simulate(
    budget: Budget,
    groups: int | None = None,
    prefer: Callable[[Budget, int], float] = Budget.removed,
    params: int | None = None,
) -> dict[str, int]:
    """Cut as a run without saliency would: always the line that ``prefer`` ranks lowest (by
    default the one that has lost the smallest share).

    ``groups`` limits how many mini-groups go, ``params`` says at which size to stop before the
    target. Returns kind -> mini-groups removed.
    """
    removed: dict[str, int] = {}
    while groups is None or sum(removed.values()) < groups:
        choices = budget.open()
        if not choices or (params is not None and budget.params <= params):
            break
        k = min(choices, key=lambda k: (prefer(budget, k), budget.share(k)))
        budget.take(k)
        kind = budget.lines[k].kind
        removed[kind] = removed.get(kind, 0) + 1
    return removed

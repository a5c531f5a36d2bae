"""What may still be cut without missing the target: arithmetic on widths, no tensors.

A *line* is a queue of candidates: the sets of one kind in lockstep, or one set on its own. Taking
from a line removes one mini-group from each of its sets.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import final

from effcompress.types import AxisMap, GroupSet, Side, Widths

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


def lines_of(sets: Iterable[GroupSet]) -> list[Line]:
    """One line per lockstep kind, one per set otherwise, in the order of the sets."""
    lines: dict[str, Line] = {}
    for s in sets:
        key = s.kind if s.scope == "lockstep" else s.name
        before = lines[key].sets if key in lines else ()
        lines[key] = Line(s.kind, (*before, s.name), s.size, s.minimum, s.round_to)
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
        """Share of line ``k``'s units that are gone."""
        line = self.lines[k]
        return 1.0 - self.widths[line.sets[0]] / line.size

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

    @property
    def reached(self) -> bool:
        """Whether the size is within the tolerance of the target."""
        return abs(self.params - self.target) <= TOLERANCE * self.target

    def _allowed(self, k: int) -> bool:
        line = self.lines[k]
        if self.widths[line.sets[0]] - self.block(k) < line.minimum:
            return False
        after = self.params - self.freed(k)
        nearer = abs(after - self.target) < abs(self.params - self.target)
        return nearer and after >= self.target * (1 - TOLERANCE)


def _price(axes: AxisMap, line: Line) -> dict[tuple[str, ...], int]:
    """What one removal from a line frees, as a polynomial in the widths of the *other* axes:
    ``{names: factor}`` stands for the sum of ``factor * product of widths[names]``.
    """
    terms: dict[tuple[str, ...], int] = {}
    for name in line.sets:
        for param in dict.fromkeys(side.param for side in axes.by_axis[name]):
            by_dim: dict[int, list[Side]] = {}
            for side in axes.by_param[param]:
                by_dim.setdefault(side.dim, []).append(side)
            own = [dim for dim, sides in by_dim.items() if name in {s.name for s in sides}]
            assert len(own) == 1, f"{param} carries {name} on {len(own)} dimensions"
            block = sum(side.block for side in by_dim.pop(own[0]) if side.name == name)
            # A dimension of several segments is a sum of widths: one term for each choice.
            for choice in itertools.product(*by_dim.values()):
                names = tuple(side.name for side in choice)
                factor = block * math.prod(side.block for side in choice)
                terms[names] = terms.get(names, 0) + factor
    return terms


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
        k = min(choices, key=lambda k: prefer(budget, k))
        budget.take(k)
        kind = budget.lines[k].kind
        removed[kind] = removed.get(kind, 0) + 1
    return removed

"""Widths, parameter counts and what the next unit of a candidate would free, as exact integers.

A parameter count is a polynomial in the widths, linear in each of them. So the parameters that one
unit frees are a polynomial in the *other* widths, and a size can be kept up to date by subtraction
instead of being counted anew: a pool of all layers' channels has tens of thousands of candidates.
Sets of one candidate lose equally many units, so those of equal widths stay equal: their names are
one variable of the polynomials, and widths that no candidate changes are part of the factors.
"""

from __future__ import annotations

import math
from typing import final

from effcompress.errors import CoverageError
from effcompress.selection.candidates import Candidate
from effcompress.types import AxisMap, Widths

Cost = dict[tuple[str, ...], int]
"""``{names: factor}`` stands for the sum of ``factor * product of widths[names]``."""


@final
class Sizes:
    """The widths of a model at one moment. ``copy`` it to try a removal."""

    def __init__(self, axes: AxisMap, candidates: list[Candidate], widths: Widths) -> None:
        self.candidates = candidates
        self.widths = {**axes.widths, **widths}
        self.params = axes.count(self.widths)
        variable = _variables(candidates, self.widths)
        self._costs = [_folded(_cost(axes, c), variable, self.widths) for c in candidates]
        self._unit: dict[int, int] = {}
        self.left: dict[str, int] = {}
        """Pool -> units left in it, as ``Reachability`` counts them; forgotten by a removal."""
        self._touched = [
            [j for j, cost in enumerate(self._costs) if _names(cost) & set(c.sets)]
            for c in candidates
        ]

    def copy(self) -> Sizes:
        """Returns an independent copy; the polynomials are shared."""
        new = Sizes.__new__(Sizes)
        new.candidates, new._costs, new._touched = self.candidates, self._costs, self._touched
        new.widths, new.params, new._unit = dict(self.widths), self.params, dict(self._unit)
        new.left = dict(self.left)
        return new

    def width(self, k: int) -> int:
        """Returns the units left in the narrowest set of candidate ``k``."""
        return self.widths[self.candidates[k].sets[0]]

    def unit(self, k: int) -> int:
        """Returns the parameters that one unit less of every set of candidate ``k`` frees; 0 where
        its layer is gone. Cached: it changes only when another candidate's widths do.
        """
        if k not in self._unit:
            self._unit[k] = sum(
                factor * math.prod(self.widths[name] for name in names)
                for names, factor in self._costs[k].items()
            )
        return self._unit[k]

    def step(self, k: int, multiple: int) -> int:
        """Returns the units from the width of candidate ``k`` down to the next multiple."""
        return self.width(k) % multiple or multiple

    def touched(self, k: int) -> list[int]:
        """Returns the candidates whose units free less when candidate ``k`` loses some."""
        return self._touched[k]

    def take(self, k: int, units: int) -> None:
        """Removes units from every set of candidate ``k``."""
        self.params -= units * self.unit(k)
        self.left.clear()
        for name in self.candidates[k].sets:
            self.widths[name] -= units
        for other in self._touched[k]:
            self._unit.pop(other, None)


def _names(cost: Cost) -> set[str]:
    """Returns every axis whose width the cost depends on."""
    return {name for names in cost for name in names}


def _variables(candidates: list[Candidate], widths: Widths) -> dict[str, str]:
    """Returns axis -> the axis that stands for it: the first equally wide set of its candidate."""
    found: dict[str, str] = {}
    for c in candidates:
        first: dict[int, str] = {}
        for name in c.sets:
            found[name] = first.setdefault(widths[name], name)
    return found


def _folded(cost: Cost, variable: dict[str, str], widths: Widths) -> Cost:
    """Returns the same polynomial in the variables alone."""
    terms: Cost = {}
    for names, factor in cost.items():
        fixed = math.prod(widths[name] for name in names if name not in variable)
        left = tuple(sorted(variable[name] for name in names if name in variable))
        terms[left] = terms.get(left, 0) + factor * fixed
    return terms


def _cost(axes: AxisMap, candidate: Candidate) -> Cost:
    """Returns what one unit frees: the count's derivative by the width, summed over sets."""
    terms: Cost = {}
    for name in candidate.sets:
        for param in dict.fromkeys(side.param for side in axes.by_axis[name]):
            for names, factor in axes.terms(param):
                if name in names:
                    others = tuple(n for n in names if n != name)
                    if len(others) < len(names) - 1:
                        raise CoverageError(
                            f"both sides of this matrix shrink with '{name}', which is not handled",
                            where=param,
                            fix=f"leave '{name.partition('.')[0]}' out of prune.space",
                        )
                    terms[others] = terms.get(others, 0) + factor
    return terms

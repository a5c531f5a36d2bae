"""Widths, the size they give, and what one unit less of a line would free: integers, kept exact."""

from __future__ import annotations

import math
from typing import final

from effcompress.selection.candidates import Candidate
from effcompress.types import AxisMap, Widths

Price = dict[tuple[str, ...], int]


@final
class Sizes:
    """One state of a model whose lines are cut; ``copy`` it to try something."""

    def __init__(self, axes: AxisMap, lines: list[Candidate], widths: Widths) -> None:
        self.candidates = lines
        self.widths = {**axes.widths, **widths}
        self.params = axes.count(self.widths)
        self._prices = [_price(axes, line) for line in lines]
        self._unit: dict[int, int] = {}
        self._touched = [
            [j for j, price in enumerate(self._prices) if _names(price) & set(line.sets)]
            for line in lines
        ]

    def copy(self) -> Sizes:
        """The same state, on its own from now on."""
        new = Sizes.__new__(Sizes)
        new.candidates, new._prices, new._touched = self.candidates, self._prices, self._touched
        new.widths, new.params, new._unit = dict(self.widths), self.params, dict(self._unit)
        return new

    def width(self, k: int) -> int:
        """Units left in the narrowest set of line ``k``."""
        return self.widths[self.candidates[k].sets[0]]

    def unit(self, k: int) -> int:
        """Parameters that one unit less of every set of line ``k`` frees; 0 where its layer is
        gone. Does not depend on the line's own widths.
        """
        if k not in self._unit:
            self._unit[k] = sum(
                factor * math.prod(self.widths[name] for name in names)
                for names, factor in self._prices[k].items()
            )
        return self._unit[k]

    def step(self, k: int, multiple: int) -> int:
        """Units from line ``k`` down to the next multiple."""
        return self.width(k) % multiple or multiple

    def take(self, k: int, units: int) -> None:
        """Remove units from every set of line ``k``."""
        self.params -= units * self.unit(k)
        for name in self.candidates[k].sets:
            self.widths[name] -= units
        for other in self._touched[k]:
            self._unit.pop(other, None)


def _names(price: Price) -> set[str]:
    """Everything whose width the price depends on."""
    return {name for names in price for name in names}


def _price(axes: AxisMap, line: Candidate) -> Price:
    """What one removal from a line frees, as a polynomial in the widths of the *other* axes:
    ``{names: factor}`` stands for the sum of ``factor * product of widths[names]``.
    """
    terms: Price = {}
    for name in line.sets:
        for param in dict.fromkeys(side.param for side in axes.by_axis[name]):
            for names, factor in axes.terms(param):
                if name in names:
                    others = tuple(n for n in names if n != name)
                    assert len(others) == len(names) - 1, f"{param} is quadratic in {name}"
                    terms[others] = terms.get(others, 0) + factor
    return terms

"""Whether any order of removals leads from one size to the target, and what may go next.

Questions about ``Sizes``, asked of copies: nothing here changes what a run has.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, final

from effcompress.selection.candidates import Candidate, beside
from effcompress.selection.sizes import Sizes
from effcompress.types import DEPTH, AxisMap

TOLERANCE = 0.005
"""A target is met within half a percent (design: ask for a size, get that size)."""
NEAR = 4
"""Within so many of the largest blocks from the target, and where no kind leads there by small
blocks, only what can still lead there is begun."""
TRIES = 50_000
"""Blocks looked at to find out; a way that is longer is taken to be there."""


@final
class Reachability:
    """What one line's next block changes, and what can still come of it."""

    def __init__(self, axes: AxisMap, lines: list[Candidate], start: int, target: int) -> None:
        self.axes, self.candidates, self.start, self.target = axes, lines, start, target
        pools = {line.pool for line in lines if line.pool}
        self._pools = {p: [k for k, line in enumerate(lines) if line.pool == p] for p in pools}
        self.pool_sizes = {p: sum(lines[k].size for k in ks) for p, ks in self._pools.items()}
        """Units of a pool before anything went."""
        self._kinds = list(dict.fromkeys(line.kind for line in lines))
        self._beside = beside(lines)
        self._ends: dict[tuple[Any, ...], bool] = {}
        """State -> whether the target can be met from there."""

    def leading(self, fit: list[int], sizes: Sizes) -> list[int]:
        """Those of ``fit`` after whose next block the target can still be met."""
        largest = max((self.frees(k, sizes) for k in fit), default=0)
        near = sizes.params - self.target <= NEAR * largest
        if len(fit) < 2 or (not near and self.bridged(fit, sizes)):
            return fit
        # One line stands for all of its price and kind, a pool has many, where what follows does
        # not depend on the layer; else for those with the same layer around.
        price = {k: (self.frees(k, sizes), self.candidates[k].kind) for k in fit}
        clear = {like: self._clear(k, sizes) for like, k in _first(price).items()}
        rest = {k: self._alike(k, sizes) for k in fit if not clear[price[k]]}
        hopeful = {like: self._hopeful(k, sizes) for like, k in _first(rest).items()}
        return [k for k in fit if clear[price[k]] or hopeful[rest[k]]]

    def stride(self, k: int, sizes: Sizes) -> int:
        """Units of line ``k`` that are promised when the first of them goes."""
        return sizes.step(k, self.candidates[k].multiple)

    def frees(self, k: int, sizes: Sizes) -> int:
        """Parameters of that many."""
        return self.stride(k, sizes) * sizes.unit(k)

    def _after(self, k: int, sizes: Sizes) -> Sizes:
        after = sizes.copy()
        after.take(k, self.stride(k, sizes))
        return after

    def met(self, sizes: Sizes) -> bool:
        """Whether the size is within the tolerance of the target."""
        return abs(sizes.params - self.target) <= TOLERANCE * self.target

    def in_range(self, k: int, sizes: Sizes) -> bool:
        """Whether the kind of line ``k`` may go at this size."""
        gone = 1.0 - sizes.params / self.start
        return self.candidates[k].after <= gone < self.candidates[k].until

    def movable(self, k: int, sizes: Sizes) -> bool:
        """Whether line ``k`` has a block to give, whatever the target."""
        line = self.candidates[k]
        return sizes.unit(k) > 0 and sizes.width(k) - self.stride(k, sizes) >= line.minimum

    def fits(self, k: int, sizes: Sizes) -> bool:
        """Whether the next block of line ``k`` brings the size nearer without missing the target,
        and leaves its pool what must stay.
        """
        if not self.movable(k, sizes):
            return False
        line, after = self.candidates[k], sizes.params - self.frees(k, sizes)
        nearer = abs(after - self.target) < abs(sizes.params - self.target)
        if not nearer or after < self.target * (1 - TOLERANCE):
            return False
        left = self.left(line.pool, sizes) if line.floor else 0
        if line.floor and left - self.stride(k, sizes) < line.floor:
            return False
        return line.kind != "layer" or self._floors_hold(line.sets[0], sizes)

    def left(self, pool: str, sizes: Sizes) -> int:
        """Units of a pool that are there and do something."""
        return sum(sizes.width(k) for k in self._pools[pool] if sizes.unit(k) > 0)

    def _floors_hold(self, layer: str, sizes: Sizes) -> bool:
        """Whether every pool keeps what it must when this layer takes its blocks along."""
        after = {**sizes.widths, layer: 0}
        for pool, lines in self._pools.items():
            names = [self.candidates[k].sets[0] for k in lines if pool != "layer"]
            left = sum(after[name] for name in names if self.axes.living(name, after))
            if names and left < self.candidates[lines[0]].floor:
                return False
        return True

    def _clear(self, k: int, sizes: Sizes) -> bool:
        """Whether the target is met once the next block of line ``k`` has gone, or small blocks of
        one kind lead to it, whichever line of this price and kind it was.
        """
        after = self._after(k, sizes)
        if self.candidates[k].kind in DEPTH:
            return self.met(after)
        return self.met(after) or self.bridged(self._candidates(after), after)

    def _hopeful(self, k: int, sizes: Sizes) -> bool:
        """Whether the target can be met once the next block of line ``k`` has gone, or too many
        ways would have to be looked at.
        """
        try:
            tries = iter(range(TRIES // len(self.candidates)))
            return self._leads_there(self._after(k, sizes), tries)
        except StopIteration:
            return True

    def _candidates(self, sizes: Sizes) -> list[int]:
        """Lines that may give a block at these sizes."""
        lines = range(len(self.candidates))
        return [k for k in lines if self.in_range(k, sizes) and self.fits(k, sizes)]

    def _leads_there(self, sizes: Sizes, tries: Iterator[int]) -> bool:
        """Whether blocks of some kind lead from these sizes to the target. Ways of many small
        blocks are not walked (``bridged``). Raises StopIteration when ``tries`` are used up.
        """
        if self.met(sizes):
            return True
        state = self._state(sizes)
        if state not in self._ends:
            here = self._candidates(sizes)
            if self.bridged(here, sizes):
                return True
            next(tries)  # what was not looked at to the end is not remembered
            ways = {self._alike(k, sizes): k for k in here}
            found = False
            for way in sorted(ways, reverse=True):
                found = found or self._leads_there(self._after(ways[way], sizes), tries)
            self._ends[state] = found
        return self._ends[state]

    def _alike(self, k: int, sizes: Sizes) -> tuple[Any, ...]:
        """What lines have in common that lead equally far: price, kind, and the layer around."""
        return (self.frees(k, sizes), self.candidates[k].kind, self._around(k, sizes))

    def _around(self, k: int, sizes: Sizes) -> tuple[tuple[int, int], ...]:
        """Widths and prices in the layer of line ``k``, where that layer may go whole."""
        return tuple((sizes.width(j), sizes.unit(j)) for j in self._beside[k])

    def _state(self, sizes: Sizes) -> tuple[Any, ...]:
        """What tells sizes apart: parameters, and units of every kind (four blocks of 64 channels
        can weigh what three heads do). Which layers are narrow makes no difference, but where
        layers may go whole it does which widths are together in one.
        """
        left = dict.fromkeys(self._kinds, 0)
        for k, line in enumerate(self.candidates):
            left[line.kind] += sizes.width(k)
        firsts = (k for k, near in self._beside.items() if near[:1] == [k])
        layers = sorted(self._around(k, sizes) for k in firsts)
        return (sizes.params, *left.values(), *layers)

    def bridged(self, fit: list[int], sizes: Sizes) -> bool:
        """Whether one kind alone leads to the target, by blocks too small to miss it."""
        room = dict.fromkeys(self._kinds, 0)
        for k in fit:
            line, unit = self.candidates[k], sizes.unit(k)
            small = line.multiple * unit <= 2 * TOLERANCE * self.target and not line.floor
            if small and line.until > 1 - self.target / self.start:
                lowest = math.ceil(line.minimum / line.multiple) * line.multiple
                room[line.kind] += (sizes.width(k) - lowest) * unit
        return max(room.values()) >= sizes.params - self.target


def _first(likes: dict[int, tuple[Any, ...]]) -> dict[tuple[Any, ...], int]:
    """The first line of each class."""
    return {like: k for k, like in reversed(likes.items())}

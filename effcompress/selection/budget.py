"""What may still be cut without missing the target: arithmetic on widths, no tensors.

Two sizes are kept: the one *now*, and the one with all promises *kept*. Once a unit of a block has
gone, the rest of the block (down to the next multiple of ``finish_on``) is promised. A block is
begun only if the size with all promises kept does not miss the target; then nothing that happens
in between can. Without ``finish_on`` the two are the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, final

from effcompress.selection.lines import Line, beside
from effcompress.selection.sizes import Sizes
from effcompress.types import DEPTH, AxisMap, Widths

TOLERANCE = 0.005
"""A target is met within half a percent (design: ask for a size, get that size)."""
NEAR = 4
"""Within so many of the largest blocks from the target, and where no kind leads there by small
blocks, only what can still lead there is begun."""
TRIES = 50_000
"""Blocks looked at to find out; a way that is longer is taken to be there."""


@final
class Budget:
    """Parameters now, the target, and for each line what its next removal frees."""

    def __init__(self, axes: AxisMap, lines: list[Line], widths: Widths, target: int) -> None:
        self.axes, self.lines, self.target = axes, lines, target
        self.start = axes.count()
        self.units: dict[str, int] = dict.fromkeys((line.kind for line in lines), 0)
        """Kind -> units taken so far (a lockstep tuple counts once)."""
        self._now = Sizes(axes, lines, widths)
        promising = any(line.multiple != line.round_to for line in lines)
        self._kept = self._now.copy() if promising else self._now
        pools = {line.pool for line in lines if line.pool}
        self._pools = {p: [k for k, line in enumerate(lines) if line.pool == p] for p in pools}
        self._sizes = {p: sum(lines[k].size for k in members) for p, members in self._pools.items()}
        self._shares: dict[str, float] = {}
        self._ranged = any(line.after > 0 or line.until < 1 for line in lines)
        self._beside = beside(lines)
        self._steady = not any(line.floor or line.kind in DEPTH for line in lines)
        """No line's room depends on what another loses."""
        self._all_fit: list[int] | None = None
        self._new: tuple[list[int], list[int]] | None = None
        self._ends: dict[tuple[int, ...], bool] = {}
        """State -> whether the target can be met from there."""
        for k, line in enumerate(lines if promising else ()):
            begun = self._now.width(k) < line.size and self._now.unit(k) > 0
            if rest := self._now.width(k) % line.multiple if begun else 0:
                self._kept.take(k, rest)

    @property
    def params(self) -> int:
        """Parameters now."""
        return self._now.params

    @property
    def widths(self) -> dict[str, int]:
        """Widths now."""
        return self._now.widths

    def block(self, k: int) -> int:
        """Units that go at once from every set of line ``k``: one, or as many as lead to the next
        multiple of its ``round_to``.
        """
        return self._now.block(k, self.lines[k].round_to)

    def freed(self, k: int) -> int:
        """Parameters that the next removal from line ``k`` frees."""
        return self.block(k) * self._now.unit(k)

    def promised(self, k: int) -> int:
        """Units of line ``k`` that will go because others of their block went."""
        return self._now.width(k) - self._kept.width(k) if self._now.unit(k) else 0

    def removed(self, k: int) -> float:
        """Share of the units of line ``k`` that are gone; in a pool, of the pool's."""
        line = self.lines[k]
        if not line.pool:
            return self.share(k)
        if line.pool not in self._shares:
            left = self._left(line.pool, self._now)
            self._shares[line.pool] = 1.0 - left / self._sizes[line.pool]
        return self._shares[line.pool]

    def share(self, k: int) -> float:
        """Share of the units of line ``k`` alone that are gone."""
        return 1.0 - self._now.width(k) / self.lines[k].size

    def open(self) -> list[int]:
        """Lines whose next removal keeps a promise, or begins a block that brings the size with
        all promises kept nearer to the target, without missing it.
        """
        fit, leading = self._beginnings()
        if self._ranged:
            fit, leading = (
                [k for k in found if self._in_range(k, self._now)] for found in (fit, leading)
            )
        if self._now.params == self._kept.params:  # nothing is promised
            return list(leading or fit)
        return [k for k in range(len(self.lines)) if self.promised(k) or k in (leading or fit)]

    def take(self, k: int) -> None:
        """Remove the next block from every set of line ``k``."""
        block, begun = self.block(k), not self.promised(k)
        if begun and self._kept is not self._now:
            self._kept.take(k, self._stride(k, self._kept))
        self._now.take(k, block)
        if begun:
            self._new = None
            if self._all_fit and not self._movable(k, self._kept):
                self._all_fit.remove(k)
        self._shares.clear()
        self.units[self.lines[k].kind] += block

    def satisfies(self, params: int | None) -> bool:
        """Whether a schedule that asked for this size has it; the target includes all promises."""
        if params is None or self.params > params:
            return False
        return params > self.target or not self.promises

    @property
    def promises(self) -> bool:
        """Whether anything is promised."""
        return any(self.promised(k) for k in range(len(self.lines)))

    @property
    def reached(self) -> bool:
        """Whether the size is within the tolerance of the target, and all promises are kept."""
        return self._met(self._now) and not self.promises

    @property
    def next_size(self) -> int:
        """The largest size below this one, whatever the target."""
        kept = self._kept
        movable = [k for k in range(len(self.lines)) if self._movable(k, kept)]
        in_range = [k for k in movable if self._in_range(k, kept)]
        return kept.params - min((self._frees(k, kept) for k in in_range), default=0)

    @property
    def out_of_range(self) -> list[str]:
        """Kinds that have mini-groups to give, but not at this size."""
        now, lines = self._now, self.lines
        shut = [k for k in range(len(lines)) if not self._in_range(k, now)]
        return [*dict.fromkeys(lines[k].kind for k in shut if self._movable(k, self._kept))]

    def _beginnings(self) -> tuple[list[int], list[int]]:
        """Lines of which a block may be begun, and those of them after which the target can still
        be met; as far as sizes with all promises kept tell.
        """
        if self._new is None:
            kept = self._kept
            fit = self._fitting()
            leading = fit
            largest = max((self._frees(k, kept) for k in fit), default=0)
            near = kept.params - self.target <= NEAR * largest
            if len(fit) > 1 and (near or not self._bridged(fit, kept)):
                # One line stands for all that are alike: a pool has many.
                alike = {k: self._alike(k, kept) for k in fit}
                first = {like: k for k, like in reversed(alike.items())}
                hopeful = {like: self._hopeful(k) for like, k in first.items()}
                leading = [k for k in fit if hopeful[alike[k]]]
            self._new = fit, leading
        return self._new

    def _fitting(self) -> list[int]:
        """Lines whose next block fits. Far from the target all that can move do, which is kept up
        from cut to cut: a pool of all layers' channels has tens of thousands of them.
        """
        kept = self._kept
        if self._steady:
            if self._all_fit is None:
                self._all_fit = [k for k in range(len(self.lines)) if self._movable(k, kept)]
            if all(self._frees(k, kept) <= kept.params - self.target for k in self._all_fit):
                return list(self._all_fit)
        return [k for k in range(len(self.lines)) if self._fits(k, kept)]

    def _hopeful(self, k: int) -> bool:
        """Whether the target can be met once the next block of line ``k`` has gone, or too many
        ways would have to be looked at.
        """
        try:
            tries = iter(range(TRIES // len(self.lines)))
            return self._leads_there(self._after(k, self._kept), tries)
        except StopIteration:
            return True

    def _stride(self, k: int, sizes: Sizes) -> int:
        """Units of line ``k`` that are promised when the first of them goes."""
        return sizes.block(k, self.lines[k].multiple)

    def _frees(self, k: int, sizes: Sizes) -> int:
        return self._stride(k, sizes) * sizes.unit(k)

    def _after(self, k: int, sizes: Sizes) -> Sizes:
        after = sizes.copy()
        after.take(k, self._stride(k, sizes))
        return after

    def _met(self, sizes: Sizes) -> bool:
        return abs(sizes.params - self.target) <= TOLERANCE * self.target

    def _in_range(self, k: int, sizes: Sizes) -> bool:
        gone = 1.0 - sizes.params / self.start
        return self.lines[k].after <= gone < self.lines[k].until

    def _movable(self, k: int, sizes: Sizes) -> bool:
        """Whether line ``k`` has a block to give, whatever the target."""
        line = self.lines[k]
        return sizes.unit(k) > 0 and sizes.width(k) - self._stride(k, sizes) >= line.minimum

    def _fits(self, k: int, sizes: Sizes) -> bool:
        """Whether the next block of line ``k`` brings the size nearer without missing the target,
        and leaves its pool what must stay.
        """
        if not self._movable(k, sizes):
            return False
        line, after = self.lines[k], sizes.params - self._frees(k, sizes)
        nearer = abs(after - self.target) < abs(sizes.params - self.target)
        if not nearer or after < self.target * (1 - TOLERANCE):
            return False
        left = self._left(line.pool, sizes) if line.floor else 0
        if line.floor and left - self._stride(k, sizes) < line.floor:
            return False
        return line.kind != "layer" or self._floors_hold(line.sets[0], sizes)

    def _left(self, pool: str, sizes: Sizes) -> int:
        """Units of a pool that are there and do something."""
        return sum(sizes.width(k) for k in self._pools[pool] if sizes.unit(k) > 0)

    def _floors_hold(self, layer: str, sizes: Sizes) -> bool:
        """Whether every pool keeps what it must when this layer takes its blocks along."""
        after = {**sizes.widths, layer: 0}
        for pool, lines in self._pools.items():
            names = [self.lines[k].sets[0] for k in lines if pool != "layer"]
            left = sum(after[name] for name in names if self.axes.living(name, after))
            if names and left < self.lines[lines[0]].floor:
                return False
        return True

    def _leads_there(self, sizes: Sizes, tries: Iterator[int]) -> bool:
        """Whether blocks of some kind lead from these sizes to the target. Ways of many small
        blocks are not walked (``_bridged``). Raises StopIteration when ``tries`` are used up.
        """
        if self._met(sizes):
            return True
        state = self._state(sizes)
        if state not in self._ends:
            lines = range(len(self.lines))
            here = [k for k in lines if self._in_range(k, sizes) and self._fits(k, sizes)]
            if self._bridged(here, sizes):
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
        return (self._frees(k, sizes), self.lines[k].kind, self._around(k, sizes))

    def _around(self, k: int, sizes: Sizes) -> tuple[tuple[int, int], ...]:
        """Widths and prices in the layer of line ``k``, where that layer may go whole."""
        return tuple((sizes.width(j), sizes.unit(j)) for j in self._beside[k])

    def _state(self, sizes: Sizes) -> tuple[Any, ...]:
        """What tells sizes apart: parameters, and units of every kind (four blocks of 64 channels
        can weigh what three heads do). Which layers are narrow makes no difference, but where
        layers may go whole it does which widths are together in one.
        """
        left = dict.fromkeys(self.units, 0)
        for k, line in enumerate(self.lines):
            left[line.kind] += sizes.width(k)
        firsts = (k for k, near in self._beside.items() if near[:1] == [k])
        layers = sorted(self._around(k, sizes) for k in firsts)
        return (sizes.params, *left.values(), *layers)

    def _bridged(self, fit: list[int], sizes: Sizes) -> bool:
        """Whether one kind alone leads to the target, by blocks too small to miss it."""
        room = dict.fromkeys(self.units, 0)
        for k in fit:
            line, unit = self.lines[k], sizes.unit(k)
            small = line.multiple * unit <= 2 * TOLERANCE * self.target and not line.floor
            if small and line.until > 1 - self.target / self.start:
                lowest = math.ceil(line.minimum / line.multiple) * line.multiple
                room[line.kind] += (sizes.width(k) - lowest) * unit
        return max(room.values()) >= sizes.params - self.target

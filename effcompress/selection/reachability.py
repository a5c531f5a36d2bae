"""Decides whether some order of removals leads from a size to the target, and what may go next.

Far from the target the answer is yes: small strides of one kind bridge any gap. Near it, a search
over sizes decides. All questions are asked of copies of ``Sizes``; a run's own are not changed.
"""

import math
import sys
from collections.abc import Iterable, Iterator
from typing import Any, final

from effcompress.selection.candidates import Candidate, beside
from effcompress.selection.sizes import Sizes
from effcompress.types import DEPTH, AxisMap, Widths, axis_kind, axis_layer

TOLERANCE = 0.005
"""A target is met within half a percent."""
NEAR = 4
"""Within so many of the largest strides from the target, and where no kind leads there by small
strides, only what can still lead there is begun."""
TRIES = 50_000
"""Sizes that a search visits at most; a search that needs more is assumed to succeed."""


@final
class Reachability:
    """What the next stride of a candidate changes, and which sizes can be reached after it."""

    def __init__(self, axes: AxisMap, candidates: list[Candidate], start: int, target: int) -> None:
        self.axes, self.candidates, self.start, self.target = axes, candidates, start, target
        pools = {c.pool for c in candidates if c.pool}
        self._pools = {p: [k for k, c in enumerate(candidates) if c.pool == p] for p in pools}
        self.pool_sizes = {p: sum(candidates[k].size for k in ks) for p, ks in self._pools.items()}
        """Pool -> its units before anything went."""
        self._kinds = list(dict.fromkeys(c.kind for c in candidates))
        near = beside(candidates)
        self._layers = [members for k, members in near.items() if members[:1] == [k]]
        """Candidates of each layer, where layers or blocks may go whole."""
        self._layer = [
            next((n for n, members in enumerate(self._layers) if k in members), None) for k in near
        ]
        """Candidate -> its place in ``_layers``."""
        self.all_go = self._at_the_end() and not any(c.after or c.until < 1 for c in candidates)
        """Whether the target is what is left when nothing more may go (a shape): then any order of
        removals leads there.
        """
        self._small = 2 * TOLERANCE * target
        reaches = {k: c for k, c in enumerate(candidates) if c.until > 1 - target / start}
        self._lowest = {
            k: math.ceil(c.minimum / c.multiple) * c.multiple
            for k, c in reaches.items()
            if not c.floor
        }
        """Candidates that one could go down by alone -> their smallest width."""
        self._most: int | None = None
        self._ends: dict[tuple[Any, ...], bool] = {}
        """Memo of the search: state -> whether the target can be met from there."""
        self._way: list[int] = []
        """Candidates that gave a stride on the way that the last search found, the last one first.
        """

    def leading(self, fit: list[int], sizes: Sizes) -> list[int]:
        """Returns those of ``fit`` after whose next stride the target can still be met."""
        far = sizes.params - self.target
        near = far <= NEAR * self.most(sizes)
        near = near and far <= NEAR * max((self.frees(k, sizes) for k in fit), default=0)
        if len(fit) < 2 or self.all_go or (not near and self.bridged(fit, sizes)):
            return fit
        # Candidates of one cost and kind are alike where what follows does not depend on the layer,
        # else those in layers of equal widths: one of each class is examined for all.
        cost = {k: (self.frees(k, sizes), self.candidates[k].kind) for k in fit}
        clear = {like: self._clear(k, sizes) for like, k in _first(cost).items()}
        rest = {k: self._alike(k, sizes) for k in fit if not clear[cost[k]]}
        hopeful = {like: self._hopeful(k, sizes) for like, k in _first(rest).items()}
        return [k for k in fit if clear[cost[k]] or hopeful[rest[k]]]

    def _at_the_end(self) -> bool:
        """Whether the model at all minimums and floors has the target's size."""
        widths: dict[str, int] = {}
        for c in self.candidates:
            lowest = math.ceil(c.minimum / c.multiple) * c.multiple
            widths |= dict.fromkeys(c.sets, min(c.size, lowest))
        for members in self._pools.values():
            floor, kind = self.candidates[members[0]].floor, self.candidates[members[0]].kind
            if kind in DEPTH and 0 < floor < len(members) and not self._equal(members, widths):
                return False  # it matters which of them stay
            for k in members[:floor]:
                c = self.candidates[k]
                widths |= dict.fromkeys(c.sets, c.size if c.kind in DEPTH else widths[c.sets[0]])
        return self.axes.count({**self.axes.widths, **widths}) == self.target

    def _equal(self, members: list[int], lowest: Widths) -> bool:
        """Whether all layers, or blocks, of a pool have equally many parameters, with their other
        units whole and at their ``lowest`` widths.
        """
        there = {name: width for name, width in lowest.items() if axis_kind(name) not in DEPTH}
        for widths in ({}, there):
            whole = {**self.axes.widths, **widths}
            gone = (dict.fromkeys(self.candidates[k].sets, 0) for k in members)
            if len({self.axes.count({**whole, **one}) for one in gone}) > 1:
                return False
        return True

    def stride(self, k: int, sizes: Sizes) -> int:
        """Returns the units of candidate ``k`` that are promised when the first of them goes."""
        return sizes.step(k, self.candidates[k].multiple)

    def frees(self, k: int, sizes: Sizes) -> int:
        """Returns the parameters of the next stride of candidate ``k``."""
        return self.stride(k, sizes) * sizes.unit(k)

    def most(self, sizes: Sizes) -> int:
        """Returns what a stride frees at most, at these sizes and all below the first ones that
        this is asked of: a unit frees less when others are gone, never more.
        """
        if self._most is None:
            units = (c.multiple * sizes.unit(k) for k, c in enumerate(self.candidates))
            self._most = max(units, default=0)
        return self._most

    def _after(self, k: int, sizes: Sizes) -> Sizes:
        after = sizes.copy()
        after.take(k, self.stride(k, sizes))
        return after

    def met(self, sizes: Sizes) -> bool:
        """Returns whether the size is within the tolerance of the target."""
        return abs(sizes.params - self.target) <= TOLERANCE * self.target

    def in_range(self, k: int, sizes: Sizes) -> bool:
        """Returns whether this size is within ``after`` and ``until`` of candidate ``k``."""
        gone = 1.0 - sizes.params / self.start
        return self.candidates[k].after <= gone < self.candidates[k].until

    def movable(self, k: int, sizes: Sizes) -> bool:
        """Returns whether candidate ``k`` has a stride left, whatever the target."""
        c = self.candidates[k]
        return sizes.unit(k) > 0 and sizes.width(k) - self.stride(k, sizes) >= c.minimum

    def fits(self, k: int, sizes: Sizes) -> bool:
        """Returns whether the next stride of candidate ``k`` brings the size nearer to the target
        without missing it, and leaves its pool at or above its floor.
        """
        if not self.movable(k, sizes):
            return False
        after = sizes.params - self.frees(k, sizes)
        nearer = abs(after - self.target) < abs(sizes.params - self.target)
        if not nearer or after < self.target * (1 - TOLERANCE):
            return False
        return self.spares(k, sizes)

    def spares(self, k: int, sizes: Sizes) -> bool:
        """Returns whether the next stride of candidate ``k`` leaves all pools at their floors."""
        c = self.candidates[k]
        if c.floor and self.left(c.pool, sizes) - self.stride(k, sizes) < c.floor:
            return False
        return c.kind != "layer" or self._floors_hold(c.sets[0], sizes)

    def left(self, pool: str, sizes: Sizes) -> int:
        """Returns the units left in a pool; those of a layer that is gone do not count."""
        if pool not in sizes.left:
            there = (k for k in self._pools[pool] if sizes.unit(k) > 0)
            sizes.left[pool] = sum(sizes.width(k) for k in there)
        return sizes.left[pool]

    def _floors_hold(self, layer: str, sizes: Sizes) -> bool:
        """Returns whether every pool of blocks stays at its floor when this layer goes whole."""
        gone = axis_layer(layer)
        for pool, members in self._pools.items():
            floor = self.candidates[members[0]].floor
            if pool == "layer" or not floor:
                continue
            stay = (k for k in members if axis_layer(self.candidates[k].sets[0]) != gone)
            if sum(sizes.width(k) for k in stay if sizes.unit(k) > 0) < floor:
                return False
        return True

    def _clear(self, k: int, sizes: Sizes) -> bool:
        """Returns whether the target is met after the next stride of candidate ``k``, or small
        strides of one kind lead to it, whichever candidate of this cost and kind went.
        """
        after = self._after(k, sizes)
        if self.candidates[k].kind in DEPTH:
            return self.met(after)
        return self.met(after) or self.bridged(range(len(self.candidates)), after)

    def _hopeful(self, k: int, sizes: Sizes) -> bool:
        """Returns whether the target can be met after the next stride of candidate ``k``; also
        true where the search runs out of ``TRIES``.
        """
        after = self._after(k, sizes)
        if self._goes_the_same_way(after.copy()):
            return True
        self._way.clear()
        most, limit = TRIES // len(self.candidates), sys.getrecursionlimit()
        # The search is as deep as there are strides, and Python allows a thousand calls.
        sys.setrecursionlimit(limit + most)
        try:
            return self._leads_there(after, iter(range(most)))
        except StopIteration:
            return True
        finally:
            sys.setrecursionlimit(limit)

    def _goes_the_same_way(self, sizes: Sizes) -> bool:
        """Returns whether the strides of the last way, as far as they fit, lead from these sizes to
        the target; ``sizes`` is changed. Spares most searches: two that follow each other differ in
        one stride.
        """
        for k in reversed(self._way):
            if self.in_range(k, sizes) and self.fits(k, sizes):
                sizes.take(k, self.stride(k, sizes))
        return self.met(sizes) or self.bridged(range(len(self.candidates)), sizes)

    def _available(self, sizes: Sizes) -> dict[tuple[Any, ...], int]:
        """Returns a candidate of each class of those that may give a stride at these sizes."""
        around = [self._widths(members, sizes) for members in self._layers]
        found: dict[tuple[Any, ...], int] = {}
        for k, c in enumerate(self.candidates):
            layer = self._layer[k]
            near = () if layer is None else around[layer]
            alike = (self.frees(k, sizes), c.kind, near)
            if alike not in found and self.in_range(k, sizes) and self.fits(k, sizes):
                found[alike] = k
        return found

    def _leads_there(self, sizes: Sizes, tries: Iterator[int]) -> bool:
        """Depth-first search with a memo: whether strides lead from these sizes to the target.
        Sequences of many small strides are not walked (``bridged`` answers for them). Raises
        StopIteration when ``tries`` are used up.
        """
        if self.met(sizes) or self.bridged(range(len(self.candidates)), sizes):
            return True
        state = self._state(sizes)
        if state not in self._ends:
            branches = self._available(sizes)
            next(tries)  # before the memo is written: an unfinished search must not be remembered
            found = False
            # Largest strides first: they leave the fewest that follow.
            for alike in sorted(branches, reverse=True):
                k = branches[alike]
                if found := self._leads_there(self._after(k, sizes), tries):
                    self._way.append(k)
                    break
            self._ends[state] = found
        return self._ends[state]

    def _alike(self, k: int, sizes: Sizes) -> tuple[Any, ...]:
        """Returns the class of candidate ``k``: cost, kind, and the layer around it."""
        return (self.frees(k, sizes), self.candidates[k].kind, self._around(k, sizes))

    def _around(self, k: int, sizes: Sizes) -> tuple[tuple[int, int], ...]:
        """Returns widths and unit costs in the layer of candidate ``k``, where that layer may go
        whole; empty elsewhere.
        """
        layer = self._layer[k]
        return () if layer is None else self._widths(self._layers[layer], sizes)

    @staticmethod
    def _widths(members: list[int], sizes: Sizes) -> tuple[tuple[int, int], ...]:
        return tuple((sizes.width(j), sizes.unit(j)) for j in members)

    def _state(self, sizes: Sizes) -> tuple[Any, ...]:
        """Returns the key of the memo: parameters, and units left of every kind (256 channels can
        have as many parameters as three heads). Which layers are narrow makes no difference, but
        where layers may go whole, it matters which widths are together in one.
        """
        left = dict.fromkeys(self._kinds, 0)
        for k, c in enumerate(self.candidates):
            left[c.kind] += sizes.width(k)
        layers = sorted(self._widths(members, sizes) for members in self._layers)
        return (sizes.params, *left.values(), *layers)

    def bridged(self, some: Iterable[int], sizes: Sizes) -> bool:
        """Returns whether one kind alone leads to the target by strides too small to miss it: at
        most as large as the whole tolerance interval, twice ``TOLERANCE``. Above the target all
        such strides fit, so candidates need not be asked.
        """
        room, far = dict.fromkeys(self._kinds, 0), sizes.params - self.target
        for k in some:
            if k not in self._lowest:
                continue
            c, unit, width = self.candidates[k], sizes.unit(k), sizes.width(k)
            small = unit * c.multiple <= self._small and width > self._lowest[k]
            if small and self.in_range(k, sizes):
                room[c.kind] += (width - self._lowest[k]) * unit
                if room[c.kind] >= far:
                    return True
        return max(room.values()) >= far


def _first(likes: dict[int, tuple[Any, ...]]) -> dict[tuple[Any, ...], int]:
    """Returns the first candidate of each class."""
    return {like: k for k, like in reversed(likes.items())}

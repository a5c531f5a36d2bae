"""Tracks what may still be cut without missing the target. Arithmetic on widths, no tensors.

A *step* is what goes at once from a candidate (``round_to`` units), a *stride* what must go once
it was begun (down to the next multiple of ``finish_on``). Two sizes are tracked: the one *now*, and
the one with all promises *kept*, where the rest of every stride that was begun is gone, too. A
stride is begun only if the kept size does not miss the target; then no order of later cuts can.
Without ``finish_on`` the two sizes are the same object.
"""

from collections.abc import Callable
from typing import final

from effcompress.selection.candidates import Candidate, narrowest
from effcompress.selection.reachability import Reachability
from effcompress.selection.sizes import Sizes
from effcompress.types import DEPTH, AxisMap, Widths


@final
class Budget:
    """Parameters now, the target, and for each candidate what its next step frees."""

    def __init__(
        self, axes: AxisMap, candidates: list[Candidate], widths: Widths, target: int
    ) -> None:
        self.axes, self.candidates, self.target = axes, candidates, target
        self.start = axes.count()
        self.units: dict[str, int] = dict.fromkeys((c.kind for c in candidates), 0)
        """Kind -> units taken so far (a lockstep tuple counts once)."""
        self._now = Sizes(axes, candidates, widths)
        promising = any(c.multiple != c.round_to for c in candidates)
        self._kept = self._now.copy() if promising else self._now
        self._reach = Reachability(axes, candidates, self.start, target)
        self._left: dict[tuple[str, bool], int] = {}
        """(Pool, whether promises are kept) -> units left in it; cleared by every cut."""
        self._ranged = any(c.after > 0 or c.until < 1 for c in candidates)
        self._steady = not any(c.floor or c.kind in DEPTH for c in candidates)
        """Whether no candidate's room depends on what another loses: no pools, no depth."""
        self._all_fit: list[int] | None = None
        self._new: tuple[list[int], list[int]] | None = None
        # A resumed or pruned model may lie within a stride: its rest is promised from the start.
        for k, c in enumerate(candidates if promising else ()):
            begun = self._now.width(k) < c.size and self._now.unit(k) > 0
            if rest := self._now.width(k) % c.multiple if begun else 0:
                self._kept.take(k, rest)

    @property
    def params(self) -> int:
        """Parameters now."""
        return self._now.params

    @property
    def widths(self) -> dict[str, int]:
        """Widths now."""
        return self._now.widths

    def step(self, k: int) -> int:
        """Returns the units that go at once from every set of candidate ``k``: one, or as many as
        lead to the next multiple of its ``round_to``.
        """
        return self._now.step(k, self.candidates[k].round_to)

    def freed(self, k: int) -> int:
        """Returns the parameters that the next step of candidate ``k`` frees."""
        return self.step(k) * self._now.unit(k)

    def touched(self, k: int) -> list[int]:
        """Returns the candidates whose next step changes when candidate ``k`` loses units."""
        return [k, *self._now.touched(k)]

    def promised(self, k: int) -> int:
        """Returns the units of candidate ``k`` that will go because their stride was begun."""
        return self._now.width(k) - self._kept.width(k) if self._now.unit(k) else 0

    def removed(self, k: int) -> float:
        """Returns the removed fraction of the units of candidate ``k``, or of its pool's."""
        c = self.candidates[k]
        if c.pool:
            return 1.0 - self._left_in(c.pool) / self._reach.pool_sizes[c.pool]
        return (c.size - self._now.width(k)) * len(c.sets) / c.units

    def removed_after(self, k: int) -> float:
        """Returns what ``removed`` is once the next step of candidate ``k`` is taken and all that
        is promised then is gone: a coarse unit, or a stride, is not taken for its first channel.
        """
        c, width = self.candidates[k], self.width_after(k)
        if c.pool:
            left = self._left_in(c.pool, kept=True) - (self._kept.width(k) - width)
            return 1.0 - left / self._reach.pool_sizes[c.pool]
        return (c.size - width) * len(c.sets) / c.units

    def width_after(self, k: int) -> int:
        """Returns the width of candidate ``k`` once the stride that its next step begins, or goes
        on with, is finished.
        """
        begins = 0 if self.promised(k) else self._reach.stride(k, self._kept)
        return self._kept.width(k) - begins

    def _left_in(self, pool: str, kept: bool = False) -> int:
        if (pool, kept) not in self._left:
            self._left[pool, kept] = self._reach.left(pool, self._kept if kept else self._now)
        return self._left[pool, kept]

    def open(self) -> list[int]:
        """Returns the candidates whose next step keeps a promise, or begins a stride that brings
        the kept size nearer to the target without missing it.
        """
        fit, leading = self._beginnings()
        if self._ranged:
            fit, leading = (
                [k for k in found if self._reach.in_range(k, self._now)] for found in (fit, leading)
            )
        if self._now.params == self._kept.params:  # nothing is promised
            return list(leading or fit)
        return [k for k in range(len(self.candidates)) if self.promised(k) or k in (leading or fit)]

    def take(self, k: int) -> None:
        """Removes the next step from every set of candidate ``k``."""
        units, begun = self.step(k), not self.promised(k)
        if begun and self._kept is not self._now:
            self._kept.take(k, self._reach.stride(k, self._kept))
        self._now.take(k, units)
        if begun:
            self._new = None
            if self.candidates[k].kind in DEPTH:  # what belongs to it goes, too
                self._all_fit = None
            elif self._all_fit and not self._reach.movable(k, self._kept):
                self._all_fit.remove(k)
        self._left.clear()
        self.units[self.candidates[k].kind] += units

    def satisfies(self, params: int | None) -> bool:
        """Returns whether the size asked for by a schedule is met; at the target itself only once
        all promises are kept.
        """
        if params is None or self.params > params:
            return False
        return params > self.target or not self.promises

    @property
    def bridged(self) -> bool:
        """Whether small strides of one kind alone lead from here to the target."""
        every, now = range(len(self.candidates)), self._kept
        return now.params > self.target and not self._ranged and self._reach.bridged(every, now)

    @property
    def goes_whole(self) -> bool:
        """Whether the target is what is left when nothing more may go, so that no order matters."""
        return self._reach.all_go

    def take_all(self) -> dict[str, int]:
        """Removes all that may go, layers and blocks first, the last ones of them. Returns kind ->
        mini-groups removed.
        """
        removed: dict[str, int] = {}
        every = reversed(range(len(self.candidates)))
        for k in sorted(every, key=lambda k: self.candidates[k].kind not in DEPTH):
            while self.promised(k) or self._reach.fits(k, self._kept):
                self.take(k)
                kind = self.candidates[k].kind
                removed[kind] = removed.get(kind, 0) + 1
        return removed

    @property
    def promises(self) -> bool:
        """Whether any stride is begun and not finished."""
        return any(self.promised(k) for k in range(len(self.candidates)))

    @property
    def reached(self) -> bool:
        """Whether the size is within the tolerance of the target and all promises are kept."""
        return self._reach.met(self._now) and not self.promises

    @property
    def next_size(self) -> int:
        """The largest size below this one that can be had, whatever the target."""
        kept = self._kept
        movable = [k for k in range(len(self.candidates)) if self._reach.movable(k, kept)]
        in_range = [k for k in movable if self._reach.in_range(k, kept)]
        return kept.params - min((self._reach.frees(k, kept) for k in in_range), default=0)

    @property
    def left(self) -> dict[str, int]:
        """Kind -> steps that may still be taken, whatever the target."""
        found = dict.fromkeys(self.units, 0)
        for k, c in enumerate(self.candidates):
            if self._now.unit(k):  # its layer is there
                least, width = narrowest(c), self._now.width(k)
                found[c.kind] += max(0, -(-width // c.round_to) - -(-least // c.round_to))
        for c in self.candidates:
            if c.pool:
                spare = max(0, self._left_in(c.pool) - c.floor)
                found[c.kind] = min(found[c.kind], spare // c.round_to)
        return found

    @property
    def out_of_range(self) -> list[str]:
        """Kinds that have mini-groups left but are outside their ``after`` and ``until``."""
        now, all_ = self._now, self.candidates
        shut = [k for k in range(len(all_)) if not self._reach.in_range(k, now)]
        return [*dict.fromkeys(all_[k].kind for k in shut if self._reach.movable(k, self._kept))]

    def _beginnings(self) -> tuple[list[int], list[int]]:
        """Returns the candidates of which a stride may be begun, and those of them after which the
        target can still be met. Both follow from the kept size, so steps within a stride do not
        invalidate them.
        """
        if self._new is None:
            fit = self._fitting()
            self._new = fit, self._reach.leading(fit, self._kept)
        return self._new

    def _fitting(self) -> list[int]:
        """Returns the candidates whose next stride fits. Far from the target every movable one
        does; that list is updated from cut to cut, because there may be tens of thousands.
        """
        kept, far = self._kept, self._kept.params - self.target
        if self._all_fit is None:
            every = range(len(self.candidates))
            self._all_fit = [k for k in every if self._reach.movable(k, kept)]
        small = self._reach.most(kept) <= far
        if small or all(self._reach.frees(k, kept) <= far for k in self._all_fit):
            if self._steady:
                return list(self._all_fit)
            return [k for k in self._all_fit if self._reach.spares(k, kept)]
        return [k for k in self._all_fit if self._reach.fits(k, kept)]


def simulate(
    budget: Budget,
    groups: int | None = None,
    prefer: Callable[[Budget, int], float] = Budget.removed,
    params: int | None = None,
) -> dict[str, int]:
    """Cuts a budget down without saliency: always the candidate that ``prefer`` ranks lowest, by
    default the one with the smallest removed fraction.

    ``groups`` limits how many mini-groups go, ``params`` is a size to stop at before the target.
    Returns kind -> mini-groups removed.
    """

    if budget.goes_whole and groups is None and params in (None, budget.target):
        return budget.take_all()

    def order(k: int) -> tuple[float, float]:  # in a pool the widest set first
        return prefer(budget, k), -budget._now.width(k) / budget.candidates[k].size

    removed: dict[str, int] = {}
    while groups is None or sum(removed.values()) < groups:
        choices = budget.open()
        if not choices or budget.satisfies(params):
            break
        k = min(choices, key=order)
        budget.take(k)
        kind = budget.candidates[k].kind
        removed[kind] = removed.get(kind, 0) + 1
    return removed

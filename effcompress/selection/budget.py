"""What may still be cut without missing the target: arithmetic on widths, no tensors.

Two sizes are kept: the one *now*, and the one with all promises *kept*. Once a unit of a block has
gone, the rest of the block (down to the next multiple of ``finish_on``) is promised. A block is
begun only if the size with all promises kept does not miss the target; then nothing that happens
in between can. Without ``finish_on`` the two are the same.
"""

from __future__ import annotations

from typing import final

from effcompress.selection.candidates import Candidate
from effcompress.selection.reachability import Reachability
from effcompress.selection.sizes import Sizes
from effcompress.types import DEPTH, AxisMap, Widths


@final
class Budget:
    """Parameters now, the target, and for each line what its next removal frees."""

    def __init__(self, axes: AxisMap, lines: list[Candidate], widths: Widths, target: int) -> None:
        self.axes, self.candidates, self.target = axes, lines, target
        self.start = axes.count()
        self.units: dict[str, int] = dict.fromkeys((line.kind for line in lines), 0)
        """Kind -> units taken so far (a lockstep tuple counts once)."""
        self._now = Sizes(axes, lines, widths)
        promising = any(line.multiple != line.round_to for line in lines)
        self._kept = self._now.copy() if promising else self._now
        self._reach = Reachability(axes, lines, self.start, target)
        self._shares: dict[str, float] = {}
        self._ranged = any(line.after > 0 or line.until < 1 for line in lines)
        self._steady = not any(line.floor or line.kind in DEPTH for line in lines)
        """No line's room depends on what another loses."""
        self._all_fit: list[int] | None = None
        self._new: tuple[list[int], list[int]] | None = None
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

    def step(self, k: int) -> int:
        """Units that go at once from every set of line ``k``: one, or as many as lead to the next
        multiple of its ``round_to``.
        """
        return self._now.step(k, self.candidates[k].round_to)

    def freed(self, k: int) -> int:
        """Parameters that the next removal from line ``k`` frees."""
        return self.step(k) * self._now.unit(k)

    def promised(self, k: int) -> int:
        """Units of line ``k`` that will go because others of their block went."""
        return self._now.width(k) - self._kept.width(k) if self._now.unit(k) else 0

    def removed(self, k: int) -> float:
        """Share of the units of line ``k`` that are gone; in a pool, of the pool's."""
        line = self.candidates[k]
        if not line.pool:
            return self.share(k)
        if line.pool not in self._shares:
            left = self._reach.left(line.pool, self._now)
            self._shares[line.pool] = 1.0 - left / self._reach.pool_sizes[line.pool]
        return self._shares[line.pool]

    def share(self, k: int) -> float:
        """Share of the units of line ``k`` alone that are gone."""
        return 1.0 - self._now.width(k) / self.candidates[k].size

    def open(self) -> list[int]:
        """Lines whose next removal keeps a promise, or begins a block that brings the size with
        all promises kept nearer to the target, without missing it.
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
        """Remove the next block from every set of line ``k``."""
        block, begun = self.step(k), not self.promised(k)
        if begun and self._kept is not self._now:
            self._kept.take(k, self._reach.stride(k, self._kept))
        self._now.take(k, block)
        if begun:
            self._new = None
            if self._all_fit and not self._reach.movable(k, self._kept):
                self._all_fit.remove(k)
        self._shares.clear()
        self.units[self.candidates[k].kind] += block

    def satisfies(self, params: int | None) -> bool:
        """Whether a schedule that asked for this size has it; the target includes all promises."""
        if params is None or self.params > params:
            return False
        return params > self.target or not self.promises

    @property
    def promises(self) -> bool:
        """Whether anything is promised."""
        return any(self.promised(k) for k in range(len(self.candidates)))

    @property
    def reached(self) -> bool:
        """Whether the size is within the tolerance of the target, and all promises are kept."""
        return self._reach.met(self._now) and not self.promises

    @property
    def next_size(self) -> int:
        """The largest size below this one, whatever the target."""
        kept = self._kept
        movable = [k for k in range(len(self.candidates)) if self._reach.movable(k, kept)]
        in_range = [k for k in movable if self._reach.in_range(k, kept)]
        return kept.params - min((self._reach.frees(k, kept) for k in in_range), default=0)

    @property
    def out_of_range(self) -> list[str]:
        """Kinds that have mini-groups to give, but not at this size."""
        now, lines = self._now, self.candidates
        shut = [k for k in range(len(lines)) if not self._reach.in_range(k, now)]
        return [*dict.fromkeys(lines[k].kind for k in shut if self._reach.movable(k, self._kept))]

    def _beginnings(self) -> tuple[list[int], list[int]]:
        """Lines of which a block may be begun, and those of them after which the target can still
        be met; as far as sizes with all promises kept tell.
        """
        if self._new is None:
            fit = self._fitting()
            self._new = fit, self._reach.leading(fit, self._kept)
        return self._new

    def _fitting(self) -> list[int]:
        """Lines whose next block fits. Far from the target all that can move do, which is kept up
        from cut to cut: a pool of all layers' channels has tens of thousands of them.
        """
        kept = self._kept
        if self._steady:
            if self._all_fit is None:
                self._all_fit = [
                    k for k in range(len(self.candidates)) if self._reach.movable(k, kept)
                ]
            if all(self._reach.frees(k, kept) <= kept.params - self.target for k in self._all_fit):
                return list(self._all_fit)
        return [k for k in range(len(self.candidates)) if self._reach.fits(k, kept)]

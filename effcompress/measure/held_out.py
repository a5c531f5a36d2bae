"""Chooses a refit's knobs on text that the fit has not seen."""

import math
from dataclasses import dataclass

from torch import Tensor

from effcompress.distributed.world import ALONE, World
from effcompress.measure.moments import Moments, Parts
from effcompress.record.events import Fitted
from effcompress.registry import Bound
from effcompress.spec import MeasureSpec


@dataclass(frozen=True)
class Sequences:
    """The calibration sequences that a refit reads, and how many of them, the last ones, are held
    out.
    """

    read: int
    held_out: int = 0

    def own(self, world: World) -> range:
        """Returns the numbers of those that are held out, among the ones of this process."""
        return range(own(self.read - self.held_out, world), own(self.read, world))


def sequences_of(refit: Bound, measure: MeasureSpec) -> Sequences:
    """Nothing is held out where no knob is ``auto``."""
    return Sequences(measure.refit_sequences, measure.held_out if refit.candidates else 0)


def own(number: int, world: World) -> int:
    """Returns how many of the first ``number`` sequences this process reads, every ``size``-th."""
    return len(range(world.rank, number, world.size))


def divided(sequences: int, world: World) -> World:
    """Returns the processes that take sequences in turn; ``ALONE`` where there are too few of them,
    and every process reads all.
    """
    return ALONE if sequences < 2 * world.size else world


RESOLVED = 1e-6
"""Fractions of the outputs' square that sums in fp32, in another order, may move an error by."""


def fitted(refit: Bound, weight_OI: Tensor, parts: Parts) -> tuple[Tensor, Tensor | None, Fitted]:
    """Asks a refit for a weight and what its bias gains. Of knobs that are ``auto``, the values
    count that leave the lowest error on held-out text when fitted to the other text, the first
    ones among those that differ by no more than rounding (``RESOLVED``); where none lowers it by
    more than that, the weight stays. The fit with these values is to all text.

    Raises PluginError for other shapes, or where the refit fails.
    """
    if parts.seen is None or parts.held is None:
        return *refit.corrected(weight_OI, **_inputs(parts.all)), Fitted(knobs=refit.tried)
    before, errors = parts.held.error(weight_OI), list[float]()
    for candidate in refit.candidates:
        found = candidate.corrected(weight_OI, **_inputs(parts.seen))
        error = parts.held.error(*found)
        errors.append(error if math.isfinite(error) else math.inf)
    after = min(errors)
    if not after < before - RESOLVED:
        return weight_OI, None, Fitted(error_before=before, error_after=before)
    chosen = next(n for n, error in enumerate(errors) if error <= after + RESOLVED)
    best = refit.candidates[chosen]
    how = Fitted(knobs=best.tried, error_before=before, error_after=errors[chosen])
    return *best.corrected(weight_OI, **_inputs(parts.all)), how


def _inputs(moments: Moments) -> dict[str, Tensor]:
    names = ("gram", "cross", "mean", "target_mean")
    return {name: getattr(moments, name) for name in names}

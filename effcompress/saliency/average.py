"""Mean of saliency over training steps, one number per mini-group.

Kept in the original order of the units, so that a cut never has to renumber it.
"""

from collections.abc import Mapping
from typing import final

import torch
from torch import Tensor

from effcompress.spec import MeasureSpec
from effcompress.types import Scores


def in_original_order(
    scores: Scores, original: Mapping[str, Tensor], sizes: Mapping[str, int]
) -> Scores:
    """Moves scores of physical units to the places of the original ones; 0 where a unit is gone."""
    found: Scores = {name: torch.zeros(size) for name, size in sizes.items()}
    for name, score_G in scores.items():
        found[name].index_add_(0, original[name], score_G)
    return found


@final
class ScoreAverage:
    """The mean over steps that ``measure.average`` asks for.

    ``decay``: exponential, bias corrected. ``window``: of the last ``window`` steps.
    ``between_cuts``: of all steps since the last cut.
    """

    def __init__(self, sizes: Mapping[str, int], spec: MeasureSpec) -> None:
        self.spec = spec
        self.values: Scores = {name: torch.zeros(size) for name, size in sizes.items()}
        self.weight = 0.0
        self._over = False
        """``between_cuts``: a cut came, and the next step begins a new mean."""
        self._recent: list[Scores] = []

    def update(self, scores: Scores, original: Mapping[str, Tensor]) -> None:
        """Adds one step's scores; ``original[set]`` maps physical to original units."""
        now = in_original_order(scores, original, {n: len(v) for n, v in self.values.items()})
        past, new = 1.0, 1.0
        if self._over:
            past, self._over = 0.0, False
        elif self.spec.average == "decay":
            past, new = self.spec.decay, 1.0 - self.spec.decay
        self.weight = past * self.weight + new
        for name, value in self.values.items():
            value.mul_(past).add_(now[name], alpha=new)
        if self.spec.average == "window":
            self._recent.append(now)
            if len(self._recent) > self.spec.window:
                self._forget_oldest()

    def _forget_oldest(self) -> None:
        """Sums the window again: subtracting the oldest would let rounding errors accumulate."""
        del self._recent[0]
        self.weight = float(len(self._recent))
        for name, value in self.values.items():
            torch.sum(torch.stack([scores[name] for scores in self._recent]), 0, out=value)

    def cut(self) -> None:
        """Notes a removal. The mean stays readable until the next step: a run may end here."""
        self._over = self.spec.average == "between_cuts"

    def read(self) -> Scores:
        """Returns the mean scores in original order; only after the first ``update``."""
        assert self.weight > 0.0, "nothing was measured yet"
        return {name: value / self.weight for name, value in self.values.items()}

    def state_dict(self) -> dict[str, Tensor]:
        """Flat tensors, for a checkpoint."""
        found = {f"mean/{name}": value for name, value in self.values.items()}
        for name in self.values if self._recent else ():
            found[f"recent/{name}"] = torch.stack([scores[name] for scores in self._recent])
        found["over"] = torch.tensor(self._over)
        return found | {"weight": torch.tensor(self.weight, dtype=torch.float64)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """What ``state_dict`` gave."""
        self.weight, self._over = float(state["weight"]), bool(state["over"])
        for name, value in self.values.items():
            value.copy_(state[f"mean/{name}"])
        recent = {n: state[f"recent/{n}"] for n in self.values if f"recent/{n}" in state}
        steps = zip(*recent.values(), strict=True)
        self._recent = [
            {name: row.clone() for name, row in zip(recent, rows, strict=True)} for rows in steps
        ]

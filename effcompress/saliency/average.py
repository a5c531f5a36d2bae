"""Running mean of saliency over training steps, one number per mini-group.

Kept in the original order of the units, so that a cut never has to renumber it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor

from effcompress.types import Scores


@final
class ScoreAverage:
    """Exponential mean, bias corrected; ``decay`` is the weight of the past (1: plain mean)."""

    def __init__(self, sizes: Mapping[str, int], decay: float) -> None:
        self.decay = decay
        self.values: Scores = {name: torch.zeros(size) for name, size in sizes.items()}
        self.weight = 0.0

    def update(self, scores: Scores, original: Mapping[str, Tensor]) -> None:
        """Take in one step's scores; ``original[set]`` maps physical to original units."""
        past, new = (1.0, 1.0) if self.decay >= 1.0 else (self.decay, 1.0 - self.decay)
        self.weight = past * self.weight + new
        for name, score_G in scores.items():
            self.values[name].mul_(past)
            self.values[name].index_add_(0, original[name], score_G, alpha=new)

    def read(self) -> Scores:
        """Mean scores, original order. Only after the first ``update``."""
        assert self.weight > 0.0, "nothing was measured yet"
        return {name: value / self.weight for name, value in self.values.items()}

    def state_dict(self) -> dict[str, Any]:
        """Values and their weight, for a checkpoint."""
        return {"values": self.values, "weight": self.weight}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """What ``state_dict`` gave."""
        self.weight = float(state["weight"])
        for name, value in state["values"].items():
            self.values[name].copy_(value)

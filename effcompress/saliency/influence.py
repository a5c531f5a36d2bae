"""Influence of layers over the cuts so far, made comparable."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

from effcompress.types import Widths, axis_kind, axis_layer


@final
class InfluenceMean:
    """Plain mean over the cuts at which it was measured, by original number of the layer; over
    those of the schedule's stage, where it counts stages.
    """

    def __init__(self) -> None:
        self.begun: Widths = {}
        """Widths when the stage began; empty where no stages are counted: all there was."""
        self._stage = 0
        self._totals: dict[int, float] = {}
        self._counts: dict[int, int] = {}

    def begin(self, stage: int, widths: Widths) -> None:
        """A cut of this stage comes: a new one forgets those before, and begins with ``widths``."""
        if stage != self._stage:
            self._totals, self._counts = {}, {}
            self._stage, self.begun = stage, dict(widths)

    def add(self, influence: Mapping[str, float]) -> None:
        """One measurement: ``layer.3`` -> influence (blocks are left out)."""
        for name, value in influence.items():
            i = axis_layer(name)
            if axis_kind(name) == "layer" and i is not None:
                self._totals[i] = self._totals.get(i, 0.0) + value
                self._counts[i] = self._counts.get(i, 0) + 1

    def normalised(self) -> dict[int, float]:
        """Mean 0 over the layers, largest magnitude 1 (arXiv:2502.03460, sec. 3)."""
        means = {i: total / self._counts[i] for i, total in self._totals.items()}
        if not means:
            return {}
        centre = sum(means.values()) / len(means)
        most = max(abs(value - centre) for value in means.values()) or 1.0
        return {i: (value - centre) / most for i, value in means.items()}

    def state_dict(self) -> dict[str, Any]:
        """Plain JSON, for a checkpoint."""
        layers = {str(i): [total, self._counts[i]] for i, total in self._totals.items()}
        return {"stage": self._stage, "begun": dict(self.begun), "layers": layers}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """What ``state_dict`` gave."""
        self._stage, self.begun = int(state.get("stage", 0)), dict(state.get("begun", {}))
        layers = state.get("layers", state)  # older checkpoints have nothing else
        self._totals = {int(i): float(total) for i, (total, _) in layers.items()}
        self._counts = {int(i): int(count) for i, (_, count) in layers.items()}

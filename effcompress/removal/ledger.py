"""The one owner of what is gone: for every axis, which physical position holds which original unit,
and whether that unit is alive. Plans speak of original units, tensors of physical positions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import final

import torch
from torch import Tensor

from effcompress.errors import SurgeryError
from effcompress.types import Scores


@final
class Ledger:
    """``original[axis]`` [G]: original unit at each physical position; ``alive[axis]`` [G]."""

    def __init__(self, sizes: Mapping[str, int]) -> None:
        self.sizes = dict(sizes)
        self.original: dict[str, Tensor] = {n: torch.arange(g) for n, g in sizes.items()}
        self.alive: dict[str, Tensor] = {
            n: torch.ones(g, dtype=torch.bool) for n, g in sizes.items()
        }

    def widths(self) -> dict[str, int]:
        """Units alive on each axis: the widths of the model as a function."""
        return {name: int(alive.sum()) for name, alive in self.alive.items()}

    def pending(self) -> bool:
        """Whether masked units still take up space."""
        return any(not bool(alive.all()) for alive in self.alive.values())

    def positions(self, name: str, units: Iterable[int]) -> Tensor:
        """Physical positions of original units. Raises SurgeryError if one is gone already."""
        held_G, alive_G = self.original[name], self.alive[name]  # units stay in order
        wanted = torch.tensor(list(units), dtype=torch.long)
        at = torch.searchsorted(held_G, wanted).clamp(max=max(0, len(held_G) - 1))
        there = (held_G[at] == wanted) & alive_G[at] if len(held_G) else wanted < wanted
        if not bool(there.all()):
            gone = int(wanted[~there][0])
            raise SurgeryError(f"mini-group {gone} was removed before", where=name)
        return at

    def bury(self, name: str, positions: Tensor) -> None:
        """Mark physical positions as dead."""
        self.alive[name][positions] = False

    def compact(self, name: str) -> Tensor:
        """Forget the dead units of an axis; returns the physical positions kept, in order."""
        keep = self.alive[name].nonzero().flatten()
        self.original[name] = self.original[name][keep]
        self.alive[name] = torch.ones(len(keep), dtype=torch.bool)
        return keep

    def original_order(self, scores: Scores) -> Scores:
        """Scores of original units in original order, ``inf`` where a unit is gone.

        ``scores[axis]`` is in original order too, but says nothing of who is dead.
        """
        marked: Scores = {}
        for name, score_G in scores.items():
            marked[name] = torch.full_like(score_G, torch.inf)
            units = self.original[name][self.alive[name]]
            marked[name][units] = score_G[units]
        return marked

    def state_dict(self) -> dict[str, Tensor]:
        """Flat tensors, for a checkpoint."""
        found = {f"original.{n}": t for n, t in self.original.items()}
        return found | {f"alive.{n}": t for n, t in self.alive.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """What ``state_dict`` gave."""
        for name in self.sizes:
            self.original[name] = state[f"original.{name}"].clone()
            self.alive[name] = state[f"alive.{name}"].clone()

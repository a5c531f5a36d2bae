"""Records which units are gone. No other state says so.

For every axis: which original unit each physical position holds, and whether it is alive. Plans,
scores and ``plans.jsonl`` use original numbers, tensors physical positions; the two differ after
the first commit.
"""

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
        self.original = {n: torch.arange(g) for n, g in sizes.items()}
        self.alive = {n: torch.ones(g, dtype=torch.bool) for n, g in sizes.items()}

    def widths(self) -> dict[str, int]:
        """Returns the number of living units per axis: the widths of the model as a function."""
        return {name: int(alive.sum()) for name, alive in self.alive.items()}

    def pending(self) -> bool:
        """Returns whether masked units still take up space: a commit would shorten tensors."""
        return any(not bool(alive.all()) for alive in self.alive.values())

    def positions(self, name: str, units: Iterable[int]) -> Tensor:
        """Returns the physical positions of original units; SurgeryError if one is gone already."""
        held_G, alive_G = self.original[name], self.alive[name]
        wanted = torch.tensor(list(units), dtype=torch.long)
        # Cuts keep the order, so `original` is sorted and a binary search finds each unit.
        at = torch.searchsorted(held_G, wanted).clamp(max=max(0, len(held_G) - 1))
        there = wanted < wanted
        if len(held_G):  # index_select: half the time of an index in brackets
            there = (held_G.index_select(0, at) == wanted) & alive_G.index_select(0, at)
        if not all(there.tolist()):
            gone = int(wanted[~there][0])
            raise SurgeryError(f"mini-group {gone} was removed before", where=name)
        return at

    def bury(self, name: str, positions: Tensor) -> None:
        """Marks physical positions as dead."""
        self.alive[name][positions] = False

    def compact(self, name: str) -> Tensor:
        """Drops the dead units of an axis; returns the physical positions kept, in order."""
        keep = self.alive[name].nonzero().flatten()
        self.original[name] = self.original[name][keep]
        self.alive[name] = torch.ones(len(keep), dtype=torch.bool)
        return keep

    def original_order(self, scores: Scores) -> Scores:
        """Returns scores [G of the parent] per axis with ``inf`` where a unit is gone, so that no
        selector picks it. ``scores`` is in original order, too.
        """
        marked: Scores = {}
        for name, score_G in scores.items():
            marked[name] = torch.full_like(score_G, torch.inf)
            units = self.original[name][self.alive[name]]
            marked[name][units] = score_G[units]
        return marked

    def state_dict(self) -> dict[str, Tensor]:
        """Returns flat tensors for a checkpoint."""
        found = {f"original.{n}": t for n, t in self.original.items()}
        return found | {f"alive.{n}": t for n, t in self.alive.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Loads what ``state_dict`` returned."""
        for name in self.sizes:
            self.original[name] = state[f"original.{name}"].clone()
            self.alive[name] = state[f"alive.{name}"].clone()

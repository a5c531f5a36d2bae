"""Tensors of an exported model, each made when it is asked for."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from effcompress.checkpoint import Piece
from effcompress.distributed.rows import gathered_on, whole
from effcompress.types import Shapes


@dataclass(frozen=True)
class Made:
    """How one tensor is made: of ``source`` (None: zeros), whole and on the CPU, by ``change``."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    source: Tensor | None
    change: Callable[[Tensor], Tensor] | None = None

    def of(self, value: Tensor | None) -> Tensor:
        """Returns the tensor, made of the values of ``source``."""
        if value is None:
            return torch.zeros(self.shape, dtype=self.dtype)
        # A rehearsal has no values (meta device).
        value = value.detach() if value.is_meta else value.detach().cpu()
        return value if self.change is None else self.change(value)


def unchanged(tensor: Tensor) -> Made:
    """Returns how a tensor is made that is stored as it is."""
    return Made(tuple(tensor.shape), tensor.dtype, tensor)


@final
class Weights(Mapping[str, Tensor]):
    """Tensors by name. None is kept, so one at a time is in memory beside those of the model;
    shapes need none.
    """

    def __init__(self, made: Mapping[str, Made]) -> None:
        self.made = dict(made)

    @property
    def shapes(self) -> Shapes:
        """Shapes by name."""
        return {name: made.shape for name, made in self.made.items()}

    @property
    def count(self) -> int:
        """Numbers in all tensors."""
        return sum(torch.Size(made.shape).numel() for made in self.made.values())

    def empty(self, name: str) -> Tensor:
        """Returns a tensor of the shape and type, on the meta device."""
        made = self.made[name]
        return torch.empty(made.shape, dtype=made.dtype, device="meta")

    @torch.no_grad()
    def on(self, name: str, rank: int) -> Tensor | None:
        """Makes a tensor on ``rank``; returns None on the others. A collective where the model is
        sharded.
        """
        made = self.made[name]
        if made.source is None:
            return made.of(None)
        value = gathered_on(made.source, rank)
        return None if value is None else made.of(value)

    @torch.no_grad()
    def __getitem__(self, name: str) -> Tensor:
        made = self.made[name]
        return made.of(None if made.source is None else whole(made.source))

    def __iter__(self) -> Iterator[str]:
        return iter(self.made)

    def __len__(self) -> int:
        return len(self.made)


def piece_of(
    weights: Weights,
    names: Sequence[str],
    stored: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]],
) -> Piece:
    """Returns tensors that are stored together, as ``stored`` makes them of the model's own."""
    shown = stored({name: weights.empty(name) for name in names})

    def made(rank: int) -> Mapping[str, Tensor] | None:
        held = {name: weights.on(name, rank) for name in names}
        there = {name: tensor for name, tensor in held.items() if tensor is not None}
        return stored(there) if len(there) == len(held) else None

    shapes = {name: tuple(tensor.shape) for name, tensor in shown.items()}
    return Piece(shapes, {name: tensor.dtype for name, tensor in shown.items()}, made)

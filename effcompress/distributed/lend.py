"""Lends sharded tensors to one process each: it gets them whole, changes them, and all write its
rows back. Several processes work on different tensors at the same time.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from effcompress.distributed.rows import is_sharded, own, rows_of, same_replica
from effcompress.distributed.world import World

Wanted = Mapping[int, Sequence[Tensor]]
"""Rank -> the sharded tensors that are lent to it, of one dtype; equal on all ranks."""


@torch.no_grad()
def lend(world: World, wanted: Wanted) -> list[Tensor]:
    """Returns the tensors that are lent to this rank, whole, in memory of their own. Collective:
    each rank sends its rows to the holder within its replica.
    """
    like, sent = _some(wanted), list[Tensor]()
    for rank in range(world.size):
        sends = [own(t) for t in wanted.get(rank, ()) if _near(t, rank)]
        sent.append(_flat(sends, like))
    mine = wanted.get(world.rank, ())
    parts = world.all_to_all(
        sent, [sum(_count(t, r) for t in mine if _near(t, r)) for r in range(world.size)]
    )
    pieces: list[list[Tensor]] = [[] for _ in mine]
    for rank, part in enumerate(parts):
        near = [k for k, t in enumerate(mine) if _near(t, rank)]
        for k, piece in zip(near, part.split([_count(mine[k], rank) for k in near]), strict=True):
            pieces[k].append(piece)
    return [torch.cat(p).view(t.shape) for t, p in zip(mine, pieces, strict=True)]


@torch.no_grad()
def give_back(world: World, wanted: Wanted, changed: Sequence[Tensor]) -> None:
    """Writes ``changed``, what ``lend`` gave here, back into the rows of all ranks. Collective."""
    like, mine = _some(wanted), wanted.get(world.rank, ())
    sent = [
        _flat([new[_rows(t, rank)] for t, new in zip(mine, changed, strict=True)], like)
        for rank in range(world.size)
    ]
    received = [sum(own(t).numel() for t in wanted.get(rank, ())) for rank in range(world.size)]
    for rank, part in enumerate(world.all_to_all(sent, received)):
        here = [own(t) for t in wanted.get(rank, ())]
        for rows, new in zip(here, part.split([rows.numel() for rows in here]), strict=True):
            rows.copy_(new.view(rows.shape))


def _some(wanted: Wanted) -> Tensor:
    """Returns one of the tensors: its dtype and device are those of all."""
    return own(next(t for each in wanted.values() for t in each))


def _flat(tensors: Sequence[Tensor], like: Tensor) -> Tensor:
    parts = [t.reshape(-1) for t in tensors]
    return torch.cat(parts) if parts else like.new_empty(0)


def _near(tensor: Tensor, rank: int) -> bool:
    return is_sharded(tensor) and same_replica(tensor, rank)


def _rows(tensor: Tensor, rank: int) -> slice:
    assert is_sharded(tensor)
    return rows_of(tensor, rank)


def _count(tensor: Tensor, rank: int) -> int:
    rows = _rows(tensor, rank)
    return (rows.stop - rows.start) * (tensor.numel() // max(1, tensor.shape[0]))

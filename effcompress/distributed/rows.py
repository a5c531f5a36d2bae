"""Operations on a tensor that may be sharded by rows (DTensor) or ordinary.

Code that changes weights uses these functions and needs no case for either. Rows are sharded as
``torch.chunk`` does: of ``n`` rows rank ``r`` of ``W`` holds those from ``r ceil(n / W)`` on, at
most ``ceil(n / W)``; the last ranks may hold none. On a mesh of replicas times shards (HSDP), each
replica has all rows, and ``r`` of ``W`` are those of the last dimension.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, TypeGuard, cast

import torch
import torch.distributed as dist
from torch import Tensor

from effcompress.distributed.deal import shard_rows

if TYPE_CHECKING:  # takes a second to import, and few runs need it
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor


def is_sharded(tensor: Tensor) -> TypeGuard[DTensor]:
    """Returns whether the tensor's rows are sharded."""
    return hasattr(tensor, "placements")  # isinstance would import DTensor for every run


def own(tensor: Tensor) -> Tensor:
    """Returns this rank's rows as an ordinary tensor of the same memory."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def first_row(tensor: Tensor) -> int:
    """Returns the number of the first row that this rank holds."""
    if not is_sharded(tensor):
        return 0
    return shard_rows(tensor.shape[0], *place_on(tensor.device_mesh)).start


def place_on(mesh: DeviceMesh) -> tuple[int, int]:
    """Returns the number of this rank's shard, and over how many ranks rows are sharded."""
    last = mesh.ndim - 1
    return mesh.get_local_rank(last), mesh.size(last)


def rows_of(tensor: DTensor, rank: int) -> slice:
    """Returns the rows that ``rank`` holds."""
    count = tensor.device_mesh.size(tensor.device_mesh.ndim - 1)
    return shard_rows(tensor.shape[0], rank % count, count)


def in_first_replica(tensor: Tensor) -> bool:
    """Returns whether this rank's rows are those of the first replica; without replicas all are."""
    return not is_sharded(tensor) or tensor.device_mesh.ndim == 1 or _replica(tensor) == 0


def same_replica(tensor: DTensor, rank: int) -> bool:
    """Returns whether ``rank`` holds rows of the same replica as this rank."""
    count = tensor.device_mesh.size(tensor.device_mesh.ndim - 1)
    return tensor.device_mesh.ndim == 1 or rank // count == _replica(tensor)


def _replica(tensor: DTensor) -> int:
    return tensor.device_mesh.get_local_rank(0)


def shard_group(tensors: Iterable[Tensor]) -> ProcessGroup | None:
    """Returns the ranks over which one replica's rows are sharded: sums over rows are sums over
    them. None where that is all of them, or nothing is sharded.
    """
    mesh = next((t.device_mesh for t in tensors if is_sharded(t)), None)
    return None if mesh is None or mesh.ndim == 1 else mesh.get_group(mesh.ndim - 1)


def whole(tensor: Tensor) -> Tensor:
    """Returns all rows. For a sharded tensor this is an all-gather that every rank must enter."""
    if not is_sharded(tensor):
        return tensor
    return cast("DTensor", tensor.detach()).full_tensor()


def gathered_on(tensor: Tensor, rank: int) -> Tensor | None:
    """Returns all rows on ``rank`` and None on the others, of which those of its replica send
    theirs; every rank must enter. A tensor that is not sharded is returned on all.
    """
    if not is_sharded(tensor):
        return tensor
    if not same_replica(tensor, rank):
        return None
    mesh, here, count = tensor.device_mesh, own(tensor).detach(), tensor.shape[0]
    (me, size), group = place_on(mesh), mesh.get_group(mesh.ndim - 1)
    # Not by `gather`, whose gloo version holds everything a second time.
    if me != rank % size:
        if len(here):
            dist.send(here.contiguous(), group=group, group_dst=rank % size)
        return None
    whole = here.new_empty((count, *here.shape[1:]))
    for other in range(size):
        rows = whole[shard_rows(count, other, size)]
        if other == me:
            rows.copy_(here)
        elif len(rows):
            dist.recv(rows, group=group, group_src=other)
    return whole


def on_mesh(value: Tensor, mesh: DeviceMesh, device: torch.device) -> DTensor:
    """Shards a tensor that every rank holds: each copies its rows to ``device``. Sends nothing."""
    rows = shard_rows(value.shape[0], *place_on(mesh))
    local = value.detach()[rows].to(device, copy=True).contiguous()
    return _placed(local, value.shape, mesh)


def from_rows(rows: Tensor, count: int, mesh: DeviceMesh, device: torch.device) -> DTensor:
    """Makes a sharded tensor of ``count`` rows, of which each rank gives its own. Sends nothing."""
    return _placed(rows.to(device), (count, *rows.shape[1:]), mesh)


def shard_like(value: Tensor, like: Tensor) -> Tensor:
    """Returns ``value``, which every rank holds whole, sharded as ``like`` is. Sends nothing."""
    return on_mesh(value, like.device_mesh, like.device) if is_sharded(like) else value


@torch.no_grad()
def write_back(tensor: Tensor, value: Tensor) -> None:
    """Writes ``value``, which every rank holds whole (a changed ``whole(tensor)``, or another),
    into the rows that this rank holds. Sends nothing.
    """
    if value is not tensor:
        start, here = first_row(tensor), own(tensor)
        here.copy_(value[start : start + here.shape[0]])


@torch.no_grad()
def add(tensor: Tensor, value: Tensor) -> None:
    """Adds ``value``, which every rank holds whole, each rank in its own rows. Sends nothing."""
    start, here = first_row(tensor), own(tensor)
    here.add_(value[start : start + here.shape[0]])


def clear(tensor: Tensor, dim: int, index: Tensor) -> None:
    """Zeroes positions ``index`` along ``dim``, each rank in its own rows. Sends nothing."""
    here = own(tensor).detach()
    if is_sharded(tensor) and dim == 0:
        index = index - first_row(tensor)
        index = index[(index >= 0) & (index < here.shape[0])]
    if len(index) == 1:  # of one position, index_fill_ takes twice as long
        here.select(dim, int(index)).zero_()
    else:
        here.index_fill_(dim, index.to(here.device), 0.0)


@torch.no_grad()
def set_row(tensor: Tensor, row: int, value: Tensor) -> None:
    """Writes one row, on the rank that holds it. Sends nothing."""
    here, at = own(tensor), row - first_row(tensor)
    if 0 <= at < here.shape[0]:
        here[at] = value.to(here.device, here.dtype)


@torch.no_grad()
def scale(tensor: Tensor, dim: int, factor_N: Tensor, offset: float = 0.0) -> None:
    """Multiplies ``tensor + offset`` by ``factor_N`` along ``dim`` and subtracts ``offset`` again,
    each rank in its own rows. Sends nothing.
    """
    here = own(tensor)
    factor_N = factor_N.to(here.device, here.dtype)
    if is_sharded(tensor) and dim == 0:
        start = first_row(tensor)
        factor_N = factor_N[start : start + here.shape[0]]
    along = factor_N.view([-1 if d == dim else 1 for d in range(here.dim())])
    here.add_(offset).mul_(along).sub_(offset) if offset else here.mul_(along)


def select(tensor: Tensor, keep: Mapping[int, Tensor]) -> Tensor:
    """Selects positions along several dimensions; the result is contiguous and sharded as before.

    If rows of a sharded tensor go, it is gathered and sharded again, because the remaining rows no
    longer lie on the ranks that ``torch.chunk`` would choose; every rank must enter.
    """
    if is_sharded(tensor) and 0 not in keep:
        local = _selected(tensor.to_local(), keep)
        return _placed(local, (tensor.shape[0], *local.shape[1:]), tensor.device_mesh)
    return shard_like(_selected(whole(tensor), keep), tensor)


def _selected(tensor: Tensor, keep: Mapping[int, Tensor]) -> Tensor:
    for dim, index in keep.items():
        tensor = tensor.index_select(dim, index.to(tensor.device))
    return tensor.contiguous()


def _placed(local: Tensor, shape: tuple[int, ...] | torch.Size, mesh: DeviceMesh) -> DTensor:
    from torch.distributed.tensor import DTensor, Replicate, Shard

    # With shape and stride given, from_local does not ask the other ranks for theirs.
    stride = torch.empty(shape, device="meta").stride()
    places = [*[Replicate()] * (mesh.ndim - 1), Shard(0)]
    laid = DTensor.from_local(
        local, mesh, places, run_check=False, shape=torch.Size(shape), stride=stride
    )
    return cast(DTensor, laid)

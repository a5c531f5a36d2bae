"""A tensor of which every process holds some rows, or an ordinary one: whoever changes weights asks
here and need not know which it is.

Rows are dealt out in equal blocks, as ``torch.chunk`` does: of ``n`` rows the process ``r`` of
``W`` has those from ``r ceil(n / W)`` on; the last ones may have none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeGuard, cast

import torch
from torch import Tensor

if TYPE_CHECKING:  # takes a second to import, and few runs need it
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor


def is_sharded(tensor: Tensor) -> TypeGuard[DTensor]:
    """Whether its rows are shared out."""
    return hasattr(tensor, "placements")


def share(count: int, rank: int, size: int) -> slice:
    """The rows of ``count`` that process ``rank`` of ``size`` holds."""
    each = -(-count // size)
    start = min(rank * each, count)
    return slice(start, min(start + each, count))


def own(tensor: Tensor) -> Tensor:
    """The rows that are here, as an ordinary tensor of the same memory."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def first_row(tensor: Tensor) -> int:
    """The number of the first row that is here."""
    if not is_sharded(tensor):
        return 0
    mesh = tensor.device_mesh
    return share(tensor.shape[0], mesh.get_local_rank(), mesh.size()).start


def whole(tensor: Tensor) -> Tensor:
    """All rows. Where they are shared out, all processes must ask, and each gets a copy."""
    if not is_sharded(tensor):
        return tensor
    return cast("DTensor", tensor.detach()).full_tensor()


def on_mesh(value: Tensor, mesh: DeviceMesh, device: torch.device) -> DTensor:
    """A tensor that every process has, shared out: each keeps a copy of its rows, on ``device``. No
    message.
    """
    rows = share(value.shape[0], mesh.get_local_rank(), mesh.size())
    local = value.detach()[rows].to(device, copy=True).contiguous()
    return _placed(local, value.shape, mesh)


def shard_like(value: Tensor, like: Tensor) -> Tensor:
    """``value``, which every process has, laid out as ``like`` is. No message."""
    return on_mesh(value, like.device_mesh, like.device) if is_sharded(like) else value


@torch.no_grad()
def write_back(tensor: Tensor, value: Tensor) -> None:
    """After ``value = whole(tensor)`` was changed on all processes: here are its rows again."""
    if is_sharded(tensor):
        start, here = first_row(tensor), own(tensor)
        here.copy_(value[start : start + here.shape[0]])


@torch.no_grad()
def clear(tensor: Tensor, dim: int, index: Tensor) -> None:
    """Zeros at positions along ``dim``, each process in its own rows: no message."""
    here = own(tensor)
    index = index.to(here.device)
    if is_sharded(tensor) and dim == 0:
        index = index - first_row(tensor)
        index = index[(index >= 0) & (index < here.shape[0])]
    here.index_fill_(dim, index, 0.0)


def select(tensor: Tensor, keep: Mapping[int, Tensor]) -> Tensor:
    """``index_select`` along several dimensions, contiguous and laid out as before. Where rows are
    shared out and some of them go, this one tensor is gathered for a moment, and all must ask.
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
    from torch.distributed.tensor import DTensor, Shard

    stride = torch.empty(shape, device="meta").stride()
    laid = DTensor.from_local(
        local, mesh, [Shard(0)], run_check=False, shape=torch.Size(shape), stride=stride
    )
    return cast(DTensor, laid)

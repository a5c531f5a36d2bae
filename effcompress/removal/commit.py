"""Masked units -> shorter tensors. The only code that shortens a weight.

``torch.utils.swap_tensors`` keeps the Python object, so parameter groups, optimizer state and ties
stay valid; the results are contiguous, so no fused kernel ever meets a narrowed view.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from effcompress.errors import SurgeryError
from effcompress.removal.ledger import Ledger
from effcompress.removal.norms import Norm, shorten
from effcompress.types import GroupSet


@torch.no_grad()
def commit(
    sets: Sequence[GroupSet],
    params: Mapping[str, nn.Parameter],
    ledger: Ledger,
    *,
    optimizer: Optimizer | None = None,
    norms: Iterable[Norm] = (),
) -> list[str]:
    """Cut every dead unit out of weights and moments, in original order.

    ``sets`` describe the model as it physically is. Returns the names of the parameters that were
    shortened. The model computes the same function before and after.
    """
    stays: dict[str, dict[int, Tensor]] = defaultdict(dict)
    for s in sets:
        dead = ~ledger.alive[s.name]
        if not bool(dead.any()):
            continue
        keep = ledger.compact(s.name)
        for m in s.members:
            # A dimension may be shared by several segments: each takes out what is its own.
            every = torch.ones(params[m.param].shape[m.dim], dtype=torch.bool)
            alive = stays[m.param].setdefault(m.dim, every)
            alive[m.index_GB[dead].flatten()] = False
        if s.kind == "hidden":
            for norm in norms:
                shorten(norm, s.size, len(keep))
    for name, by_dim in stays.items():
        kept = {dim: alive.nonzero().flatten() for dim, alive in by_dim.items()}
        shrink(params[name], kept, optimizer, name)
    return list(stays)


def shrink(
    p: nn.Parameter, keep: Mapping[int, Tensor], optimizer: Optimizer | None, name: str
) -> None:
    """Keep only the given positions along each dimension, of ``p`` and of its optimizer state.

    Raises SurgeryError when a gradient is alive, or when something still refers to the tensor.
    """
    if p.grad is not None:
        raise SurgeryError(
            "removal happens between optimizer steps, but a gradient is alive",
            where=name,
            fix="Call optimizer.zero_grad(set_to_none=True) first.",
        )
    old = p.shape
    state = optimizer.state[p] if optimizer is not None and p in optimizer.state else {}
    for key, value in state.items():
        if torch.is_tensor(value) and value.dim() > 0 and value.shape == old:
            state[key] = _select(value, keep)
    shorter = nn.Parameter(_select(p.detach(), keep), requires_grad=p.requires_grad)
    try:
        torch.utils.swap_tensors(p, shorter)
    except RuntimeError as error:
        raise SurgeryError(
            f"the parameter cannot be exchanged: {str(error).splitlines()[0]}",
            where=name,
            fix="Drop every loss and output of the last step before cutting.",
        ) from error


def _select(tensor: Tensor, keep: Mapping[int, Tensor]) -> Tensor:
    for dim, index in keep.items():
        tensor = tensor.index_select(dim, index.to(tensor.device))
    return tensor.contiguous()

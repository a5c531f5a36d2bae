"""Masked units -> shorter tensors. The only code that shortens a weight.

``torch.utils.swap_tensors`` keeps the Python object, so parameter groups, optimizer state and ties
stay valid; the results are contiguous, so no fused kernel ever meets a narrowed view.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from effcompress.distributed import select
from effcompress.errors import SurgeryError
from effcompress.removal.ledger import Ledger
from effcompress.removal.norms import norms, shorten
from effcompress.types import WHOLE, AxisMap, GroupSet


@torch.no_grad()
def commit(
    sets: Sequence[GroupSet],
    module: nn.Module,
    axes: AxisMap,
    ledger: Ledger,
    *,
    optimizer: Optimizer | None = None,
) -> dict[str, dict[int, Tensor]]:
    """Cut every dead unit out of weights and moments, in original order.

    ``sets`` and ``axes`` describe the model as it physically is. Layers and blocks that are dead
    keep their tensors; ``removal/depth.py`` takes them out. Returns, for each parameter that was
    shortened, the positions kept along each dimension. The model computes the same
    function before and after.
    """
    params = dict(module.named_parameters())
    widths = {**axes.widths, **ledger.widths()}
    for norm in norms(module, axes):
        if length := norm.length(widths):
            shorten(norm, length)
    stays: dict[str, dict[int, Tensor]] = defaultdict(dict)
    gone: set[str] = set()
    for s in sets:
        dead = ~ledger.alive[s.name]
        if not bool(dead.any()):
            continue
        for m in s.members:
            if m.dim == WHOLE:
                gone.add(m.param)
                continue
            # A dimension may be shared by several segments: each takes out what is its own.
            every = torch.ones(params[m.param].shape[m.dim], dtype=torch.bool)
            alive = stays[m.param].setdefault(m.dim, every)
            alive[m.index_GB[dead].flatten()] = False
        ledger.compact(s.name)
    kept = {name: _kept(dims) for name, dims in stays.items() if name not in gone}
    for name, keep in kept.items():
        shrink(params[name], keep, optimizer, name)
    return kept


def _kept(dims: Mapping[int, Tensor]) -> dict[int, Tensor]:
    return {dim: alive.nonzero().flatten() for dim, alive in dims.items()}


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
            state[key] = select(value, keep)
    shorter = nn.Parameter(select(p.detach(), keep), requires_grad=p.requires_grad)
    try:
        torch.utils.swap_tensors(p, shorter)
    except RuntimeError as error:
        raise SurgeryError(
            f"the parameter cannot be exchanged: {str(error).splitlines()[0]}",
            where=name,
            fix="Drop every loss and output of the last step before cutting.",
        ) from error

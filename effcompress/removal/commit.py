"""Shortens the tensors of masked units. No other code shortens a weight.

``torch.utils.swap_tensors`` keeps the Python object, so parameter groups, optimizer state and ties
stay valid. The results are contiguous copies, never narrowed views: fused optimizers and kernels
assume dense strides, and a view would keep the memory of the full tensor alive.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from effcompress.distributed.rows import select
from effcompress.errors import SurgeryError, first_line
from effcompress.removal.ledger import Ledger
from effcompress.removal.modules import selection_buffers
from effcompress.removal.norms import norms, shorten
from effcompress.removal.novices import keeps_rows
from effcompress.removal.optimizer import moments, require_no_gradient
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
    """Cuts every dead unit out of weights and moments, keeping the order of those that stay.

    ``sets`` and ``axes`` describe the model as it physically is. Dead layers and blocks keep their
    tensors; ``modules.cut_depth`` removes them as modules. The model computes the same function
    before and after.

    Returns parameter -> dimension -> positions kept, for each parameter that was shortened.
    """
    params = dict(module.named_parameters())
    widths = {**axes.widths, **ledger.widths()}
    # Gains first: their factors need the physical length, which shrinking changes.
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
            # Several segments may lie on one dimension (fused qkv): each clears its own positions.
            every = torch.ones(params[m.param].shape[m.dim], dtype=torch.bool)
            alive = stays[m.param].setdefault(m.dim, every)
            alive[m.index_GB[dead].flatten()] = False
        keep = ledger.compact(s.name)
        if s.kind == "expert" and not keeps_rows(axes, s.name):
            for owner, name, buffer in selection_buffers(module, axes, s.name):
                setattr(owner, name, buffer[keep.to(buffer.device)])
    kept = {
        name: {dim: alive.nonzero().flatten() for dim, alive in dims.items()}
        for name, dims in stays.items()
        if name not in gone
    }
    for name, keep in kept.items():
        shrink(params[name], keep, optimizer, name)
    return kept


def shrink(
    p: nn.Parameter, keep: Mapping[int, Tensor], optimizer: Optimizer | None, name: str
) -> None:
    """Keeps only the given positions along each dimension of ``p`` and of its optimizer moments.

    Raises SurgeryError when a gradient is alive, or when something else refers to the tensor.
    """
    require_no_gradient(p, name)
    # Listed first: replacing entries while iterating over the state is not allowed. The state's key
    # is the Parameter object, which survives the swap below.
    for key, value in [*moments(optimizer, p)]:
        assert optimizer is not None
        optimizer.state[p][key] = select(value, keep)
    shorter = nn.Parameter(select(p.detach(), keep), requires_grad=p.requires_grad)
    try:
        # Fails while autograd nodes or weak references hold the tensor, as a loss of the last step.
        torch.utils.swap_tensors(p, shorter)
    except RuntimeError as error:
        raise SurgeryError(
            f"the parameter cannot be exchanged: {first_line(error)}",
            where=name,
            fix="Drop every loss and output of the last step before cutting.",
        ) from error

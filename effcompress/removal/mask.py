"""Removing by zeroing: the removal itself, mathematically. Changes no shape, takes milliseconds.

Weights, biases and optimizer moments of a mini-group become zero and stay zero: no gradient reaches
them, and weight decay keeps zero at zero. Norms count living channels only (``removal/norms.py``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from effcompress.errors import SurgeryError
from effcompress.registry import Bound
from effcompress.removal.ledger import Ledger
from effcompress.removal.norms import Norm, narrow
from effcompress.removal.optimizer import moments
from effcompress.types import GroupSet, Plan


@torch.no_grad()
def mask(
    plan: Plan,
    sets: Sequence[GroupSet],
    params: Mapping[str, nn.Parameter],
    ledger: Ledger,
    *,
    optimizer: Optimizer | None = None,
    norms: Iterable[Norm] = (),
    repairs: Sequence[Bound] = (),
) -> None:
    """Zero the mini-groups of a plan in place and enter them in the ledger.

    ``sets`` describe the model as it physically is; the plan names original units.

    Raises SurgeryError: a set of the plan that is not there, a unit that is gone, or gradients that
    are still alive (they belong to weights that change here).
    """
    by_name = {s.name: s for s in sets}
    for name, units in plan.items():
        if name not in by_name:
            raise SurgeryError(
                "the plan names a group set that the model does not have", where=name
            )
        positions = ledger.positions(name, units)
        chosen = by_name[name]
        for member in chosen.members:
            p = params[member.param]
            if p.grad is not None:
                raise SurgeryError(
                    "removal happens between optimizer steps, but a gradient is alive",
                    where=member.param,
                    fix="Call optimizer.zero_grad(set_to_none=True) first.",
                )
            index = member.index_GB[positions].flatten().to(p.device)
            _zero(p, member.dim, index)
            for moment in moments(optimizer, p):
                _zero(moment, member.dim, index)
        before = int(ledger.alive[name].sum())
        ledger.bury(name, positions)
        if chosen.kind == "hidden":
            for norm in norms:
                narrow(norm, chosen.size, before, before - len(units), repairs)


def _zero(tensor: Tensor, dim: int, index: Tensor) -> None:
    tensor.index_fill_(dim, index, 0.0)

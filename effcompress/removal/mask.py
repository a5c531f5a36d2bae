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
from effcompress.types import GroupSet, Member, Plan


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
            index = member.index_GB[positions].flatten()
            _silence(member, params[member.param], index, optimizer)
        before = int(ledger.alive[name].sum())
        ledger.bury(name, positions)
        if chosen.kind == "hidden":
            for norm in norms:
                narrow(norm, chosen.size, before, before - len(units), repairs)


def _silence(member: Member, p: nn.Parameter, index: Tensor, optimizer: Optimizer | None) -> None:
    """Zero positions of one parameter and of its optimizer state."""
    if p.grad is not None:
        raise SurgeryError(
            "removal happens between optimizer steps, but a gradient is alive",
            where=member.param,
            fix="Call optimizer.zero_grad(set_to_none=True) first.",
        )
    index = index.to(p.device)
    for tensor in (p, *moments(optimizer, p)):
        tensor.index_fill_(member.dim, index, 0.0)

"""Removing by zeroing: the removal itself, mathematically. Changes no shape, takes milliseconds.

Weights, biases and optimizer moments of a mini-group become zero and stay zero: no gradient reaches
them, and weight decay keeps zero at zero. (The one exception: the bias of a block that is masked
whole would learn again, so layers and blocks are committed at once.) Norms count living channels
only (``removal/norms.py``), routers living experts only (``removal/routers.py``).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from effcompress.distributed import clear
from effcompress.errors import SurgeryError
from effcompress.registry import Bound
from effcompress.removal import routers
from effcompress.removal.compensate import Inputs, compensate
from effcompress.removal.ledger import Ledger
from effcompress.removal.norms import narrow, norms
from effcompress.removal.optimizer import moments
from effcompress.removal.repairs import for_norms
from effcompress.types import WHOLE, AxisMap, GroupSet, Member, Plan


@torch.no_grad()
def mask(
    plan: Plan,
    sets: Sequence[GroupSet],
    module: nn.Module,
    axes: AxisMap,
    ledger: Ledger,
    *,
    optimizer: Optimizer | None = None,
    repairs: Sequence[Bound] = (),
    inputs: Inputs | None = None,
) -> None:
    """Zero the mini-groups of a plan in place and enter them in the ledger.

    ``sets`` and ``axes`` describe the model as it physically is; the plan names original units.
    With ``inputs``, what the linear layers read, the repairs update the weights that stay.

    Raises SurgeryError: a set of the plan that is not there, a unit that is gone, or gradients that
    are still alive (they belong to weights that change here).
    """
    by_name = {s.name: s for s in sets}
    params = dict(module.named_parameters())
    the_norms = list(norms(module, axes))
    for name in plan.keys() - by_name.keys():
        raise SurgeryError("the plan names a group set that the model does not have", where=name)
    if inputs is not None:
        compensate(plan, sets, module, ledger, inputs, repairs)
    for name, units in plan.items():
        positions = ledger.positions(name, units)
        for member in by_name[name].members:
            index = member.index_GB[positions].flatten()
            _silence(member, params[member.param], index, optimizer)
        before = {**axes.widths, **ledger.widths()}
        ledger.bury(name, positions)
        after = {**before, name: before[name] - len(units)}
        for norm in the_norms:
            if name in norm.segment.names:
                narrow(norm, norm.length(before), norm.length(after), for_norms(repairs))
    attend(module, axes, ledger)


def attend(module: nn.Module, axes: AxisMap, ledger: Ledger) -> None:
    """Tell the modules that must know it which units are alive: centred norms, routers."""
    if axes.family.centred and "hidden" in ledger.alive:
        for norm in norms(module, axes):
            norm.attend(ledger.alive["hidden"])
    for j, i in enumerate(axes.depth.layers):
        alive_G = ledger.alive.get(f"expert.{i}")
        if alive_G is not None and f"expert.{i}" in axes.by_axis:
            path = axes.family.router.replace("{i}", str(j))
            routers.attend(module.get_submodule(path), alive_G)


def _silence(member: Member, p: nn.Parameter, index: Tensor, optimizer: Optimizer | None) -> None:
    """Zero positions of one parameter and of its optimizer state."""
    if p.grad is not None:
        raise SurgeryError(
            "removal happens between optimizer steps, but a gradient is alive",
            where=member.param,
            fix="Call optimizer.zero_grad(set_to_none=True) first.",
        )
    for tensor in (p, *moments(optimizer, p)):
        if member.dim == WHOLE:
            tensor.zero_()
        else:
            clear(tensor, member.dim, index)

"""Removes mini-groups by zeroing them: mathematically the removal itself, without a new shape.

Weights, biases and optimizer moments of a mini-group become zero and stay zero: what it computes is
multiplied by zeros on both sides, so no gradient reaches it, AdamW's update of zero moments is
zero, and decoupled weight decay keeps zero at zero. One exception: the last bias of a block that is
masked whole still gets a gradient, so layers and blocks are committed at once.

Two kinds of module would notice a masked unit and are told which units are alive. Norms average
over living channels only (``norms.py``). Routers choose among living experts only: a router row of
zeros has logit 0, not minus infinity, and would still be chosen.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from effcompress.distributed.rows import clear
from effcompress.errors import SurgeryError
from effcompress.registry import Bound
from effcompress.removal.compensate import Inputs, compensate
from effcompress.removal.ledger import Ledger
from effcompress.removal.modules import per_expert, router_of
from effcompress.removal.norms import heed, narrow, normalised, norms
from effcompress.removal.novices import keeps_rows, settle, substitute
from effcompress.removal.optimizer import moments, require_no_gradient
from effcompress.removal.repairs import for_norms
from effcompress.types import WHOLE, AxisMap, GroupSet, Member, Plan


@torch.no_grad()
def mask(
    plan: Plan,
    sets: Sequence[GroupSet],
    module: nn.Module,
    axes: AxisMap,
    ledger: Ledger,
    optimizer: Optimizer | None = None,
    repairs: Sequence[Bound] = (),
    inputs: Inputs | None = None,
    outputs: Mapping[str, Tensor] | None = None,
) -> None:
    """Zeroes the mini-groups of a plan in place and marks them dead in the ledger.

    ``sets`` and ``axes`` describe the model as it physically is; the plan names original units.
    With ``inputs`` (statistics of what linear layers read) the repairs update weights that stay,
    with ``outputs`` (the mean of what experts return) they make the constants in experts' places.

    Raises SurgeryError for a set that the model does not have, a unit that is gone already, or a
    gradient that is still alive.
    """
    by_name = {s.name: s for s in sets}
    params = dict(module.named_parameters())
    over_norms = plan.keys() & normalised(axes)
    the_norms = list(norms(module, axes)) if over_norms else []
    for name in plan.keys() - by_name.keys():
        raise SurgeryError("the plan names a group set that the model does not have", where=name)
    # Before anything is zeroed: a repair reads the columns that are about to go.
    if inputs is not None:
        compensate(plan, sets, module, ledger, inputs, repairs)
    substitute(plan, module, axes, ledger, outputs or {}, repairs)
    widths = {**axes.widths, **ledger.widths()}
    for name, units in plan.items():
        positions = ledger.positions(name, units)
        index: dict[int, Tensor] = {}  # most members of a set share one table of positions
        for member in by_name[name].members:
            table_GB = member.index_GB
            if id(table_GB) not in index:
                index[id(table_GB)] = table_GB.index_select(0, positions).flatten()
            _zero(member, params[member.param], index[id(table_GB)], optimizer)
        ledger.bury(name, positions)
        _require_even(by_name[name], ledger)
        over = [norm for norm in the_norms if name in norm.segment.names]
        before = [norm.length(widths) for norm in over]
        widths[name] -= len(units)
        for norm, length in zip(over, before, strict=True):
            narrow(norm, length, norm.length(widths), for_norms(repairs))
    attend(module, axes, ledger)


def _require_even(s: GroupSet, ledger: Ledger) -> None:
    """Raises SurgeryError where one part of a set has lost more units than another."""
    if s.parts == 1:
        return
    left = ledger.alive[s.name].view(s.parts, -1).sum(1)
    if bool((left != left[0]).any()):
        raise SurgeryError(
            f"the {s.parts} groups that the router chooses among would keep {left.tolist()} units",
            where=s.name,
            fix="Remove equally many of each group.",
        )


def attend(module: nn.Module, axes: AxisMap, ledger: Ledger) -> None:
    """Passes the living channels to centred norms and the living experts to routers, or, where
    these keep their rows, to the mixtures.
    """
    settle(module, axes, ledger)
    if axes.family.centred and "hidden" in ledger.alive:
        for norm in norms(module, axes):
            norm.attend(ledger.alive["hidden"])
    for name in axes.axes("expert"):
        if name in ledger.alive and not keeps_rows(axes, name):
            route(module, axes, name, ledger.alive[name])


def route(module: nn.Module, axes: AxisMap, name: str, alive_G: Tensor) -> None:
    """Lets the router of one layer (by the axis of its experts, ``expert.3``) choose among the
    living experts alone.
    """
    heed(router_of(module, axes, name)[1], alive_G, _live)


def _zero(member: Member, p: nn.Parameter, index: Tensor, optimizer: Optimizer | None) -> None:
    """Zeroes positions of one parameter and of its optimizer moments."""
    require_no_gradient(p, member.param)
    for tensor in (p, *(moment for _, moment in moments(optimizer, p))):
        if member.dim == WHOLE:
            tensor.zero_()
        else:
            clear(tensor, member.dim, index)


def _among(x_TA: Tensor, alive_A: Tensor, units: int, gone: float = -torch.inf) -> Tensor:
    """Returns values of the living experts among those of all, ``[T, E]``."""
    return x_TA.new_full((x_TA.shape[0], units), gone).index_copy(1, alive_A, x_TA)


@functools.cache
def _live(stock: type[nn.Module]) -> type[nn.Module]:
    def forward(self: Any, hidden: Tensor, *more: Tensor) -> tuple[Tensor, ...]:
        """Runs the stock router on the living rows; expert numbers stay the physical ones.
        ``more``: what the mixture holds of every expert and passes on.
        """
        live, alive_A = type(self), self.alive_G.nonzero().flatten().to(self.weight.device)
        count, self.num_experts = self.num_experts, len(alive_A)
        # The stock class for one call, or functional_call would come back to this forward.
        self.__class__ = stock
        try:
            units = self.weight.shape[0]
            held = per_expert((*self.named_parameters(), *self.named_buffers()), units)
            rows = {name: t.index_select(dim, alive_A) for name, (t, dim) in held.items()}
            passed = (hidden, *(t[alive_A] for t in more))
            found = torch.func.functional_call(self, rows, passed)
        finally:
            self.__class__, self.num_experts = live, count
        if len(found) == 2:  # weights of all experts, and logits
            return _among(found[0], alive_A, units, 0.0), _among(found[1], alive_A, units)
        logits_TA, score_TK, index_TK = found
        return _among(logits_TA, alive_A, units), score_TK, alive_A[index_TK]

    return type(f"Live{stock.__name__}", (stock,), {"stock": stock, "forward": forward})

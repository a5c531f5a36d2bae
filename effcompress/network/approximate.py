"""Measures removals that are approximate: how far logits are from those of masked outputs alone.

OLMo2 normalises queries and keys across all heads. Without some of the heads the norm averages over
fewer values and scales the others anew. The smaller model is defined that way; the record says how
far its logits move.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from effcompress.distributed.repeated import aside
from effcompress.distributed.rows import clear, own
from effcompress.network.pruned_model import PrunedModel
from effcompress.removal.selftest import logits_of
from effcompress.types import Family, Plan, axis_kind


def split(family: Family, plan: Plan) -> tuple[Plan, Plan]:
    """Splits a plan into the part that is approximate in this family, and the rest."""
    inexact = {n: units for n, units in plan.items() if axis_kind(n) in family.approximate}
    return inexact, {n: units for n, units in plan.items() if n not in inexact}


@contextmanager
def removed_alone(
    pruned: PrunedModel, plan: Plan, ids_BT: Tensor, to_call: nn.Module
) -> Iterator[list[float]]:
    """Runs the removal of ``plan`` inside; afterwards the yielded list holds the largest difference
    of a logit from the model in which the same units only contribute nothing. ``to_call``: the
    module of ``pruned``, or its FSDP2 wrapper.
    """
    seen: list[float] = []
    with aside():
        alone = _silenced(pruned, plan, ids_BT, to_call)
    yield seen
    with aside():
        seen.append(float((logits_of(to_call, ids_BT) - alone).abs().max()))


@torch.no_grad()
def _silenced(pruned: PrunedModel, plan: Plan, ids_BT: Tensor, to_call: nn.Module) -> Tensor:
    """Returns the logits with zeros in the columns that read the units' outputs; restores them."""
    params, kept = pruned.parameters(), {}
    by_name = {s.name: s for s in pruned.sets}
    for name in plan:
        positions = pruned.ledger.positions(name, plan[name])
        for member in by_name[name].members:
            if member.dim == 1:
                p = params[member.param]
                kept.setdefault(member.param, own(p.detach()).clone())
                clear(p.detach(), 1, member.index_GB[positions].flatten())
    logits = logits_of(to_call, ids_BT)
    for param, value in kept.items():
        own(params[param].detach()).copy_(value)
    return logits

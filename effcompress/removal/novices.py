"""Constants in place of experts that go (MoNE, arXiv:2507.00390): the router keeps their rows, and
sends tokens to the constants with the weights it always gave them.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from effcompress.distributed.rows import set_row
from effcompress.errors import SurgeryError
from effcompress.registry import Bound
from effcompress.removal.ledger import Ledger
from effcompress.removal.repairs import for_experts
from effcompress.types import AxisMap, Plan, axis_layer


def keeps_rows(axes: AxisMap, name: str) -> bool:
    """Whether the router of the experts on axis ``name`` (``expert.3``) keeps its rows."""
    return name.replace("expert", "route") in axes.by_axis


def experts_of(module: nn.Module, axes: AxisMap, name: str) -> Any:
    """Returns the module of the experts on axis ``name``."""
    layer = axis_layer(name)
    assert layer is not None
    at = str(axes.depth.layers.index(layer))
    return module.get_submodule(axes.family.experts.replace("{i}", at))


def mixtures(axes: AxisMap, ledger: Ledger) -> Iterator[str]:
    """Yields the axes of experts that may go while their router keeps its rows."""
    for name in axes.axes("expert"):
        if name in ledger.alive and keeps_rows(axes, name):
            yield name


def settle(module: nn.Module, axes: AxisMap, ledger: Ledger) -> None:
    """Tells every such mixture where the weights of each expert are, and which are gone."""
    for name in mixtures(axes, ledger):
        place_E = torch.full((ledger.sizes[name],), -1)
        alive_G = ledger.alive[name]
        place_E[ledger.original[name][alive_G]] = alive_G.nonzero().flatten()
        experts_of(module, axes, name).place = place_E.tolist()


@torch.no_grad()
def substitute(
    plan: Plan,
    module: nn.Module,
    axes: AxisMap,
    ledger: Ledger,
    means: Mapping[str, Tensor],
    repairs: Sequence[Bound],
) -> None:
    """Writes the constants of the experts that this plan removes. ``means``: axis of experts -> the
    mean of what each returns, ``[E, hidden]`` by physical number.

    Raises PluginError when a repair returns another shape, SurgeryError for an expert that was not
    measured.
    """
    for name in mixtures(axes, ledger):
        for unit in plan.get(name, []) if for_experts(repairs) else []:
            if name not in means:
                raise SurgeryError("what its experts return was not measured", where=name)
            constant_D = means[name][ledger.positions(name, [unit])[0]]
            for repair in for_experts(repairs):
                constant_D = repair(output_mean=constant_D)
                wanted = f"for a mean of shape {tuple(means[name].shape[1:])}"
                repair.plugin.require_shape(constant_D, wanted, means[name].shape[1:])
            set_row(experts_of(module, axes, name).novices.detach(), unit, constant_D)

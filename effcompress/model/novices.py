"""Constants in place of experts: a mixture whose router keeps its rows when experts go."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from effcompress.errors import CoverageError
from effcompress.types import Config, Family, Fields

if TYPE_CHECKING:
    from torch import nn


def novel(family: Family, config: Config) -> Fields:
    """Returns the configuration of the model with constants, a row for every expert. Raises
    CoverageError where the family has no mixture that may have them.
    """
    if not family.experts:
        raise CoverageError(
            f"family '{family.name}' has no experts, in whose place a constant could come",
            fix="Take the repair of experts out.",
        )
    if family.inputs_weighed:
        raise CoverageError(
            f"the experts of '{family.name}' all read every token, and a constant in the place of "
            "one would be added to those that the router sends elsewhere",
            fix="Take the repair of experts out.",
        )
    return {**config, "novices": True}


def add_novices(module: nn.Module, family: Family) -> int:
    """Adds the constants, all zero, to every mixture that has none; returns how many parameters
    that adds. The model computes the same.
    """
    from effcompress.model import modeling_pruned

    stored: Any = module
    stored.config.novices = True
    inside = family.experts.rpartition("{i}.")[2]
    added = 0
    for layer in module.get_submodule(family.layers).children():
        experts = dict(layer.named_modules()).get(inside)
        if experts is not None and not hasattr(experts, "novices"):
            down = next(p for n, p in experts.named_parameters() if n == "down_proj")
            hidden = down.shape[3 - family.expert_inputs]
            modeling_pruned.novel(experts, len(down), hidden)
            added += len(down) * hidden
    return added

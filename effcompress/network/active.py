"""The parameters that one token meets: of routed experts only those that it is sent to."""

import math
from collections.abc import Iterator

from effcompress.types import AxisMap, Config, Widths


def routed(axes: AxisMap, config: Config, experts: int) -> int:
    """Returns how many of so many experts a token is multiplied with; 0 without experts."""
    if axes.family.inputs_weighed:
        return experts
    name = axes.family.aliases.get("num_experts_per_tok", "num_experts_per_tok")
    return min(config.get(name) or 0, experts)


def expert_axis(axes: AxisMap, param: str) -> str:
    """Returns the expert axis of a parameter that holds routed experts; empty for others (a router
    lies on the same axis, but every token is multiplied with all of it).
    """
    experts = [n for s in axes.by_param[param] for n in s.names if n.startswith("expert.")]
    dimensions = 2 if param.endswith("bias") else 3
    return experts[0] if experts and len(axes.shapes[param]) >= dimensions else ""


Term = tuple[tuple[str, ...], int]
"""A product of widths of axes, and its factor."""


def active_terms(axes: AxisMap, config: Config, param: str) -> Iterator[Term]:
    """``AxisMap.terms`` of what a token meets of a parameter: those of one expert times the number
    of experts that it is sent to, which is the same for every number that there may be.
    """
    experts = expert_axis(axes, param)
    met = routed(axes, config, axes.widths[experts]) if experts else 0
    for names, factor in axes.terms(param):
        if not experts or axes.family.inputs_weighed:
            yield names, factor
        else:
            yield tuple(name for name in names if name != experts), factor * met


def active_params(axes: AxisMap, config: Config, widths: Widths | None = None) -> int:
    """Returns the parameters that a token meets in a model of these widths."""
    wide = {**axes.widths, **(widths or {})}
    terms = (term for param in axes.shapes for term in active_terms(axes, config, param))
    return sum(factor * math.prod(wide[name] for name in names) for names, factor in terms)

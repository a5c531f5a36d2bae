"""From scores to the errors of levels, and from a choice of levels to a plan. Changes no tensor."""

from collections.abc import Sequence

import torch
from torch import Tensor

from effcompress.registry import Bound
from effcompress.selection.choose import Choice, least_salient
from effcompress.selection.levels import Module, widths_of
from effcompress.types import AxisMap, GroupSet, Plan, Scores, axis_kind


def errors_of(modules: Sequence[Module], scores: Scores, criterion: Bound) -> list[list[float]]:
    """Returns the error of every level: the sum of the saliency of the units that go with it. A
    criterion of whole layers says itself what the error then is (``Plugin.cumulative``).
    """
    found = []
    for module in modules:
        value_G = torch.sort(scores[module.name].double(), stable=True).values
        error_G = value_G if criterion.plugin.cumulative else value_G.cumsum(0)
        gone = (module.size - width for width in module.widths)
        found.append([float(error_G[n - 1]) if n else 0.0 for n in gone])
    return found


def units_gone(module: Module, score_G: Tensor, width: int) -> list[int]:
    """Returns the units that go where ``width`` stay: the least salient ones."""
    return least_salient(score_G, module.size - width)[0]


def chosen(
    sets: Sequence[GroupSet],
    modules: Sequence[Module],
    width_M: Sequence[int],
    scores: Scores,
    axes: AxisMap,
) -> Choice:
    """Returns the choice of widths as a plan. ``scores[set]`` is ``[G]``, of the parent's units."""
    plan: Plan = {}
    raw: dict[str, list[float]] = {}
    removed: dict[str, int] = {}
    units: dict[str, int] = {}
    for module, width in zip(modules, width_M, strict=True):
        gone = module.size - width
        if not gone:
            continue
        name = module.name if width else module.block
        plan[name], raw[name] = least_salient(scores[module.name], gone)
        if name == module.block:
            plan[name], raw[name] = [0], [sum(raw[name])]
        kind = axis_kind(name)
        removed[kind] = removed.get(kind, 0) + len(plan[name])
        units[kind] = units.get(kind, 0) + gone
    widths = {s.name: s.size for s in sets} | widths_of(modules, width_M)
    params = axes.count(widths)
    widths |= {m.name: 0 for m in modules if m.block and not widths[m.block]}
    lowest = _lowest(modules, scores, axes)
    return Choice(plan, raw, lowest, removed, units, params, widths, exhausted=True)


def _lowest(modules: Sequence[Module], scores: Scores, axes: AxisMap) -> dict[str, float]:
    """Kind -> lowest saliency of a unit for each parameter that it frees."""
    lowest: dict[str, float] = {}
    for module in modules:
        freed = axes.freed(module.name, axes.widths)
        value = float(scores[module.name].min()) / freed
        lowest[module.kind] = min(value, lowest.get(module.kind, value))
    return lowest

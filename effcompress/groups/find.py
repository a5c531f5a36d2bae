"""Finds the group sets of a model: axes of its parameters, limited by the pruning space."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from effcompress.errors import CoverageError
from effcompress.groups.axes import from_shapes
from effcompress.groups.spaces import stays
from effcompress.registry import Bound
from effcompress.types import AxisMap, Config, Depth, Family, GroupSet, axis_kind

if TYPE_CHECKING:
    from torch import nn


def axes_of(
    module: nn.Module, family: Family, config: Config, depth: Depth | None = None
) -> AxisMap:
    """Resolves the axes of a module (on any device, meta included). ``depth``: the configuration's
    layers that it has (default: all).

    A tied weight is one parameter and appears once, under its first name.
    """
    shapes = {name: tuple(p.shape) for name, p in module.named_parameters()}
    return from_shapes(family, config, shapes, depth)


def find(axes: AxisMap, space: Sequence[Bound]) -> list[GroupSet]:
    """Returns the group sets of a pruning space, in the order of the space and of the layers.

    Raises CoverageError when a space finds nothing, its range is empty, or two spaces claim the
    same axis.
    """
    found: dict[str, GroupSet] = {}
    for bound in space:
        sets = bound(axes=axes)
        if not isinstance(sets, list | tuple) or any(not isinstance(s, GroupSet) for s in sets):
            fix = "A space returns a list of GroupSet, or yields them."
            raise bound.plugin.error("returned something else than group sets", fix)
        sets = [s for s in sets if s.kind not in axes.family.fixed]
        if not sets:
            raise _nothing(bound.name, axes)
        if sets[0].after >= sets[0].until:
            raise CoverageError(
                f"space '{bound.name}': after {sets[0].after:.0%} is not below until "
                f"{sets[0].until:.0%}, so nothing of it may ever go",
                fix="Name a smaller `after` or a larger `until`.",
            )
        for s in sets:
            if s.name in found:
                raise CoverageError(f"two spaces claim the axis '{s.name}'", where=bound.name)
            found[s.name] = s
    _check_steps(found.values())
    return list(found.values())


def _nothing(space: str, axes: AxisMap) -> CoverageError:
    """The error of a space that finds nothing, or only what the family never cuts."""
    family, kinds = axes.family, dict.fromkeys(axis_kind(name) for name in axes.by_axis)
    why = family.unreached.get(space)
    if space in family.fixed and space in kinds:
        return stays(space, space, family)
    there = [kind for kind in kinds if kind not in family.fixed]
    return CoverageError(
        f"space '{space}' finds nothing to prune in family '{family.name}'"
        + (f": {why}" if why else ""),
        fix=f"Axes of this model: {', '.join(there)}.",
    )


def _check_steps(sets: Iterable[GroupSet]) -> None:
    """Raises CoverageError where lockstep cannot reach multiples: every set of a kind loses equally
    many units, so their widths must have the same remainder.
    """
    rests: dict[str, set[int]] = defaultdict(set)
    for s in sets:
        if s.scope == "lockstep":
            rests[s.kind].add(s.size % s.multiple)
    for kind, found in rests.items():
        if len(found) > 1:
            raise CoverageError(
                f"{kind}: layers that differ in width cannot reach multiples in lockstep",
                fix="Write `scope: per_layer`.",
            )


def left(sets: Sequence[GroupSet], axes: AxisMap) -> list[GroupSet]:
    """Returns a parent's group sets as a smaller model has them: the same limits, with the sides
    and sizes of ``axes``; sets whose axis is gone are left out.
    """
    return [
        replace(s, size=axes.widths[s.name], sides=axes.by_axis[s.name])
        for s in sets
        if s.name in axes.by_axis
    ]

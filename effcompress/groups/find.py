"""A model -> its group sets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from effcompress.errors import CoverageError
from effcompress.groups.axes import from_shapes
from effcompress.registry import Bound
from effcompress.types import AxisMap, Config, Family, GroupSet

if TYPE_CHECKING:
    from torch import nn


def axes_of(module: nn.Module, family: Family, config: Config) -> AxisMap:
    """The axis map of a model as it stands (on any device, meta included).

    A tied weight is one parameter and appears once, under its first name.
    """
    shapes = {name: tuple(p.shape) for name, p in module.named_parameters()}
    return from_shapes(family, config, shapes)


def find(axes: AxisMap, space: Sequence[Bound]) -> list[GroupSet]:
    """All group sets of a pruning space, in the order of the space and of the layers.

    Raises CoverageError when a space finds nothing, or when two spaces claim the same axis.
    """
    found: dict[str, GroupSet] = {}
    for bound in space:
        sets = list(bound(axes=axes))
        if not sets:
            raise CoverageError(
                f"space '{bound.name}' finds nothing to prune in family '{axes.family.name}'",
                fix=f"Axes of this family: {', '.join(sorted(axes.family.units))}.",
            )
        for s in sets:
            if s.name in found:
                raise CoverageError(f"two spaces claim the axis '{s.name}'", where=bound.name)
            found[s.name] = s
    return list(found.values())

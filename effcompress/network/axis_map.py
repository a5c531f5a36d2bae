"""A configuration -> its family and axis map, be it an ordinary model's or a pruned one's."""

from __future__ import annotations

from dataclasses import dataclass

from effcompress import groups
from effcompress.model.families import require_sane
from effcompress.model.lineage import depth_of, parent_of, shapes_of
from effcompress.network.family import family_for
from effcompress.types import AxisMap, Config


@dataclass(frozen=True)
class ResolvedModel:
    """``config`` is the one that the axes were resolved with (a pruned model's parent's)."""

    config: Config
    axes: AxisMap


def resolve_model(config: Config) -> ResolvedModel:
    """Raises SourceError when nobody knows the architecture or a field cannot be meant,
    CoverageError when stored shapes contradict the declaration, or tracing an undeclared
    architecture fails. Imports no torch.
    """
    family = family_for(parent_of(config))
    plain = family.complete(parent_of(config))
    require_sane(family, plain)
    shapes, depth = shapes_of(config), depth_of(family, config)
    if shapes is None:
        return ResolvedModel(plain, groups.from_config(family, plain))
    return ResolvedModel(plain, groups.from_shapes(family, plain, shapes, depth))

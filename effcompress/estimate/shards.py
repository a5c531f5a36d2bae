"""What it takes that parameters are shared out by rows (``distributed.mode: shard``): how much of
them a process holds, what is whole at a time, and what is sent.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from effcompress.estimate.feasibility import SizedModel
from effcompress.spec import Recipe
from effcompress.types import WHOLE, AxisMap, Widths


def shards_of(recipe: Recipe, processes: int) -> int:
    """Among how many processes parameters are shared out."""
    return processes if recipe.distributed.mode == "shard" else 1


def share(axes: AxisMap, widths: Widths, processes: int, of: Collection[str] | None = None) -> int:
    """Elements that a process sends where it gathers the parameters ``of`` (None: all): its rows,
    filled up to as many as the first process has.
    """
    wide = {**axes.widths, **widths}
    return sum(_share(axes, p, wide, processes) for p in axes.shapes if of is None or p in of)


def _share(axes: AxisMap, param: str, wide: Widths, processes: int) -> int:
    rows = sum(s.length(wide) for s in axes.by_param[param] if s.dim == 0)
    count = axes.numel(param, wide)
    return -(-rows // processes) * (count // rows) if count else 0


def at_once(axes: AxisMap, widths: Widths) -> int:
    """Elements that are whole at a time in a pass: what lies outside the layers, and two layers,
    the one that computes and the one that is fetched.
    """
    wide = {**axes.widths, **widths}
    inside: dict[str, int] = {}
    outside = 0
    for param in axes.shapes:
        layer = next(iter(axes.gates[param]), "")
        if layer:
            inside[layer] = inside.get(layer, 0) + axes.numel(param, wide)
        else:
            outside += axes.numel(param, wide)
    return outside + sum(sorted(inside.values())[-2:])


def scored(found: SizedModel, widths: Widths) -> int:
    """Numbers in which the saliency of weights is added up over the rows of all processes: one for
    each position along each side of a parameter on which a mini-group lies.
    """
    wide, sides = {**found.axes.widths, **widths}, set[tuple[str, int]]()
    for s in found.sets:
        sides |= {(side.param, side.dim) for side in s.sides}
    return sum(
        1 if dim == WHOLE else _length(found.axes, param, dim, wide)
        for param, dim in sides
        if found.axes.numel(param, wide)
    )


def losing_rows(found: SizedModel, touched: Collection[str] | None) -> set[str]:
    """Parameters that lose rows to cuts from the sets ``touched`` (None: all)."""
    sets = (s for s in found.sets if touched is None or s.name in touched)
    return {side.param for s in sets for side in s.sides if side.dim == 0}


def repaired(found: SizedModel, touched: Collection[str] | None) -> Iterator[str]:
    """Weights that lose inputs to cuts from the sets ``touched`` (None: all): a repair sees them
    whole.
    """
    for param in found.axes.shapes:
        sides = (
            side.dim
            for s in found.sets
            if touched is None or s.name in touched
            for side in s.sides
            if side.param == param
        )
        if 1 in sides:
            yield param


def _length(axes: AxisMap, param: str, dim: int, wide: Widths) -> int:
    return sum(s.length(wide) for s in axes.by_param[param] if s.dim == dim)

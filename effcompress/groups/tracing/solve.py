"""Shapes -> widths: how many units every axis has, from the sizes of the dimensions it is on."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable

from effcompress.errors import CoverageError
from effcompress.types import Segment, Shapes

Dimensions = dict[tuple[str, int], list[Segment]]


def widths_of(segments: Iterable[Segment], shapes: Shapes) -> dict[str, int]:
    """Units of every axis.

    A dimension that carries one axis gives its width at once. One that carries several (fused
    projections, query heads within KV heads) gives the last unknown when the others are known.

    Raises CoverageError: a size that is no multiple of what a unit owns, two sides of an axis that
    differ, or an axis that no dimension determines.
    """
    dimensions: Dimensions = defaultdict(list)
    for segment in segments:
        dimensions[segment.param, segment.dim].append(segment)
    found = _plain(dimensions, shapes)
    products = _products(dimensions, shapes)
    wanted = {name for held in dimensions.values() for s in held for name in s.names}
    while missing := wanted - found.keys():
        for (param, dim), held in dimensions.items():
            _solve(held, shapes[param][dim], found, products)
        if missing == wanted - found.keys():
            name = sorted(missing)[0]
            where = next(s.param for s in segments if name in s.names)
            raise CoverageError(f"no dimension tells how wide axis '{name}' is", where=where)
    return found


def _plain(dimensions: Dimensions, shapes: Shapes) -> dict[str, int]:
    """Widths of the axes that have a dimension of their own."""
    widths: dict[str, int] = {}
    first: dict[str, Segment] = {}
    for (param, dim), held in dimensions.items():
        names = {s.names for s in held}
        if len(names) > 1 or len(held[0].names) > 1:
            continue
        name = "".join(held[0].names)  # there is one
        block = sum(s.positions_per_unit for s in held)
        units, rest = divmod(shapes[param][dim], block)
        if rest:
            raise CoverageError(
                f"dimension {dim} has {shapes[param][dim]} positions, no multiple of the {block} "
                f"that one unit of axis '{name}' owns",
                where=param,
            )
        if widths.setdefault(name, units) != units:
            raise CoverageError(
                f"{units} units on axis '{name}', but {first[name].param} has {widths[name]}",
                where=param,
            )
        first.setdefault(name, held[0])
    return widths


def _products(dimensions: Dimensions, shapes: Shapes) -> dict[tuple[str, ...], int]:
    """Products of widths that have a dimension of their own (output projection: KV heads times
    query heads of each).
    """
    return {
        held[0].names: shapes[param][dim] // held[0].positions_per_unit
        for (param, dim), held in dimensions.items()
        if len(held) == 1 and len(held[0].names) > 1
    }


def _solve(
    held: list[Segment],
    size: int,
    found: dict[str, int],
    products: dict[tuple[str, ...], int],
) -> None:
    """Find the one axis that is still unknown on a dimension of ``size``, if there is just one."""
    left, factor, unknown = size, 0, set[str]()
    for segment in held:
        missing = [name for name in segment.names if name not in found]
        if missing and (len(held) == 1 or segment.names not in products):
            unknown.update(missing)
            known = math.prod(found[n] for n in segment.names if n in found)
            factor += known * segment.positions_per_unit
        elif missing:
            left -= products[segment.names] * segment.positions_per_unit
        else:
            left -= math.prod(found[n] for n in segment.names) * segment.positions_per_unit
    if len(unknown) == 1 and factor:
        found[unknown.pop()] = left // factor

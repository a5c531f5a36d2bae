"""Resolves a family's declaration for one model: Family and shapes -> AxisMap.

Every dimension of every parameter must carry a named axis, and an axis must have one width on all
its dimensions. A parameter that the declaration does not cover raises an error; none is left out.

A loaded model (shapes of its tensors) and a configuration (sizes it states) are resolved by the
same code, so that the sizes which ``plan`` computes are those that a cut produces.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace

from effcompress.errors import CoverageError, did_you_mean
from effcompress.types import (
    DEPTH,
    WHOLE,
    AxisMap,
    Config,
    Depth,
    Family,
    Segment,
    Shapes,
    Side,
    Widths,
    axis_kind,
    axis_layer,
)

Gates = Mapping[str, tuple[str, ...]]
"""Parameter -> the layer and the sublayer (axes of width 1) that it is removed with."""
Dimensions = dict[tuple[str, int], list[Segment]]
"""(parameter, dimension) -> the segments on it, in order."""


def full_depth(family: Family, config: Config) -> Depth:
    """Returns all layers of a configuration."""
    return Depth(tuple(range(family.read(config, "num_hidden_layers"))))


def from_config(
    family: Family, config: Config, *, depth: Depth | None = None, kinds: Widths | None = None
) -> AxisMap:
    """Resolves a model that is not loaded. Imports no torch.

    ``depth``: the layers that are left (default: all). ``kinds``: widths per axis kind, or of
    single axes by name, that replace those of the configuration.
    """
    config = family.complete(config)
    depth = depth or full_depth(family, config)
    segments, gates = _resolve(family, config, depth)
    widths = _stated(family, config, segments, kinds or {})
    return _assemble(family, config, depth, _shapes(segments, widths), segments, gates, widths)


def stock_widths(family: Family, config: Config) -> dict[str, int]:
    """Returns the width of every axis in the stock class of a configuration, without the map."""
    config = family.complete(config)
    segments, _ = _resolve(family, config, full_depth(family, config))
    return _stated(family, config, segments, {})


def _stated(
    family: Family, config: Config, segments: Iterable[Segment], kinds: Widths
) -> dict[str, int]:
    """Returns the widths of the axes by the fields of a configuration, or by ``kinds``."""
    widths: dict[str, int] = {}
    for name in dict.fromkeys(name for s in segments for name in s.names):
        kind, layer = axis_kind(name), axis_layer(name)
        if kind in DEPTH:
            widths[name] = 1
            continue
        given = kinds.get(name, kinds.get(kind))
        widths[name] = family.units[kind](config, layer or 0) if given is None else given
    return widths


def from_widths(
    family: Family, config: Config, widths: Widths, depth: Depth | None = None
) -> AxisMap:
    """Resolves a model with these widths by axis name. Imports no torch."""
    config = family.complete(config)
    depth = depth or full_depth(family, config)
    segments, gates = _resolve(family, config, depth)
    own = {name: widths[name] for segment in segments for name in segment.names}
    return _assemble(family, config, depth, _shapes(segments, own), segments, gates, own)


def from_shapes(
    family: Family, config: Config, shapes: Shapes, depth: Depth | None = None
) -> AxisMap:
    """Resolves a model with these parameter shapes.

    Widths come from ``shapes``; ``config`` gives what shapes do not show (width of a head, number
    of layers, ties, biases) and may be the parent's. ``depth``: the layers that are left.

    Raises CoverageError: a parameter that the family does not declare, a declared one that is
    missing, a dimension without an axis, or an axis with two widths.
    """
    config = family.complete(config)
    depth = depth or full_depth(family, config)
    segments, gates = _resolve(family, config, depth)
    declared: dict[str, set[int]] = defaultdict(set)
    for segment in segments:
        declared[segment.param].add(segment.dim)
    _check_cover(family, shapes, declared)
    widths = widths_of(segments, shapes)
    for param, shape in _shapes(segments, widths).items():
        if shape != tuple(shapes[param]):
            raise CoverageError(
                f"shape {tuple(shapes[param])}, but its axes add up to {shape}", where=param
            )
    return _assemble(family, config, depth, dict(shapes), segments, gates, widths)


def shapes_at(axes: AxisMap, widths: Widths) -> dict[str, tuple[int, ...]]:
    """Parameter shapes of the model with these widths (missing axes keep theirs)."""
    return _shapes(axes.segments, {**axes.widths, **widths})


def _shapes(segments: Iterable[Segment], widths: Widths) -> dict[str, tuple[int, ...]]:
    sizes: dict[str, dict[int, int]] = defaultdict(lambda: defaultdict(int))
    for segment in segments:
        sizes[segment.param][segment.dim] += segment.length(widths)
    return {param: tuple(size for _, size in sorted(s.items())) for param, s in sizes.items()}


def _assemble(
    family: Family,
    config: Config,
    depth: Depth,
    shapes: Shapes,
    segments: tuple[Segment, ...],
    gates: Gates,
    widths: Widths,
) -> AxisMap:
    ends: dict[tuple[str, int], int] = defaultdict(int)
    by_param: dict[str, list[Segment]] = defaultdict(list)
    by_axis: dict[str, list[Side]] = defaultdict(list)
    for segment in segments:
        key = (segment.param, segment.dim)
        by_param[segment.param].append(replace(segment, start=ends[key]))
        ends[key] += segment.length(widths)
    for placed in by_param.values():
        for segment in placed:
            for side in _sides(segment, widths):
                by_axis[side.name].append(side)
    for param in by_param:
        for gate in gates[param]:
            by_axis[gate].append(Side(param, WHOLE, gate))
    return AxisMap(
        family,
        shapes,
        depth,
        tuple(segment for placed in by_param.values() for segment in placed),
        {**widths, **{gate: 1 for names in gates.values() for gate in names}},
        by_axis={k: tuple(v) for k, v in by_axis.items()},
        by_param={k: tuple(v) for k, v in by_param.items()},
        gates=gates,
        floors={kind: floor(config) for kind, floor in family.floors.items()},
        parts={kind: parts(config) for kind, parts in family.parts.items()},
        no_depth=family.no_depth(config),
        staying=frozenset(family.staying(config)),
        residual_scale=family.residual_scale(config),
    )


def _sides(segment: Segment, widths: Widths) -> Iterable[Side]:
    # A segment is laid out as [names[0], names[1], ..., positions_per_unit], row-major: what stands
    # before an axis repeats it (outer), what stands behind it belongs to each of its units (inner).
    for k, name in enumerate(segment.names):
        outer = math.prod(widths[n] for n in segment.names[:k])
        inner = math.prod(widths[n] for n in segment.names[k + 1 :]) * segment.positions_per_unit
        yield Side(segment.param, segment.dim, name, segment.start, outer, inner)


def _resolve(
    family: Family, config: Config, depth: Depth
) -> tuple[tuple[Segment, ...], dict[str, tuple[str, ...]]]:
    """Instantiates the declaration for every layer that is left; also returns the gates."""
    per_unit = {name: size(config) for name, size in family.positions_per_unit.items()}
    segments: list[Segment] = []
    gates: dict[str, tuple[str, ...]] = {}
    for axis in family.axes:
        by_layer = "{i}" in axis.param + axis.name
        places = list(enumerate(depth.layers)) if by_layer else [(0, 0)]
        gating = _gating(family, axis.param)
        for j, i in places:
            # Parameters are named by the layer's present index j, axes by its number i in the
            # parent, so that plans stay valid after layers are removed.
            gated_by = tuple(f"{kind}.{i}" for kind in gating)
            if not depth.absent.isdisjoint(gated_by) or not family.holds(axis.when, config, i):
                continue
            param = axis.param.replace("{i}", str(j))
            kv = str(family.kv_layer(config, i))
            names = tuple(axis.name.replace("{i}", str(i)).replace("{kv}", kv).split("/"))
            segments.append(Segment(param, axis.dim, names, per_unit[axis.positions_per_unit]))
            gates[param] = gated_by
    return tuple(segments), gates


def _gating(family: Family, pattern: str) -> list[str]:
    """Returns the kinds of layer and block that parameters of this pattern are removed with."""
    if "{i}" not in pattern:
        return []
    inside, blocks = pattern.removeprefix(family.layer + "."), family.sublayers.items()
    within = (kind for kind, b in blocks if any(inside.startswith(m + ".") for m in b.modules))
    return ["layer", *within]


def _check_cover(family: Family, shapes: Shapes, declared: dict[str, set[int]]) -> None:
    unknown = [name for name in shapes if name not in declared]
    missing = [name for name in declared if name not in shapes]
    if unknown or missing:
        name = unknown[0] if unknown else missing[0]
        others = len(unknown) + len(missing) - 1
        what = (
            f"no axis of family '{family.name}' reaches this parameter"
            if unknown
            else f"family '{family.name}' declares this parameter, the model has none"
        )
        raise CoverageError(
            what + (f" (and {others} more differ)" if others else ""),
            where=name,
            fix=did_you_mean(name, missing or unknown).partition(" Known")[0]
            or "Declare its axes in model/families.py.",
        )
    for name, shape in shapes.items():
        if declared[name] != set(range(len(shape))):
            raise CoverageError(
                f"shape {tuple(shape)} has {len(shape)} dimensions, the family declares axes on "
                f"{sorted(declared[name])}",
                where=name,
            )


def widths_of(segments: Iterable[Segment], shapes: Shapes) -> dict[str, int]:
    """Solves for the width of every axis, given the sizes of the dimensions that it is on.

    A dimension with one axis gives its width at once. One with several (fused projections, query
    heads within KV heads) gives the last unknown width once the others are known; repeated until
    nothing is unknown.

    Raises CoverageError: a size that is no multiple of what a unit owns, an axis with two widths,
    or an axis whose width no dimension determines.
    """
    dimensions: Dimensions = defaultdict(list)
    for segment in segments:
        dimensions[segment.param, segment.dim].append(segment)
    wanted = {name for held in dimensions.values() for s in held for name in s.names}
    found = {name: 1 for name in wanted if axis_kind(name) in DEPTH}
    found |= _plain(dimensions, shapes)
    products = _products(dimensions, shapes)
    while missing := wanted - found.keys():
        for (param, dim), held in dimensions.items():
            _solve(held, shapes[param][dim], found, products)
        if missing == wanted - found.keys():
            name = sorted(missing)[0]
            where = next(s.param for s in segments if name in s.names)
            raise CoverageError(f"no dimension tells how wide axis '{name}' is", where=where)
    return found


def _plain(dimensions: Dimensions, shapes: Shapes) -> dict[str, int]:
    """Widths of the axes that have a dimension to themselves."""
    widths: dict[str, int] = {}
    first: dict[str, Segment] = {}
    for (param, dim), held in dimensions.items():
        names = {s.names for s in held}
        if len(names) > 1 or len(held[0].names) > 1:
            continue
        name = "".join(held[0].names)  # there is one
        # Several segments of one axis (gate and up in one matrix) are one unit together.
        owned = sum(s.positions_per_unit for s in held)
        units, rest = divmod(shapes[param][dim], owned)
        if rest:
            raise CoverageError(
                f"dimension {dim} has {shapes[param][dim]} positions, no multiple of the {owned} "
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
    """Products of widths that have a dimension to themselves (the input of the output projection:
    KV heads times query heads of each).
    """
    return {
        held[0].names: shapes[param][dim] // held[0].positions_per_unit
        for (param, dim), held in dimensions.items()
        if len(held) == 1 and len(held[0].names) > 1
    }


def _solve(
    held: list[Segment], size: int, found: dict[str, int], products: dict[tuple[str, ...], int]
) -> None:
    """Solves a dimension of ``size`` for its one unknown width, if there is just one:
    ``size = sum over segments of (product of widths * positions per unit)``.
    """
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

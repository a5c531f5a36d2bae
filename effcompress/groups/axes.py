"""Family and shapes -> AxisMap. Every dimension of every parameter must carry a named axis, and
every axis must be equally wide on all its sides: what the table does not reach is an error that
names the parameter, never a smaller cut.

The same resolution serves a loaded model (shapes read from its tensors) and a configuration
(shapes computed from the table), so prices and cuts cannot disagree.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace

from effcompress.errors import CoverageError, did_you_mean
from effcompress.types import Axis, AxisMap, Config, Family, Shapes, Side, Widths


def from_config(family: Family, config: Config) -> AxisMap:
    """The map of a model that is not loaded. Imports no torch."""
    sides = _sides(family, config)
    widths = {s.name: family.units[s.name.split(".")[0]](config) for s in sides}
    return _assemble(family, _shapes(sides, widths), sides, widths)


def from_shapes(family: Family, config: Config, shapes: Shapes) -> AxisMap:
    """The map of a model with these parameter shapes.

    ``config`` says only what shapes cannot (width of a head, number of layers, ties, biases), and
    may be the parent's: widths come from ``shapes``.

    Raises CoverageError: a parameter the family does not declare, a declared one that is missing,
    a dimension without an axis, or sides of one axis that differ in width.
    """
    sides = _sides(family, config)
    declared: dict[str, set[int]] = defaultdict(set)
    for side in sides:
        declared[side.param].add(side.dim)
    _check_cover(family, shapes, declared)
    widths: dict[str, int] = {}
    first: dict[str, Side] = {}
    for (param, dim), segments in _dimensions(sides).items():
        names = {side.name for side in segments}
        if len(names) > 1:
            continue  # several axes share this dimension; each is known from another one
        (name,) = names
        block = sum(side.block for side in segments)
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
        first.setdefault(name, segments[0])
    for param, shape in _shapes(sides, widths).items():
        if shape != tuple(shapes[param]):
            raise CoverageError(
                f"shape {tuple(shapes[param])}, but its axes add up to {shape}", where=param
            )
    return _assemble(family, dict(shapes), sides, widths)


def shapes_at(axes: AxisMap, widths: Widths) -> dict[str, tuple[int, ...]]:
    """Parameter shapes of the model if its axes had these widths (missing ones keep theirs)."""
    return _shapes(axes.sides, {**axes.widths, **widths})


def _dimensions(sides: Iterable[Side]) -> dict[tuple[str, int], list[Side]]:
    """(parameter, dimension) -> its segments, in order."""
    found: dict[tuple[str, int], list[Side]] = defaultdict(list)
    for side in sides:
        found[side.param, side.dim].append(side)
    return found


def _shapes(sides: Iterable[Side], widths: Widths) -> dict[str, tuple[int, ...]]:
    sizes: dict[str, dict[int, int]] = defaultdict(dict)
    for (param, dim), segments in _dimensions(sides).items():
        sizes[param][dim] = sum(widths[side.name] * side.block for side in segments)
    return {param: tuple(size for _, size in sorted(s.items())) for param, s in sizes.items()}


def _assemble(family: Family, shapes: Shapes, sides: tuple[Side, ...], widths: Widths) -> AxisMap:
    by_axis: dict[str, list[Side]] = defaultdict(list)
    by_param: dict[str, list[Side]] = defaultdict(list)
    ends: dict[tuple[str, int], int] = defaultdict(int)
    placed: list[Side] = []
    for side in sides:
        key = (side.param, side.dim)
        placed.append(replace(side, start=ends[key]))
        ends[key] += widths[side.name] * side.block
    for side in placed:
        by_axis[side.name].append(side)
        by_param[side.param].append(side)
    return AxisMap(
        family,
        shapes,
        tuple(placed),
        widths,
        by_axis={k: tuple(v) for k, v in by_axis.items()},
        by_param={k: tuple(v) for k, v in by_param.items()},
    )


def _sides(family: Family, config: Config) -> tuple[Side, ...]:
    blocks = {name: block(config) for name, block in family.blocks.items()}
    resolved: list[Side] = []
    for axis in family.axes:
        if not _exists(axis, config):
            continue
        layers = range(config["num_hidden_layers"]) if "{i}" in axis.param else (None,)
        for i in layers:
            param = axis.param if i is None else axis.param.replace("{i}", str(i))
            name = axis.name if i is None else axis.name.replace("{i}", str(i))
            resolved.append(Side(param, axis.dim, name, blocks[axis.block]))
    return tuple(resolved)


def _exists(axis: Axis, config: Config) -> bool:
    if not axis.when:
        return True
    flag = axis.when.removeprefix("!")
    return bool(config.get(flag, False)) != axis.when.startswith("!")


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

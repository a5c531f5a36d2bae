"""Family and shapes -> AxisMap. Every dimension of every parameter must carry a named axis, and
every axis must be equally wide on all its sides: what the table does not reach is an error that
names the parameter, never a smaller cut.

The same resolution serves a loaded model (shapes read from its tensors) and a configuration
(shapes computed from the table), so prices and cuts cannot disagree.
"""

from __future__ import annotations

from collections import defaultdict

from effcompress.errors import CoverageError, did_you_mean
from effcompress.types import Axis, AxisMap, Config, Family, Shapes, Side, Widths


def from_config(family: Family, config: Config) -> AxisMap:
    """The map of a model that is not loaded. Imports no torch."""
    widths: dict[str, int] = {}
    sides = _sides(family, config)
    for side in sides:
        widths[side.name] = family.units[side.name.split(".")[0]](config)
    shapes: dict[str, list[int]] = defaultdict(list)
    for side in sorted(sides, key=lambda s: s.dim):
        shapes[side.param].append(widths[side.name] * side.block)
    return _assemble(family, {k: tuple(v) for k, v in shapes.items()}, sides, widths)


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
    for side in sides:
        size = shapes[side.param][side.dim]
        units, rest = divmod(size, side.block)
        if rest:
            raise CoverageError(
                f"dimension {side.dim} has {size} positions, no multiple of the {side.block} that "
                f"one unit of axis '{side.name}' owns",
                where=side.param,
            )
        if widths.setdefault(side.name, units) != units:
            raise CoverageError(
                f"{units} units on axis '{side.name}', but {first[side.name].param} has "
                f"{widths[side.name]}",
                where=side.param,
            )
        first.setdefault(side.name, side)
    return _assemble(family, dict(shapes), sides, widths)


def shapes_at(axes: AxisMap, widths: Widths) -> dict[str, tuple[int, ...]]:
    """Parameter shapes of the model if its axes had these widths (missing ones keep theirs)."""
    wide = {**axes.widths, **widths}
    shapes = {name: list(shape) for name, shape in axes.shapes.items()}
    for side in axes.sides:
        shapes[side.param][side.dim] = wide[side.name] * side.block
    return {name: tuple(shape) for name, shape in shapes.items()}


def _assemble(family: Family, shapes: Shapes, sides: tuple[Side, ...], widths: Widths) -> AxisMap:
    by_axis: dict[str, list[Side]] = defaultdict(list)
    by_param: dict[str, list[Side]] = defaultdict(list)
    for side in sides:
        by_axis[side.name].append(side)
        by_param[side.param].append(side)
    return AxisMap(
        family,
        shapes,
        sides,
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

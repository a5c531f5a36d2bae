"""Converts between widths and what users write: configuration fields, targets and shapes."""

from collections import defaultdict
from collections.abc import Container, Mapping, Sequence
from dataclasses import replace
from typing import Any

from effcompress import groups
from effcompress.errors import CoverageError, did_you_mean
from effcompress.network.sliced import sliced_shape
from effcompress.spec import PruneSpec, TargetSpec
from effcompress.types import DEPTH, AxisMap, Config, GroupSet, Widths, axis_kind, axis_layer


def widest(axes: AxisMap, without: Container[str] = ()) -> dict[str, int]:
    """Returns the largest width per axis kind, ``without`` those of some axes."""
    found: dict[str, int] = {}
    for name, width in axes.widths.items():
        kind = axis_kind(name)
        if kind not in DEPTH and name not in without:
            found[kind] = max(width, found.get(kind, 0))
    return found


def apart(axes: AxisMap, config: Config) -> dict[str, int]:
    """Returns the axes that the class of a configuration makes of another width than the first axis
    of their kind (dense layers before mixtures, layers of twice the width), with that width: a
    stock class derives it from fields that no cut changes.
    """
    whole = groups.stock_widths(axes.family, config)
    first: dict[str, int] = {}
    for name, width in whole.items():
        first.setdefault(axis_kind(name), width)
    return {n: w for n, w in whole.items() if w != first[axis_kind(n)] and n in axes.widths}


def uniform_widths(axes: AxisMap, config: Config) -> dict[str, int] | None:
    """Returns the width per axis kind, and those of axes that the class makes of another width, by
    name; None when layers differ otherwise or a block is missing.
    """
    own = apart(axes, config)
    found = {axis_kind(name): axes.widths[name] for name in own}  # where no other is left
    found |= widest(axes, own)
    kinds = {name: axis_kind(name) for name in axes.widths}
    wanted = {name: own.get(name, found[kind]) for name, kind in kinds.items() if kind in found}
    same = all(axes.widths[name] == width for name, width in wanted.items())
    return {**found, **own} if same and not axes.depth.absent else None


def living_widths(axes: AxisMap, widths: Widths, kind: str) -> list[int]:
    """Returns the units on every axis of a kind, in layer order, without layers that are gone."""
    wide = {**axes.widths, **widths}
    return [wide[name] for name in axes.axes(kind) if axes.living(name, wide)]


def living_layers(axes: AxisMap, widths: Widths) -> list[int]:
    """Returns the parent's numbers of the layers of which any block is left."""
    wide = {**axes.widths, **widths}
    return [i for i in axes.depth.layers if axes.living(f"layer.{i}", wide)]


def per_layer(
    axes: AxisMap, config: Config, widths: Widths, parent: Widths | None = None
) -> dict[str, list[Any]]:
    """Returns the configuration fields that depend on widths, with one value per remaining layer.
    ``parent``: widths per axis kind for kinds that no layer has any more.
    """
    wide = {**axes.widths, **widths}
    most = dict(parent or {})
    for name, width in axes.widths.items():
        most.setdefault(axis_kind(name), width)
    living: dict[str, int] = {}
    by_layer: dict[int, dict[str, int]] = defaultdict(dict)
    for name, width in wide.items():
        kind, layer = axis_kind(name), axis_layer(name)
        if kind in DEPTH or not axes.living(name, wide):
            continue
        living[kind] = max(width, living.get(kind, 0))
        if layer is not None:
            by_layer[layer][kind] = width
    found: dict[str, list[Any]] = {}
    for i in living_layers(axes, wide):
        # A block that this layer lacks has no width here: the widest of the others is written.
        for field, value in axes.family.resize(config, {**most, **living, **by_layer[i]}).items():
            found.setdefault(field, []).append(value)
    return found


def shape(axes: AxisMap, config: Config, widths: Widths) -> dict[str, Any]:
    """Returns the configuration fields (lists where layers differ) and the number of blocks."""
    wide = {**axes.widths, **widths}
    found, layers = dict[str, Any](), living_layers(axes, wide)
    for field, values in per_layer(axes, config, wide).items():
        # Gemma 3n's field is a list itself, of all layers.
        own = [v[i] if isinstance(v, list) else v for i, v in zip(layers, values, strict=True)]
        found[field] = own[0] if len(set(own)) == 1 else own
    found[axes.family.aliases.get("num_hidden_layers", "num_hidden_layers")] = len(layers)
    for kind in DEPTH[1:]:
        there = [i for i in layers if wide.get(f"{kind}.{i}")]
        if len(there) < len(layers):
            found[f"{kind}s"] = len(there)
    return found


def bounded(sets: Sequence[GroupSet], target: TargetSpec) -> list[GroupSet]:
    """Returns the group sets with the target's ``shape`` as their minimum; unchanged without a
    shape.

    Raises CoverageError for a kind that only one of shape and space names, for more units than
    there are, and for widths that steps of ``round_to`` do not lead to.
    """
    if target.shape is None:
        return list(sets)
    kinds = dict.fromkeys(s.kind for s in sets)
    for kind in target.shape:
        if kind not in kinds:
            raise CoverageError(
                f"prune.target.shape names '{kind}', which nothing under prune.space cuts",
                fix=did_you_mean(kind, kinds),
            )
    for kind in kinds:
        if kind not in target.shape:
            raise CoverageError(
                f"prune.target.shape does not say how many '{kind}' units stay",
                fix=f"Add `{kind}:` to it, or take the space out.",
            )
    return [_bounded(s, target.shape[s.kind], sets) for s in sets]


def _bounded(s: GroupSet, units: int, sets: Sequence[GroupSet]) -> GroupSet:
    pool = s.kind in DEPTH
    most = sum(t.kind == s.kind for t in sets) if pool else s.size
    least = max(s.floor, 1) if pool else s.minimum
    if not least <= units <= most or (s.size - units) % s.round_to:
        steps = f", in steps of {s.round_to}" if s.round_to > 1 else ""
        raise CoverageError(
            f"prune.target.shape: {units} units of '{s.kind}', but there are {most}",
            where=s.name,
            fix=f"Name {least} to {most}{steps}.",
        )
    return replace(s, floor=units) if pool else replace(s, minimum=units)


def wanted(target: TargetSpec, axes: AxisMap, sets: Sequence[GroupSet]) -> int | None:
    """Returns the parameters at the end; None for a target of time or memory, which many sizes
    meet. ``sets`` are ``bounded`` ones.
    """
    if not target.sized:
        return None
    if target.shape is not None:
        return axes.count(widths_of(target.shape, sets))
    if target.params is not None:
        return target.params
    return round((target.keep or 0.0) * axes.count())


def target_of(
    prune: PruneSpec | None, axes: AxisMap, sets: Sequence[GroupSet], config: Config
) -> int | None:
    """Returns the parameters at the end; None where nothing is cut, or the target is no size.
    Raises CoverageError for a rotation that cannot be.
    """
    if prune is None:
        return None
    if prune.rotate is not None:
        return sliced_shape(prune, config, axes).axes.count()
    return wanted(prune.target, axes, sets)


def widths_of(shape: Mapping[str, int], sets: Sequence[GroupSet]) -> dict[str, int]:
    """Returns the widths of the sets in a shape. Of layers and blocks the last ones go: those of
    one kind have equally many parameters, else a number of them would not define a size.
    """
    widths: dict[str, int] = {}
    for kind, units in shape.items():
        names = [s.name for s in sets if s.kind == kind]
        if kind in DEPTH:
            widths |= dict.fromkeys(names[units:], 0)
        else:
            widths |= dict.fromkeys(names, units)
    return widths


def gated_targets(sets: Sequence[GroupSet]) -> dict[str, float]:
    """Returns the fraction of every set's units, or of its kind's layers or blocks, that may go at
    most; without sets that lose nothing. For a shape these are the fractions that do go. ``sets``
    are ``bounded`` ones.

    Raises CoverageError for experts: what a router chooses is not multiplied by a gate.
    """
    if any(s.kind == "expert" for s in sets):
        raise CoverageError(
            "no gate acts on an expert as a whole",
            fix="Take `expert` out of prune.space, or remove prune.gates.",
        )
    count = {s.kind: sum(t.kind == s.kind for t in sets) for s in sets}
    found = {
        s.name: 1.0 - (s.floor / count[s.kind] if s.kind in DEPTH else s.minimum / s.size)
        for s in sets
    }
    return {name: fraction for name, fraction in found.items() if fraction > 0}

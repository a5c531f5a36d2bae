"""Widths -> the configuration fields people know, for the whole model or layer by layer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from effcompress.errors import CoverageError, did_you_mean
from effcompress.spec import PruneSpec, TargetSpec
from effcompress.types import DEPTH, AxisMap, Config, GroupSet, Widths, axis_kind, axis_layer


def living_widths(axes: AxisMap, widths: Widths, kind: str) -> list[int]:
    """Units on every axis of a kind whose layer is there, in layer order."""
    wide = {**axes.widths, **widths}
    return [wide[name] for name in axes.axes(kind) if axes.living(name, wide)]


def living_layers(axes: AxisMap, widths: Widths) -> list[int]:
    """Numbers of the layers that are there."""
    wide = {**axes.widths, **widths}
    return [i for i in axes.depth.layers if wide[f"layer.{i}"]]


def per_layer(
    axes: AxisMap, config: Config, widths: Widths, parent: Widths | None = None
) -> dict[str, list[Any]]:
    """Configuration fields that depend on widths -> one value for each layer that is there.
    ``parent``: widths per axis kind of what no layer has any more.
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
        # What a layer lacks altogether (a block that is gone) is told by the others.
        for field, value in axes.family.resize(config, {**most, **living, **by_layer[i]}).items():
            found.setdefault(field, []).append(value)
    return found


def shape(axes: AxisMap, config: Config, widths: Widths) -> dict[str, Any]:
    """Configuration fields; a list where layers differ. Blocks that are gone are counted."""
    wide = {**axes.widths, **widths}
    found: dict[str, Any] = {
        field: values[0] if len(set(values)) == 1 else values
        for field, values in per_layer(axes, config, wide).items()
    }
    layers = living_layers(axes, wide)
    found[axes.family.aliases.get("num_hidden_layers", "num_hidden_layers")] = len(layers)
    for kind in DEPTH[1:]:
        there = [i for i in layers if wide.get(f"{kind}.{i}")]
        if len(there) < len(layers):
            found[f"{kind}s"] = len(there)
    return found


def bounded(sets: Sequence[GroupSet], target: TargetSpec) -> list[GroupSet]:
    """Group sets that give no more than the target's ``shape`` leaves them; the same ones without
    a shape.

    Raises CoverageError for a kind that only one of shape and space names, for more units than
    there are, and for widths that blocks of ``round_to`` do not lead to.
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


def wanted(target: TargetSpec, axes: AxisMap, sets: Sequence[GroupSet]) -> int:
    """Parameters at the end. ``sets`` are ``bounded`` ones."""
    if target.shape is not None:
        return axes.count(_widths(target.shape, sets))
    if target.params is not None:
        return target.params
    return round((target.keep or 0.0) * axes.count())


def target_of(prune: PruneSpec | None, axes: AxisMap, sets: Sequence[GroupSet]) -> int | None:
    """Parameters at the end; None where nothing is cut."""
    return wanted(prune.target, axes, sets) if prune else None


def _widths(shape: Mapping[str, int], sets: Sequence[GroupSet]) -> dict[str, int]:
    """Of whole layers (or blocks) it makes no difference which go: those of one kind weigh the
    same, or the shape would be no size; the last ones are taken.
    """
    widths: dict[str, int] = {}
    for kind, units in shape.items():
        names = [s.name for s in sets if s.kind == kind]
        if kind in DEPTH:
            widths |= dict.fromkeys(names[units:], 0)
        else:
            widths |= dict.fromkeys(names, units)
    return widths

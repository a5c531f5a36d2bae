"""Widths -> the configuration fields people know, for the whole model or layer by layer."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from effcompress.types import DEPTH, AxisMap, Config, Widths, axis_kind, axis_layer


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

"""``effcompress plan``: size, cost and final shape of a run, before it runs."""

from __future__ import annotations

import itertools
from typing import Any

from effcompress.errors import SourceError
from effcompress.model.source import label_of
from effcompress.recipe import LoadedRecipe
from effcompress.runner.cost import H100_FLOPS, UTILISATION, Memory, flops_per_token, memory
from effcompress.runner.price import price
from effcompress.runner.reach import Priced, priced
from effcompress.runner.shape import living_layers, living_widths, shape
from effcompress.runner.sheet import Answer, Sheet, gigabytes, short
from effcompress.runner.timeline import Point, Timeline, total_tokens
from effcompress.spec import Recipe

ROWS = 10
DEVICES = (1, 8)


def plan(loaded: LoadedRecipe) -> Answer:
    """Parameters over tokens, final shape, memory per device, FLOPs and GPU-hours.

    Raises SourceError when nothing is known of the model, RecipeError when the target is out of
    reach.
    """
    found = priced(loaded)
    if found is None:
        raise SourceError(
            "the model's configuration is not known here",
            where=label_of(loaded.recipe.model),
            fix="Run `effcompress fetch RECIPE`, or write its configuration under model.shape.",
        )
    recipe = loaded.recipe
    price_ = price(loaded)
    timeline = price_.timeline or _still(recipe, found)
    data: dict[str, Any] = {
        "name": recipe.name,
        "model": label_of(recipe.model),
        "params": found.start,
        "target_params": found.target,
        "final": shape(found.axes, found.config, timeline.points[-1].widths),
        "timeline": [_row(found, p) for p in _thinned(timeline)],
    }
    sheets = [_over_tokens(found, timeline), _final_shape(found, timeline)]
    if recipe.loop:
        costs = _costs(recipe, found, timeline)
        data |= costs
        sheets += [_memory_sheet(recipe, found, data), _cost_sheet(costs)]
    return Answer(data, tuple(sheets), tuple(price_.lines))


def _still(recipe: Recipe, found: Priced) -> Timeline:
    widths = dict(found.axes.widths)
    ends = (Point(0, 0, found.start, widths), Point(0, total_tokens(recipe), found.start, widths))
    return Timeline(ends, True, 0)


def _thinned(timeline: Timeline) -> list[Point]:
    """About ``ROWS`` points, evenly over the sizes, both ends included."""
    points = timeline.points
    first, last = points[0].params, points[-1].params
    chosen = [points[0]]
    for k in range(1, ROWS):
        size = first + (last - first) * k / (ROWS - 1)
        nearest = next((p for p in points if p.params <= size), points[-1])
        if nearest.tokens > chosen[-1].tokens:
            chosen.append(nearest)
    if chosen[-1] != points[-1] and points[-1].tokens > chosen[-1].tokens:
        chosen.append(points[-1])
    return chosen


def _row(found: Priced, point: Point) -> dict[str, Any]:
    return {
        "step": point.step,
        "tokens": point.tokens,
        "params": point.params,
        "shape": shape(found.axes, found.config, point.widths),
    }


COLUMNS = {
    "attention": "KV heads",
    "query": "queries each",
    "ffn": "FFN",
    "hidden": "hidden",
    "expert": "experts",
    "expert_ffn": "expert FFN",
}


def _over_tokens(found: Priced, timeline: Timeline) -> Sheet:
    cut = {s.kind for s in found.sets}
    kinds = [k for k in COLUMNS if k in cut or (k in ("attention", "hidden", "ffn"))]
    kinds = [k for k in kinds if found.axes.axes(k)]
    rows = []
    for p in _thinned(timeline):
        cells = [short(p.tokens), f"{p.step:,}", short(p.params), f"{p.params / found.start:.1%}"]
        cells += [_brief(living_widths(found.axes, p.widths, kind)) for kind in kinds]
        rows.append((*cells, str(len(living_layers(found.axes, p.widths)))))
    columns = ("tokens", "step", "parameters", "share", *(COLUMNS[k] for k in kinds), "layers")
    return Sheet("Size over tokens (if kinds shrink in proportion)", columns, tuple(rows))


def _final_shape(found: Priced, timeline: Timeline) -> Sheet:
    before = shape(found.axes, found.config, timeline.points[0].widths)
    after = shape(found.axes, found.config, timeline.points[-1].widths)
    rows = [(key, str(before.get(key, "-")), _brief(value)) for key, value in after.items()]
    rows.append(("parameters", f"{found.start:,}", f"{timeline.points[-1].params:,}"))
    return Sheet("Shape", ("", "source", "result"), tuple(rows))


def _brief(value: Any) -> str:
    if not isinstance(value, list):
        return str(value)
    low, high = min(value), max(value)
    return f"{low}" if low == high else f"{low}-{high}"


def _costs(recipe: Recipe, found: Priced, timeline: Timeline) -> dict[str, Any]:
    """FLOPs integrated over the shrinking model, and what that means in GPU-hours."""
    length = recipe.data.sequence_length
    total, points = 0.0, timeline.points
    for here, there in itertools.pairwise(points):
        per_token = flops_per_token(found.axes, found.config, here.widths, length)
        total += per_token * (there.tokens - here.tokens)
    dense = flops_per_token(found.axes, found.config, {}, length) * points[-1].tokens
    hours = total / (H100_FLOPS * UTILISATION) / 3600
    return {
        "tokens": points[-1].tokens,
        "flops": total,
        "flops_if_not_pruned": dense,
        "h100_hours": hours,
        "assumed": {"peak_flops": H100_FLOPS, "utilisation": UTILISATION},
        "memory_bytes": {
            f"{devices} x {'sharded' if sharded else 'replicated'}": {
                **vars(memory(found.axes, found.config, recipe, devices, sharded)),
                "total": memory(found.axes, found.config, recipe, devices, sharded).total,
            }
            for devices in DEVICES
            for sharded in ((False, True) if devices > 1 else (False,))
        },
    }


def _memory_sheet(recipe: Recipe, found: Priced, data: dict[str, Any]) -> Sheet:
    rows = []
    for name, parts in data["memory_bytes"].items():
        held = Memory(**{k: v for k, v in parts.items() if k != "total"})
        states = held.weights + held.gradients + held.moments + held.compute_copy
        rows.append(
            (
                name,
                gigabytes(states),
                gigabytes(held.activations),
                gigabytes(held.logits),
                gigabytes(held.total),
            )
        )
    assert recipe.loop is not None
    rows_per_device = recipe.loop.micro_batch_size or "all"
    title = f"Memory per device at the start (micro-batch: {rows_per_device} sequences)"
    columns = ("devices", "weights to moments", "activations", "logits", "total")
    return Sheet(title, columns, tuple(rows))


def _cost_sheet(costs: dict[str, Any]) -> Sheet:
    saved = 1 - costs["flops"] / costs["flops_if_not_pruned"]
    hours = costs["h100_hours"]
    rows = (
        ("tokens", short(costs["tokens"])),
        ("training FLOPs", f"{costs['flops']:.3g} ({saved:.0%} less than the unpruned model's)"),
        ("H100 hours", f"{hours:,.0f}" if hours >= 1 else f"{hours:.2g}"),
        ("assuming", f"{H100_FLOPS / 1e12:.0f} TFLOP/s at {UTILISATION:.0%} utilisation"),
        ("days on 8 H100", f"{hours / 8 / 24:,.1f}"),
    )
    return Sheet("Cost", ("", ""), rows)

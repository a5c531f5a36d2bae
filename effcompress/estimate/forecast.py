"""``effcompress plan``: forecasts size, cost and final shape of a run, without torch."""

from __future__ import annotations

from typing import Any

from effcompress.answer import Answer, Table
from effcompress.errors import SourceError
from effcompress.estimate.check import check
from effcompress.estimate.costs import Launch, costs
from effcompress.estimate.feasibility import SizedModel, sized_model
from effcompress.estimate.schedule import Point, Timeline, total_tokens
from effcompress.model.source import label_of
from effcompress.network.shapes import living_layers, living_widths, shape
from effcompress.recipe import LoadedRecipe
from effcompress.record.readable import exact_count

ROWS = 10


def plan(loaded: LoadedRecipe, launch: Launch = Launch()) -> Answer:  # noqa: B008  frozen
    """Returns parameters over tokens, final shape, memory and messages per process, FLOPs, hours.

    Raises:
        SourceError: the model's configuration is not known.
        RecipeError: the target is out of reach, or the batch does not divide among the processes.
    """
    found = sized_model(loaded)
    if found is None:
        raise SourceError(
            "the model's configuration is not known here",
            where=label_of(loaded.recipe.model),
            fix="Run `effcompress fetch RECIPE`, or write its configuration under model.shape.",
        )
    recipe = loaded.recipe
    checked = check(loaded)
    timeline = checked.timeline
    if timeline is None:  # nothing is cut
        widths, end = dict(found.axes.widths), total_tokens(recipe)
        points = (Point(0, 0, found.start, widths), Point(0, end, found.start, widths))
        timeline = Timeline(points, True, 0)
    data: dict[str, Any] = {
        "name": recipe.name,
        "model": label_of(recipe.model),
        "params": found.start,
        "target_params": found.target,
        "final": shape(found.axes, found.config, timeline.points[-1].widths),
        "timeline": [
            {
                **{"step": p.step, "tokens": p.tokens, "params": p.params},
                "shape": shape(found.axes, found.config, p.widths),
            }
            for p in _thinned(timeline)
        ],
    }
    listed = [_final_shape(found, timeline, checked.data.get("zeroed"))]
    if recipe.prune:
        listed.insert(0, _over_tokens(found, timeline))
    if "zeroed" in checked.data:
        data["zeroed"] = checked.data["zeroed"]
    figures, tables = costs(recipe, found, timeline, launch)
    data |= figures
    listed += tables
    return Answer(data, tuple(listed), tuple(checked.lines))


def _thinned(timeline: Timeline) -> list[Point]:
    """Returns about ``ROWS`` points, evenly over the sizes, both ends included."""
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


COLUMNS = {
    "attention": "KV heads",
    "query": "queries each",
    "ffn": "FFN",
    "hidden": "hidden",
    "expert": "experts",
    "expert_ffn": "expert FFN",
}


def _over_tokens(found: SizedModel, timeline: Timeline) -> Table:
    cut = {s.kind for s in found.sets}
    kinds = [k for k in COLUMNS if k in cut or (k in ("attention", "hidden", "ffn"))]
    kinds = [k for k in kinds if found.axes.axes(k)]
    rows = []
    for p in _thinned(timeline):
        cells = [
            exact_count(p.tokens),
            f"{p.step:,}",
            exact_count(p.params),
            f"{p.params / found.start:.1%}",
        ]
        cells += [_brief(living_widths(found.axes, p.widths, kind)) for kind in kinds]
        rows.append((*cells, str(len(living_layers(found.axes, p.widths)))))
    columns = ("tokens", "step", "parameters", "fraction", *(COLUMNS[k] for k in kinds), "layers")
    return Table("Size over tokens (if kinds shrink in proportion)", columns, tuple(rows))


def _final_shape(found: SizedModel, timeline: Timeline, zeroed: int | None) -> Table:
    before = shape(found.axes, found.config, timeline.points[0].widths)
    after = shape(found.axes, found.config, timeline.points[-1].widths)
    rows = [(key, str(before.get(key, "-")), _brief(value)) for key, value in after.items()]
    rows.append(("parameters", f"{found.start:,}", f"{timeline.points[-1].params:,}"))
    if zeroed is not None:
        rows.append(("of them zero", "0", f"{zeroed:,}"))
    return Table("Shape", ("", "source", "result"), tuple(rows))


def _brief(value: Any) -> str:
    if not isinstance(value, list):
        return str(value)
    low, high = min(value), max(value)
    return f"{low}" if low == high else f"{low}-{high}"

"""``effcompress plan``: forecasts size, cost and final shape of a run, without torch."""

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from effcompress.answer import Answer, Table
from effcompress.errors import RecipeError
from effcompress.estimate.at_sizes import is_target, points_at
from effcompress.estimate.calibration import (
    per_calibration,
    per_refit,
    per_rotation,
    per_sparsify,
)
from effcompress.estimate.check import check
from effcompress.estimate.communication import (
    Message,
    per_commit,
    per_cut,
    per_step,
    shards_of,
    unequal,
)
from effcompress.estimate.disk import stored
from effcompress.estimate.feasibility import SizedModel, unknown_model
from effcompress.estimate.flops import H100_FLOPS, UTILISATION, Flops
from effcompress.estimate.memory import Passed, memory, trained
from effcompress.estimate.schedule import (
    Point,
    Timeline,
    loops_of,
    measurements,
    tokens_per_step,
    total_tokens,
)
from effcompress.estimate.serving import NAMES as SOFTWARE
from effcompress.model.source import label_of
from effcompress.network.shape_search import SizedShape
from effcompress.network.shapes import living_layers, living_widths, shape
from effcompress.recipe import LoadedRecipe
from effcompress.record import kind_labels
from effcompress.record.readable import duration, exact_count, short_count, size
from effcompress.spec import Recipe

ROWS = 10
COLUMNS = {
    "attention": "KV heads",
    "query": "queries each",
    "ffn": "FFN",
    "hidden": "hidden",
    "expert": "experts",
    "expert_ffn": "expert FFN",
    "shared_ffn": "shared FFN",
}
"""Kind -> its column in the table of sizes over tokens."""
PARTS = {"copies": "bf16 copies", "grams": "Gram matrices"}
"""Names of memory parts that differ from the field's own."""
UNITS = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


@dataclass(frozen=True)
class Launch:
    """How a run would be started: the number of data-parallel processes, and the operations per
    second of each (None: not known).
    """

    processes: int = 1
    flops_per_second: float | None = None


def plan(loaded: LoadedRecipe, launch: Launch = Launch(), sizes: Sequence[int] = ()) -> Answer:
    """Returns parameters over tokens, final shape, memory and messages per process, FLOPs, hours.
    ``sizes``: parameters between source and target of which the shape is wanted, too; default:
    those of ``export.at``.

    Raises:
        SourceError: the model's configuration is not known.
        RecipeError: the target or a size is out of reach, or the batch does not divide among the
            processes.
    """
    checked = check(loaded)
    found, served = checked.sized, checked.served
    if found is None or served is None:
        raise unknown_model(loaded)
    recipe = loaded.recipe
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
    if found.shapes:
        data["tried"] = [asdict(shape) for shape in found.shapes]
    data |= {key: value for key, value in checked.data.items() if key == "zeroed"}
    listed = [_tried(found.shapes)] if found.shapes else []
    listed += [_over_tokens(found, timeline)] if recipe.prune else []
    if passed := _passed(loaded, found, timeline, sizes):
        data["sizes"] = [
            {
                **{"asked": asked, "params": p.params, "step": p.step, "tokens": p.tokens},
                "shape": shape(own.axes, own.config, p.widths),
            }
            for asked, own, p in passed
        ]
        listed.append(_at_sizes(found, passed))
    listed.append(_final_shape(found, timeline, data.get("zeroed")))
    written = passed if not sizes else _passed(loaded, found, timeline, ())
    written = [one for one in written if not is_target(one[0], found)]
    figures, tables = _costs(recipe, found, timeline, launch, written)
    data["serving"] = {
        form: {
            "made": made.possible,
            **{one.software: one.said for one in served.loadings if one.form == form},
        }
        for form, made in served.made.items()
    }
    columns = ("form", "can be made", *SOFTWARE.values())
    loads = Table("What loads the result", columns, tuple(served.rows()))
    kept = stored(recipe, found, timeline.points[-1].widths)
    notes = (*checked.lines, kept.said) if kept.said else tuple(checked.lines)
    return Answer(data | figures | kept.data, (*listed, *tables, loads, kept.table), notes)


OnTheWay = Sequence[tuple[int, SizedModel, Point]]
"""Sizes that a run passes: parameters asked for, the sized model, the point."""


def _passed(
    loaded: LoadedRecipe, found: SizedModel, timeline: Timeline, sizes: Sequence[int]
) -> OnTheWay:
    """Returns the sizes that are asked for, with the points at which the run passes them."""
    asked = {f"--params {short_count(size)}": size for size in sizes}
    named = {f"export.at.{k}": size for k, size in enumerate(loaded.recipe.export.at or ())}
    if (sizes or named) and (loaded.recipe.prune is None or found.target is None):
        raise RecipeError(
            "--params: the recipe prunes to no size that is known before the run",
            fix="Give it a `target` of params or keep, or leave the option out.",
        )
    return [*points_at(loaded, found, timeline, asked or named)] if asked or named else []


def _at_sizes(found: SizedModel, passed: OnTheWay) -> Table:
    kinds = _kinds(found)
    rows = []
    for asked, own, p in passed:
        sizes = (exact_count(p.params), f"{p.params / found.start:.1%}")
        when = (exact_count(p.tokens), f"{p.step:,}")
        rows.append((short_count(asked), *sizes, *when, *_widths(own, p, kinds)))
    heads = ("asked", "parameters", "fraction", "at tokens", "step")
    columns = (*heads, *(COLUMNS[k] for k in kinds), "layers")
    return Table("Sizes on the way (if kinds shrink in proportion)", columns, tuple(rows))


def _kinds(found: SizedModel) -> list[str]:
    """Returns the kinds that have a column in tables of sizes."""
    cut, always = {s.kind for s in found.sets}, ("attention", "hidden", "ffn")
    return [k for k in COLUMNS if (k in cut or k in always) and found.axes.axes(k)]


def _widths(found: SizedModel, p: Point, kinds: Sequence[str]) -> list[str]:
    """Returns the cells of the kinds and of the layers."""
    widths = [_brief(living_widths(found.axes, p.widths, kind)) for kind in kinds]
    return [*widths, str(len(living_layers(found.axes, p.widths)))]


def _thinned(timeline: Timeline) -> list[Point]:
    """Returns about ``ROWS`` points, evenly over the sizes, both ends included."""
    points = timeline.points
    first, last = points[0].params, points[-1].params
    chosen = [points[0]]
    for k in range(1, ROWS):
        params = first + (last - first) * k / (ROWS - 1)
        nearest = next((p for p in points if p.params <= params), points[-1])
        if nearest.tokens > chosen[-1].tokens:
            chosen.append(nearest)
    if chosen[-1] != points[-1] and points[-1].tokens > chosen[-1].tokens:
        chosen.append(points[-1])
    return chosen


def _tried(shapes: Sequence[SizedShape]) -> Table:
    kinds, active = [*shapes[0].units], bool(shapes[0].active)
    rows = []
    for one in shapes:
        sizes = (one.active, one.params) if active else (one.params,)
        rows.append((*(str(one.units[k]) for k in kinds), *map(exact_count, sizes)))
    heads = [COLUMNS.get(kind, kind_labels.of(kind).short) for kind in kinds]
    heads += ["active", "parameters"] if active else ["parameters"]
    return Table("Shapes that are tried", tuple(heads), tuple(rows))


def _over_tokens(found: SizedModel, timeline: Timeline) -> Table:
    kinds = _kinds(found)
    rows = []
    for p in _thinned(timeline):
        sizes = (exact_count(p.params), f"{p.params / found.start:.1%}")
        rows.append((exact_count(p.tokens), f"{p.step:,}", *sizes, *_widths(found, p, kinds)))
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


def _costs(
    recipe: Recipe, found: SizedModel, timeline: Timeline, launch: Launch, written: OnTheWay
) -> tuple[dict[str, Any], list[Table]]:
    """Returns JSON values, and the same as tables. ``written``: sizes of which the run writes a
    model on its way.

    Raises RecipeError when the batch does not divide among the processes.
    """
    loop = recipe.loop
    for stage in loops_of(recipe):
        if stage.batch_size % launch.processes:
            raise RecipeError(
                f"{launch.processes} processes cannot share a batch of {stage.batch_size} equally",
                where="--processes",
                fix="Name a number that divides it.",
            )
    if launch.processes > 1 and (problem := unequal(recipe.distributed, launch.processes)):
        raise RecipeError(problem[0], where="--processes", fix=problem[1])
    shards = shards_of(recipe, launch.processes)
    final, beside = timeline.points[-1].widths, _beside(timeline, written)
    phases = memory(found, recipe, final, launch.processes, shards, beside)
    held = {phase: {**vars(parts), "total": parts.total} for phase, parts in phases.items()}
    data: dict[str, Any] = {"processes": launch.processes, "memory_bytes": held}
    tables = [_memory_table(held, launch)]
    if launch.processes > 1:
        messages = _messages(recipe, found, timeline, launch)
        data["communicated_bytes"] = {
            when: {m.what: m.bytes for m in said} for when, said in messages.items()
        }
        tables.append(_traffic_table(messages, launch.processes))
    if loop is not None:
        figures = _operations(recipe, found, timeline, launch, written)
        data |= figures
        tables.append(_cost_table(figures, launch))
    return data, tables


def _memory_table(held: dict[str, dict[str, float]], launch: Launch) -> Table:
    """Returns the table of memory by phase, without parts that are zero in every phase."""
    most = max(parts["total"] for parts in held.values())
    scale, unit = next((u for u in UNITS if most >= u[0]), UNITS[-1])
    rows = [
        (PARTS.get(part, part), *(_short(parts[part] / scale) for parts in held.values()))
        for part in next(iter(held.values()))
        if any(parts[part] for parts in held.values())
    ]
    several = f" of each of {launch.processes} processes" if launch.processes > 1 else ""
    title = f"Memory{several} at the peak of each phase ({unit}, beside Python and its libraries)"
    return Table(title, ("", *held), tuple(rows))


def _short(count: float) -> str:
    """Formats with three significant digits; integers from 100 on."""
    if not count:
        return "-"
    return f"{count:.0f}" if count >= 100 else f"{count:.3g}" if count >= 0.01 else "< 0.01"


def _beside(timeline: Timeline, written: OnTheWay) -> list[Passed]:
    """Returns the widths of the run in front of the cut that passes each size, and those of the
    size's model. What a stream is sliced to, or a recovery trains, was cut from the source model.
    """
    points = timeline.points
    return [
        Passed(
            next((p.widths for p in reversed(points) if p.step < there.step), points[0].widths),
            there.widths,
        )
        for _, _, there in written
    ]


def _trained_on(recipe: Recipe, flops: Flops, written: OnTheWay) -> float:
    """Returns the operations of ``export.continued``, over all sizes: of the steps, the teacher's
    forward passes, and held-out losses for the mixture.
    """
    each, asked = tokens_per_step(recipe), recipe.export.continued
    if not asked or not each:
        return 0.0
    more, teacher, total = -(-asked // each) * each, flops.per_token({}) / 3, 0.0
    for _, _, there in written:
        here = flops.per_token(there.widths)
        total += (here * _fraction(recipe) + (teacher if recipe.teacher else 0.0)) * more
        times = measurements(recipe, there.tokens, there.tokens + more)
        total += here / 3 * _heldout(recipe) * times
    return total


def _heldout(recipe: Recipe) -> int:
    """Returns the tokens of a measurement of held-out losses for the mixture."""
    mixture = recipe.data.mixture
    each = mixture.sequences * len(recipe.data.domains) if mixture else 0
    return each * recipe.data.sequence_length


def _fraction(recipe: Recipe) -> float:
    """Returns the operations of a step over those of a forward and a backward pass: low-rank
    updates need no gradients of the weights that they are added to.
    """
    recover = recipe.recover
    return 2 / 3 if recover is not None and recover.method == "lora" else 1.0


def _operations(
    recipe: Recipe, found: SizedModel, timeline: Timeline, launch: Launch, written: OnTheWay
) -> dict[str, Any]:
    """Returns the operations summed over the shrinking model, and the time that follows
    (``seconds`` only where the speed is known).
    """
    flops = Flops(found.axes, found.config, recipe.data.sequence_length)
    total, measured, points = 0.0, 0.0, timeline.points
    mixture, read, fraction = recipe.data.mixture, _heldout(recipe), _fraction(recipe)
    for here, there in itertools.pairwise(points):
        total += flops.per_token(here.widths) * fraction * (there.tokens - here.tokens)
        times = measurements(recipe, here.tokens, there.tokens)
        measured += flops.per_token(here.widths) / 3 * read * times if times else 0.0
    first, last = flops.per_token({}), flops.per_token(points[-1].widths)
    taught = first / 3 * points[-1].tokens if recipe.teacher else 0.0
    more = _trained_on(recipe, flops, written)
    every = total + measured + taught + more
    figures: dict[str, Any] = {
        "tokens": points[-1].tokens,
        "flops": total,
        "flops_if_not_pruned": first * points[-1].tokens,
        **({"flops_of_teacher": taught} if recipe.teacher else {}),
        **({"flops_of_mixture": measured} if mixture else {}),
        **({"flops_of_sizes": more} if more else {}),
        "h100_hours": every / (H100_FLOPS * UTILISATION) / 3600,
        "assumed": {"peak_flops": H100_FLOPS, "utilisation": UTILISATION},
    }
    if launch.flops_per_second:
        rate = launch.flops_per_second * launch.processes
        if recipe.loop and recipe.loop.recompute:  # a third forward: 4 units of work instead of 3
            rate *= 3 / 4
        step, end = tokens_per_step(recipe), tokens_per_step(recipe, total_tokens(recipe) - 1)
        figures["seconds"] = {
            "first_step": first * fraction * step / rate,
            "last_step": last * fraction * end / rate,
            "all_steps": every / rate,
        }
    return figures


def _messages(
    recipe: Recipe, found: SizedModel, timeline: Timeline, launch: Launch
) -> dict[str, list[Message]]:
    """Returns the messages of the first step, of an average cut with its measurement, of its
    commit and a refit at one, and of what comes behind the last one.
    """
    processes, prune, final = launch.processes, recipe.prune, timeline.points[-1].widths
    widths = final if recipe.recover is not None else {}
    shards, messages = shards_of(recipe, processes), dict[str, list[Message]]()
    if recipe.loop is not None:
        count = trained(found, recipe, widths)
        messages["step"] = per_step(found, recipe, widths, processes, count)
    measures = prune is not None and not prune.rotate and prune.measure.source == "calibration"
    if measures and shards > 1:
        messages["calibration"] = per_calibration(found, recipe, {}, processes)
    if prune is not None:
        each, wide = max(1, timeline.groups // max(1, timeline.cuts)), found.axes.widths
        how: Any = {"shards": shards, "processes": processes}
        rotates, cut = prune.rotate is not None, (found, prune, wide, each)
        messages["cut"] = (
            per_rotation(found, recipe, processes) if rotates else per_cut(*cut, **how)
        )
        messages["commit"] = per_commit(found, wide, shards=shards)
        if prune.refit is not None and shards > 1 and not rotates:
            narrow = wide if prune.refit_at == "commits" else final
            messages["refit"] = per_refit(found, recipe, narrow, processes)
    if recipe.sparsify is not None and shards > 1:
        messages["zeros"] = per_sparsify(found, recipe, final, processes)
    return messages


def _traffic_table(messages: dict[str, list[Message]], processes: int) -> Table:
    rows = [
        (f"per {when}", m.what, m.collective, size(m.bytes), size(m.sent(processes)))
        for when, said in messages.items()
        for m in said
    ]
    title = f"Communicated by each of {processes} processes"
    return Table(title, ("", "what", "collective", "bytes", "sent on a ring"), tuple(rows))


def _beside_rows(data: dict[str, Any]) -> list[tuple[str, str]]:
    """Rows of what training computes beside forward and backward passes of the model."""
    beside = (
        ("held-out losses", "flops_of_mixture", "for the mixture"),
        ("teacher", "flops_of_teacher", "for the source model's predictions"),
        ("sizes", "flops_of_sizes", "of `export.continued`"),
    )
    return [
        (title, f"{data[key]:.3g} FLOPs {what} ({data[key] / data['flops']:.1%})")
        for title, key, what in beside
        if key in data
    ]


def _cost_table(data: dict[str, Any], launch: Launch) -> Table:
    saved, hours = 1 - data["flops"] / data["flops_if_not_pruned"], data["h100_hours"]
    rows = [
        ("tokens", exact_count(data["tokens"])),
        ("training FLOPs", f"{data['flops']:.3g} ({saved:.0%} less than the unpruned model's)"),
        *_beside_rows(data),
        ("H100 hours", f"{hours:,.0f}" if hours >= 1 else f"{hours:.2g}"),
        ("assuming", f"{H100_FLOPS / 1e12:.0f} TFLOP/s at {UTILISATION:.0%} utilisation"),
        ("days on 8 H100", f"{hours / 8 / 24:,.1f}"),
    ]
    if "seconds" in data:
        seconds, rate = data["seconds"], launch.flops_per_second
        said = f"{launch.processes} x {rate:.3g} FLOP/s, arithmetic alone"
        steps = f"{duration(seconds['first_step'])}, at the end {duration(seconds['last_step'])}"
        rows += [(f"a step at {said}", steps), ("all steps", duration(seconds["all_steps"]))]
    return Table("Cost", ("", ""), tuple(rows))

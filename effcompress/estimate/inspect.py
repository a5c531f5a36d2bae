"""``effcompress inspect``: lists a model's axes and mini-groups, from its configuration alone."""

from pathlib import Path

from effcompress.answer import Answer, Table
from effcompress.errors import SourceError
from effcompress.model.families import is_declared
from effcompress.model.integrity import read_json
from effcompress.model.source import config_of, label_of
from effcompress.model.suitability import require_causal, text_in
from effcompress.network.axis_map import declaration_of, resolve_model
from effcompress.recipe import LoadedRecipe
from effcompress.record.readable import exact_count
from effcompress.types import DEPTH, AxisMap, Config, axis_kind


def inspect(target: LoadedRecipe | Path) -> Answer:
    """Returns family, axes, and for every kind its mini-groups and the parameters that one frees.

    ``target`` is a recipe, or a folder with a ``config.json``. Raises SourceError when the model's
    configuration or architecture is not known.
    """
    name, config = _config(target)
    axes = resolve_model(config).axes
    family = axes.family
    kinds = {kind: _kind(axes, kind) for kind in kinds_of(axes)}
    never = _never(axes)
    data = {
        "model": name,
        "family": family.name,
        "traced": family.traced,
        "params": axes.count(),
        "kinds": kinds,
        "not_pruned": never,
        "approximate": {k: why for k, why in family.approximate.items() if k in kinds},
        "axes": dict(axes.widths),
    }
    title = f"{name}: family {family.name}, {axes.count():,} parameters"
    columns = ("kind", "sets", "units in each", "mini-groups", "parameters of one")
    rows = tuple((kind, *map(_range, facts.values())) for kind, facts in kinds.items())
    notes = [f"Not pruned: {name}: {why}." for name, why in never.items()]
    notes += [f"Not exact: {kind}: {why}." for kind, why in data["approximate"].items()]
    if family.traced:
        notes.append(
            "The architecture is not declared: this was traced, and proven on a small model. "
            "`--template FILE` writes it as a plugin file."
        )
    return Answer(data, (Table(title, columns, rows), _coupling(axes)), tuple(notes))


def template_of(target: LoadedRecipe | Path) -> str:
    """Returns the text of a plugin file that declares the architecture of a model, as far as
    tracing finds it out. Raises SourceError for one that is declared; CoverageError as tracing does
    where nothing can be written.
    """
    name, config = _config(target)
    kind = str(config.get("model_type"))
    if is_declared(config):
        raise SourceError(f"architecture '{kind}' is declared already", where=name)
    return declaration_of(config)


def kinds_of(axes: AxisMap) -> list[str]:
    """Returns the kinds of mini-groups that this model has, widths before depths."""
    there = dict.fromkeys(axis_kind(name) for name in axes.by_axis)
    wanted = [k for k in there if k not in axes.family.fixed and k not in DEPTH]
    # With one query head per KV head there is no slot to take.
    slots = any(axes.widths[name] > 1 for name in axes.axes("query"))
    depth = () if axes.no_depth else tuple(k for k in DEPTH if k in there)
    return [k for k in wanted if k != "query" or slots] + [*depth]


def _kind(axes: AxisMap, kind: str) -> dict[str, int | list[int]]:
    """Returns the mini-groups of one kind; lists have the distinct values, ascending."""
    sizes = {name: axes.widths[name] for name in axes.axes(kind)}
    return {
        "sets": len(sizes),
        "units": sorted(set(sizes.values())),
        "mini_groups": sum(sizes.values()),
        "params_per_unit": sorted({axes.freed(name, axes.widths) for name in sizes}),
    }


def _never(axes: AxisMap) -> dict[str, str]:
    """Returns what cannot be pruned -> the reason."""
    reasons = {
        "vocab": "one row per token of the tokenizer",
        "positions": "one row per position that the model was trained for",
        "head_dim": "rotations and norms within a head need all of it",
        "one": "a single number",
        "route": "the router keeps its rows where constants take the place of experts",
        "embedding": "another width than the residual stream, tied to the vocabulary",
    }
    found = {}
    unreached = dict(axes.family.unreached)
    for kind in axes.family.fixed:
        if (names := axes.axes(kind)) and kind not in axes.family.unreached:
            width = exact_count(axes.widths[names[0]])
            why = unreached.pop(kind, "") or reasons.get(kind, "the declaration says so")
            found[f"{kind} ({width})"] = why
    if axes.no_depth:
        found["layer"] = axes.no_depth
    for name in sorted(axes.staying & axes.by_axis.keys()):
        found[name] = "the model does not work without it"
    return {**found, **unreached}


def _range(values: int | list[int]) -> str:
    first, *more = [values] if isinstance(values, int) else values
    return f"{first:,} to {more[-1]:,}" if more else f"{first:,}"


def _coupling(axes: AxisMap) -> Table:
    """Returns the sides that shrink together, for the first axis of every kind."""
    rows = []
    for kind in (k for k in axes.family.units if axes.axes(k)):
        first = axes.axes(kind)[0]
        sides = [f"{s.param} dim {s.dim}" for s in axes.by_axis[first]]
        rows += [(first if i == 0 else "", side) for i, side in enumerate(sides[:8])]
        if len(sides) > 8:
            rows.append(("", f"... and {len(sides) - 8} more"))
    return Table("Sides that shrink together", ("axis", "parameter side"), tuple(rows))


def _config(target: LoadedRecipe | Path) -> tuple[str, Config]:
    if isinstance(target, Path):
        config = read_json(target / "config.json")
        if not isinstance(config, dict):
            raise SourceError("config.json is no JSON object", where=str(target))
        config = text_in(target) or config
        require_causal(config, str(target))
        return target.name, config
    config = config_of(target.recipe.model)
    if config is None:
        raise SourceError(
            "the model's configuration is not known here",
            where=label_of(target.recipe.model),
            fix="Run `effcompress fetch RECIPE` first.",
        )
    return label_of(target.recipe.model), config

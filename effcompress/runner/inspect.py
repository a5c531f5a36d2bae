"""``effcompress inspect``: a model's axes and its mini-groups, from its configuration alone."""

from __future__ import annotations

import json
from pathlib import Path

from effcompress import groups
from effcompress.errors import SourceError
from effcompress.model.families import family_of, require_sane
from effcompress.model.source import config_of, label_of
from effcompress.recipe import LoadedRecipe
from effcompress.runner.sheet import Answer, Sheet, short
from effcompress.types import AxisMap, Config


def inspect(target: LoadedRecipe | Path) -> Answer:
    """Family, axes, mini-groups of every kind: how many, and how many parameters one frees.

    ``target`` is a recipe, or a folder with a ``config.json``. Raises SourceError when nothing is
    known of the model or its architecture.
    """
    name, config = _config(target)
    family = family_of(config)
    require_sane(family, config)
    axes = groups.from_config(family, config)
    rows, kinds = [], {}
    for kind in family.units:
        names = axes.axes(kind)
        if kind in family.fixed or not names:
            continue
        widths = sorted({axes.widths[n] for n in names})
        freed = axes.freed(names[0], axes.widths)
        width = str(widths[0]) if len(widths) == 1 else f"{widths[0]} to {widths[-1]}"
        rows.append((kind, str(len(names)), width, f"{freed:,}", f"{freed * len(names):,}"))
        kinds[kind] = {"sets": len(names), "units": widths, "params_per_unit": freed}
    fixed = sorted(set(axes.widths) - {n for k in kinds for n in axes.axes(k)})
    data = {
        "model": name,
        "family": family.name,
        "params": axes.count(),
        "kinds": kinds,
        "not_pruned": fixed,
        "axes": {axis: axes.widths[axis] for axis in axes.widths},
    }
    sheets = (
        Sheet(
            f"{name}: family {family.name}, {axes.count():,} parameters",
            ("kind", "sets", "units", "one frees", "one per set frees"),
            tuple(rows),
        ),
        _coupling(axes),
    )
    notes = ("Not pruned: " + ", ".join(f"{n} ({short(axes.widths[n])})" for n in fixed) + ".",)
    return Answer(data, sheets, notes)


def _coupling(axes: AxisMap) -> Sheet:
    """Which sides shrink together, for the first axis of every kind."""
    rows = []
    for kind in axes.family.units:
        if not axes.axes(kind):
            continue
        first = axes.axes(kind)[0]
        sides = [f"{s.param} dim {s.dim}" for s in axes.by_axis[first]]
        for i, side in enumerate(sides[:8]):
            rows.append((first if i == 0 else "", side))
        if len(sides) > 8:
            rows.append(("", f"... and {len(sides) - 8} more"))
    return Sheet("Sides that shrink together", ("axis", "parameter side"), tuple(rows))


def _config(target: LoadedRecipe | Path) -> tuple[str, Config]:
    if isinstance(target, Path):
        file = target / "config.json"
        if not file.is_file():
            raise SourceError("there is no config.json here", where=str(target))
        return target.name, json.loads(file.read_text(encoding="utf-8"))
    config = config_of(target.recipe.model)
    if config is None:
        raise SourceError(
            "the model's configuration is not known here",
            where=label_of(target.recipe.model),
            fix="Run `effcompress fetch RECIPE` first.",
        )
    return label_of(target.recipe.model), config

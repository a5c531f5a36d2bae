"""``effcompress check``: whether a recipe can be carried out. Loads no weights and no torch."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from effcompress.data import predicted
from effcompress.errors import RecipeError
from effcompress.estimate.allocation import sums_of
from effcompress.estimate.at_sizes import require_sizes
from effcompress.estimate.exports import require_form
from effcompress.estimate.feasibility import (
    SizedModel,
    expected,
    known_costs,
    levels_of,
    require_reachable,
)
from effcompress.estimate.inspect import kinds_of as found_kinds
from effcompress.estimate.positions import require_positions
from effcompress.estimate.schedule import Timeline, fastest, play, too_rare
from effcompress.estimate.serving import Serving, serving
from effcompress.estimate.weights import require_fitting
from effcompress.model.families import declared_by
from effcompress.model.source import outer_of, prompt_length
from effcompress.recipe import LoadedRecipe
from effcompress.selection.reachability import TOLERANCE
from effcompress.spec import PruneSpec, Recipe
from effcompress.types import UNTOUCHED_EXPERTS, Widths, axis_kind


@dataclass(frozen=True)
class CheckResult:
    """The result: ``lines`` for people, ``data`` as JSON. Where the model's configuration is not
    known, ``data`` is empty, and there is no ``sized`` model and nothing ``served``; no timeline
    where nothing is cut.
    """

    lines: list[str]
    data: dict[str, int | None]
    timeline: Timeline | None = None
    sized: SizedModel | None = None
    served: Serving | None = None


def check(loaded: LoadedRecipe) -> CheckResult:
    """Checks model, target and schedule of a recipe.

    Raises RecipeError when no choice of removals, or not this schedule, reaches the target, and
    when the form that it names for the export cannot hold the result.
    """
    found = require_reachable(loaded)
    if found is None:
        unknown = "model: its configuration is not known here; nothing was priced"
        return CheckResult([*_mixture(loaded, None), unknown], {})
    require_fitting(loaded)
    recipe = loaded.recipe
    prompt = prompt_length(recipe.model, recipe.evaluate.prompt)
    lines = [*require_positions(loaded, found.config, prompt), *_mixture(loaded, found)]
    if (outer := outer_of(recipe.model)) is not None:
        kind = found.config["model_type"]
        alone = recipe.export.multimodal == "text"
        how = "is exported by itself" if alone else "is put back into the whole"
        lines.append(f"model: of '{outer}' the text model ({kind}), which {how}")
    lines.append(f"axes: {len(found.axes.shapes)} parameters, all of their dimensions named")
    if isinstance(how := found.config.get("quantization_config"), Mapping):
        lines.append(f"weights: quantised ({how.get('quant_method')}), made plain when loaded")
    lines += _architecture(found)
    exports = [*require_form(loaded, found), *require_sizes(loaded, found)]
    served = serving(loaded, found)
    exports += served.lines()
    data: dict[str, int | None] = {"params": found.start, "target_params": found.target}
    if recipe.prune is not None and recipe.prune.allocation is not None:
        lines.extend(_levels(recipe, recipe.prune, found))
        if found.target is None:
            lines += [*_zeros(loaded, found, found.axes.widths, data), *exports]
            return CheckResult(lines, data, None, found, served)
    if found.target is None:
        lines.append(f"size: {found.start:,} parameters, nothing is cut")
        lines += [*_zeros(loaded, found, found.axes.widths, data), *exports]
        return CheckResult(lines, data, None, found, served)
    change, sizes = found.target / found.start - 1, f"{found.start:,} -> {found.target:,}"
    lines.append(f"target: {sizes} parameters ({change:+.1%}), in reach")
    if tried := found.shapes:
        lines.append(
            f"search: {len(tried)} shapes of {tried[0].counted:,} to {tried[-1].counted:,} "
            f"{'active ' if tried[0].active else ''}parameters are tried; sizes and costs here are "
            "those of the largest"
        )
    timeline = _on_time(loaded, found)
    *_, cut, last = timeline.points
    data |= {"ends_at": last.params, "reached_at_tokens": cut.tokens if timeline.reached else None}
    allocated = recipe.prune is not None and recipe.prune.allocation is not None
    lines += [
        _when(timeline, allocated=allocated),
        *_zeros(loaded, found, last.widths, data),
        *exports,
    ]
    return CheckResult(lines, data, timeline, found, served)


def _architecture(found: SizedModel) -> Iterator[str]:
    """Yields where the axes come from that are not declared in the package."""
    family = found.axes.family
    if (plugin := declared_by(str(found.config["model_type"]))) is not None:
        yield f"architecture: declared in {plugin.where}, and proven on small random models"
    cut, there = {s.kind for s in found.sets}, {axis_kind(name) for name in found.axes.widths}
    for kind, why in family.unreached.items():
        if kind in there and any(kind.endswith(f"_{other}") for other in cut):
            yield f"axes: {kind} stays as it is: {why}"
    if family.traced:
        kinds = ", ".join(found_kinds(found.axes))
        yield f"architecture: not declared; traced, and proven on a small model: {kinds}"
        if why := family.unreached.get(UNTOUCHED_EXPERTS):
            yield f"warning: {UNTOUCHED_EXPERTS}: {why}"


def _levels(recipe: Recipe, prune: PruneSpec, found: SizedModel) -> Iterator[str]:
    """Yields what an allocation chooses from, and, where it is known, what that costs."""
    assert prune.allocation is not None
    modules = levels_of(prune, found)
    most = {m.kind: 0 for m in modules}
    for m in modules:
        most[m.kind] = max(most[m.kind], len(m.widths))
    listed = ", ".join(f"{kind} {levels}" for kind, levels in most.items())
    name = prune.allocation.method.name
    yield f"allocation: {name} chooses for {len(modules)} blocks; levels at most: {listed}"
    if found.target is not None:
        return
    load, target = prune.workload, prune.target
    assert load is not None
    at = f"{load.phase} at batch {load.batch}, length {load.length}"
    every = known_costs(prune, found, recipe.device)
    for costs in every:
        sizes = " -> ".join(costs.said(cost) for cost in (costs.whole, costs.asked))
        yield f"target: {sizes}, {at}, in reach (least {costs.said(costs.least)})"
    if not every:
        faster = f"{target.speedup or 1:g} times as fast"
        asked = faster if target.milliseconds is None else f"{target.milliseconds:g} ms"
        yield f"target: {asked}, {at}; the run measures times first, none are known here yet"
    yield "size: that of the model in the end follows from the choice"


def _mixture(loaded: LoadedRecipe, found: SizedModel | None) -> Iterator[str]:
    """Yields how the weights of the domains change. Raises RecipeError where the reference losses
    follow no scaling law.
    """
    spec = loaded.recipe.data.mixture
    if spec is None:
        return
    count = len(loaded.recipe.data.domains)
    said = f"{spec.sequences} held-out sequences of each of {count} domains"
    if spec.losses == "training":
        said = f"the losses of the training text of {count} domains"
    yield f"mixture: {spec.method.name}, every {spec.every} steps, by {said}"
    if warning := too_rare(loaded.recipe):
        yield f"warning: {warning}"
    if spec.reference != "scaling":
        return
    params = spec.scaling[0].params if found is None else found.target or found.start
    try:
        losses = predicted(spec.scaling, params)
    except ValueError as error:
        raise RecipeError(
            f"data.mixture.scaling: {error}",
            where=loaded.where("data.mixture.reference"),
            fix="Correct the losses, leave a model out, or give `reference` as numbers by domain.",
        ) from error
    listed = ", ".join(f"{name} {loss:.4f}" for name, loss in losses.items())
    yield f"mixture: reference losses at {params:,} parameters: {listed}"


def _zeros(
    loaded: LoadedRecipe, found: SizedModel, widths: Widths, data: dict[str, int | None]
) -> list[str]:
    """Describes what `sparsify` will do after pruning; also writes it into ``data``."""
    spec = loaded.recipe.sparsify
    counts = expected(loaded, found.axes, widths)
    if spec is None or counts is None:
        return []
    weights, data["zeroed"] = counts
    each = f"{100 * spec.fraction:.4g} % of each layer"
    wanted = f"in the pattern {spec.pattern}" if spec.pattern else each
    return [
        f"sparsify: {spec.method.name} makes about {counts[1]:,} of {weights:,} weights in linear "
        f"layers zero, {wanted}; no parameter is removed by it"
    ]


def _when(timeline: Timeline, *, allocated: bool) -> str:
    if timeline.rest:
        return (
            f"schedule: may leave {timeline.rest:,} parameters to be cut at once when the pruning "
            "stage ends, if kinds shrink in proportion"
        )
    if allocated:
        return "schedule: levels of every block are chosen at once"
    if timeline.reached:
        return (
            f"schedule: reaches it after {timeline.points[-2].tokens:,} tokens and "
            f"{timeline.groups:,} mini-groups, if kinds shrink in proportion"
        )
    return (
        "schedule: reaches it only if saliency prefers large mini-groups; else the rest is cut "
        "when the tokens are used up"
    )


def _on_time(loaded: LoadedRecipe, found: SizedModel) -> Timeline:
    """Returns the schedule's timeline. Raises RecipeError if it cannot end at the target even when
    saliency prefers the largest mini-groups.
    """
    timeline = play(loaded.recipe, found)
    if _met(timeline) or _met(play(loaded.recipe, found, fastest)):
        return timeline
    if (prune := loaded.recipe.prune) is not None and prune.allocation is not None:
        _require_sum(loaded, prune, found)
        return timeline
    left = timeline.points[-1].params + timeline.rest
    origin = loaded.origins.get("prune.schedule.name", str(loaded.path))
    raise RecipeError(
        f"prune.schedule: too few mini-groups within the {'stage' if timeline.rest else 'tokens'} "
        f"leave {left:,} parameters; the target is {found.target:,}",
        where="--set prune.schedule" if origin == "--set" else origin,
        fix="Cut more often (every), more at a time (groups), or train on more tokens.",
    )


def _require_sum(loaded: LoadedRecipe, prune: PruneSpec, found: SizedModel) -> None:
    """Raises RecipeError where no choice of levels has the target's size. What levels of FFN
    channels leave of it is filled up.
    """
    (costs,) = known_costs(prune, found, loaded.recipe.device)
    if any(module.kind == "ffn" for module in levels_of(prune, found)):
        return
    sizes = sums_of(costs)
    if any(abs(size - costs.asked) <= TOLERANCE * costs.asked for size in sizes):
        return
    below = max((size for size in sizes if size < costs.asked), default=costs.least)
    above = min((size for size in sizes if size > costs.asked), default=costs.whole)
    raise RecipeError(
        f"prune.target: {costs.asked:,.0f} parameters lie between two sizes that levels of "
        "attention have",
        where=loaded.where(f"prune.target.{prune.target.named}"),
        fix=f"The nearest sizes are {below:,.0f} and {above:,.0f}.",
    )


def _met(timeline: Timeline) -> bool:
    """Returns whether the schedule itself meets the target, before the stage ends."""
    return timeline.reached and not timeline.rest

"""Checks by arithmetic on the configuration whether a recipe's target can be reached.

This is asked before weights are loaded or torch is imported.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from effcompress import groups
from effcompress.errors import CoverageError, RecipeError, SourceError, did_you_mean
from effcompress.estimate.allocation import (
    Costs,
    bytes_costs,
    known_tables,
    params_costs,
    refusal,
)
from effcompress.model.biases import biased
from effcompress.model.lineage import parent_of
from effcompress.model.novices import novel
from effcompress.model.source import config_of, label_of
from effcompress.network.axis_map import ResolvedModel, family_for, resolve_model
from effcompress.network.shape_search import SizedShape, limit_of, shapes_of, smallest_shape
from effcompress.network.shapes import bounded, gated_targets, target_of
from effcompress.network.sliced import sliced_shape
from effcompress.recipe import LoadedRecipe
from effcompress.registry import REGISTRY, Plugin
from effcompress.removal.repairs import for_biases, for_experts, for_streams
from effcompress.selection.budget import Budget, simulate
from effcompress.selection.candidates import candidates_of, least
from effcompress.selection.levels import Module, modules_of, ranked
from effcompress.selection.reachability import TOLERANCE
from effcompress.spec import PruneSpec, SearchSpec, SparsifySpec, TargetSpec
from effcompress.types import DEPTH, AxisMap, Config, Family, GroupSet, Widths


@dataclass(frozen=True)
class SizedModel:
    """A recipe's model as numbers: its axes, group sets, parameters now and at the end."""

    config: Config
    axes: AxisMap
    sets: list[GroupSet]
    start: int
    target: int | None
    source: ResolvedModel | None = None
    """The source model, where ``config`` and ``axes`` are those of a sliced one."""
    shapes: tuple[SizedShape, ...] = ()
    """The shapes that ``prune.search`` tries, the largest first; sets and target are of that one.
    """


def sized_model(loaded: LoadedRecipe) -> SizedModel | None:
    """Returns parameters now and wanted; None while the model's configuration is not known."""
    try:
        config = config_of(loaded.recipe.model)
    except SourceError as error:
        raise _located(loaded, error) from error
    prune = loaded.recipe.prune
    if config is None:
        return None
    # A repair that writes biases adds them to layers without: they count as parameters.
    if prune and (for_biases(prune.repair) or for_streams(prune)):
        config = biased(family_for(parent_of(config)), config)
    if prune and for_experts(prune.repair):
        config = novel(family_for(parent_of(config)), config)
    found = resolve_model(config)
    axes = found.axes
    if prune and prune.rotate:
        return _sliced(loaded, prune, found)
    sets = _sets(loaded, axes, prune) if prune else []
    target = target_of(prune, axes, sets, found.config)
    sized = SizedModel(found.config, axes, sets, axes.count(), target)
    if prune is None or prune.search is None:
        return sized
    try:
        shapes = tuple(shapes_of(prune, axes, sets, found.config))
    except CoverageError as error:
        where = loaded.where("prune.search.grid")
        raise RecipeError(error.what, where=where, fix=error.fix) from error
    if not shapes:
        raise _too_coarse(loaded, sized, prune, prune.search)
    bounds = bounded(sets, TargetSpec(shape=shapes[0].units))
    return replace(sized, sets=bounds, target=shapes[0].params, shapes=shapes)


def _sets(loaded: LoadedRecipe, axes: AxisMap, prune: PruneSpec) -> list[GroupSet]:
    """Returns the group sets. Raises RecipeError for a shape that they cannot have."""
    sets = groups.find(axes, prune.space)
    try:
        return bounded(sets, prune.target)
    except CoverageError as error:
        where = loaded.where("prune.target.shape")
        raise RecipeError(error.what, where=where, fix=error.fix) from error


def _too_coarse(
    loaded: LoadedRecipe, sized: SizedModel, prune: PruneSpec, search: SearchSpec
) -> RecipeError:
    """Returns the error for a search whose smallest shape is above the target."""
    active = prune.target.active_params is not None
    of = sized.axes, sized.sets, search
    least = smallest_shape(*of, sized.config if active else None)
    said = ", ".join(f"{kind} {units}" for kind, units in least.units.items())
    return RecipeError(
        f"prune.search: the smallest shape of the grid ({said}) has {least.counted:,} "
        f"{'active ' if active else ''}parameters; the target is "
        f"{limit_of(prune, sized.axes, sized.sets):,}",
        where=loaded.where("prune.search"),
        fix="Raise max_width or max_depth, or add to prune.space what else may go.",
    )


def _sliced(loaded: LoadedRecipe, prune: PruneSpec, found: ResolvedModel) -> SizedModel:
    """Returns the model of a recipe that slices the stream before anything is trained: its axes are
    those of the sliced model. Raises RecipeError where there is none.
    """
    try:
        shape = sliced_shape(prune, found.config, found.axes)
    except CoverageError as error:
        key = error.what.partition(":")[0]
        given = (k for k in loaded.origins if k.startswith(key))
        where = loaded.where(next(given, "prune.rotate.name"))
        raise RecipeError(error.what, where=where, fix=error.fix) from error
    start, target = found.axes.count(), shape.axes.count()
    return SizedModel(shape.config, shape.axes, [], start, target, found)


def unknown_model(loaded: LoadedRecipe) -> SourceError:
    """Returns the error for a model whose configuration is not on this machine."""
    return SourceError(
        "the model's configuration is not known here",
        where=label_of(loaded.recipe.model),
        fix="Run `effcompress fetch RECIPE`, or write its configuration under model.shape.",
    )


def _located(loaded: LoadedRecipe, error: SourceError) -> SourceError:
    """The error with the line of the recipe that its address, a key, stands in."""
    key = (error.where or "").partition(":")[0]
    of_model = (k for k in loaded.origins if k.startswith("model."))
    known = (loaded.origins.get(k, "default") for k in (key, *of_model))
    line = next((origin for origin in known if origin != "default"), loaded.path)
    return SourceError(error.what, where=f"{line}: {error.where}", fix=error.fix)


def budget_of(sized: SizedModel) -> Budget:
    """Returns the budget at the beginning of a run."""
    assert sized.target is not None
    return Budget(sized.axes, candidates_of(sized.sets), {}, sized.target)


def require_reachable(loaded: LoadedRecipe) -> SizedModel | None:
    """Returns the sized model of a recipe whose target can be met; None if its size is not known.

    Raises RecipeError, with the nearest sizes that can be had, if it cannot.
    """
    sized, prune = sized_model(loaded), loaded.recipe.prune
    if sized is not None and prune is not None and not prune.rotate:
        require_fit(loaded, prune, sized)
    return sized


def require_fit(loaded: LoadedRecipe, prune: PruneSpec, sized: SizedModel) -> None:
    """Raises RecipeError where this model cannot meet the target, or has not what the criterion,
    gates or the refit take.
    """
    _require_masks(loaded, prune, sized)
    _require_inputs(loaded, prune, sized)
    _require_gates(loaded, prune, sized)
    _require_projections(loaded, prune, sized)
    if prune.allocation is not None:
        _require_levels(loaded, prune, sized)
        return
    assert sized.target is not None
    where = loaded.where(f"prune.target.{prune.target.named}")
    if sized.target > sized.start * (1 + TOLERANCE):
        raise RecipeError(
            f"prune.target: {sized.target:,} parameters, but the model has only {sized.start:,}",
            where=where,
            fix="Name a smaller target, or a larger model.",
        )
    lowest = least(sized.axes, sized.sets)
    if sized.target < lowest * (1 - TOLERANCE):
        kinds = ", ".join(bound.name for bound in prune.space)
        raise RecipeError(
            f"prune.target: {sized.target:,} parameters cannot be reached by cutting {kinds}: "
            f"{lowest:,} always remain",
            where=where,
            fix=f"Name at least {lowest:,}, or add to prune.space what else may go.",
        )
    budget = budget_of(sized)
    if not budget.bridged:
        simulate(budget)
        if not budget.reached:
            raise _missed(budget, where)


def _require_masks(loaded: LoadedRecipe, prune: PruneSpec, sized: SizedModel) -> None:
    """Raises RecipeError where a mini-group has no mask gradient (``measure/taps.py``)."""
    if "mask_grad" not in prune.saliency.needs:
        return
    for s in ranked(sized.sets, prune):
        if s.kind in DEPTH:
            raise RecipeError(
                f"prune.criterion: '{prune.saliency.name}' takes gradients of masks, which "
                f"'{s.name}' has not: no one tensor holds what layers and blocks do",
                where=loaded.where("prune.criterion"),
                fix="Use a criterion of weights (taylor, taylor_second), or leave this space out.",
            )


def levels_of(prune: PruneSpec, sized: SizedModel) -> list[Module]:
    """Returns the modules that the allocation chooses widths of, with their levels."""
    assert prune.allocation is not None
    return modules_of(sized.sets, prune.allocation.shrink)


def known_costs(prune: PruneSpec, sized: SizedModel, device: str) -> list[Costs]:
    """Returns what levels cost: one entry by arithmetic, or one for every table of times in the
    cache that may be this run's (none: it has yet to be measured).
    """
    modules, axes = levels_of(prune, sized), sized.axes
    if sized.target is not None:
        return [params_costs(axes, modules, sized.target)]
    assert prune.workload is not None
    if prune.target.memory is not None:
        load = prune.workload
        return [bytes_costs(axes, sized.config, modules, load, prune.target.memory)]
    tables = known_tables(axes, modules, prune, device)
    return [table.costs(modules, prune.target) for table in tables]


def _require_levels(loaded: LoadedRecipe, prune: PruneSpec, sized: SizedModel) -> None:
    """Raises RecipeError where no choice of levels meets the target, as far as that is known."""
    key = prune.target.named
    where = loaded.where(f"prune.target.{key}")
    if prune.target.timed and (sized.axes.family.traced or not sized.axes.family.sublayers):
        raise RecipeError(
            f"prune.target.{key}: of '{sized.axes.family.name}', which was traced, the parts of a "
            "layer are not known, so they cannot be timed",
            where=where,
            fix="Name a target of parameters or memory.",
        )
    try:
        found = known_costs(prune, sized, loaded.recipe.device)
    except CoverageError as error:
        at = loaded.where("prune.allocation.name")
        raise RecipeError(error.what, where=at, fix=error.fix) from error
    refused = [refusal(costs, levels_of(prune, sized), key) for costs in found]
    if refused and all(refused) and (said := refused[0]) is not None:
        raise RecipeError(said[0], where=where, fix=said[1])


def _require_inputs(loaded: LoadedRecipe, prune: PruneSpec, sized: SizedModel) -> None:
    """Raises RecipeError where a criterion of forward statistics has no score for a group set:
    statistics of inputs rank widths, those of the residual stream rank layers, those of experts'
    outputs rank experts.
    """
    plugin = prune.saliency.plugin
    says, compared = _says_of(plugin), ranked(sized.sets, prune)
    wanted = dict.fromkeys(_measured_on(s.kind) for s in compared)
    fit = [p.name for p in REGISTRY.all("criterion") if _says_all(p, wanted)]
    use = f"Use a criterion of {' and '.join(wanted)} ({', '.join(fit)})" if fit else ""
    for s in compared if plugin.reads_forward else ():
        if _measured_on(s.kind) not in says:
            raise RecipeError(
                f"prune.criterion: '{prune.saliency.name}' says nothing of '{s.name}': it is one "
                f"of {' and '.join(says) or 'places'}",
                where=loaded.where("prune.criterion.name"),
                fix=f"{use}, or leave this space out." if use else "Leave this space out.",
            )
    _require_inputs_of_experts(loaded, prune, sized)


def _require_inputs_of_experts(loaded: LoadedRecipe, prune: PruneSpec, sized: SizedModel) -> None:
    """Raises RecipeError where channels of all experts of a layer cannot be scored by what their
    projections read: by second moments, or on the outputs of layers that are cut already.
    """
    plugin, axes = prune.saliency.plugin, sized.axes
    if not plugin.reads_inputs and not plugin.cumulative:
        return
    for s in ranked(sized.sets, prune):
        if plugin.cumulative and len(read := _linears_that_read(axes, s)) > 1:
            raise RecipeError(
                f"prune.criterion: '{prune.saliency.name}' scores the one linear layer that reads "
                f"a mini-group, and {len(read)} read those of '{s.name}': {read[0]}, ...",
                where=loaded.where("prune.criterion.name"),
                fix="Use a criterion of weights (taylor, magnitude), or leave this space out.",
            )
        inside = (side for side in s.sides if side.dim == axes.family.expert_inputs)
        if s.layer is None or not any(axes.stacked(side.param) for side in inside):
            continue
        if plugin.cumulative:
            raise RecipeError(
                f"prune.criterion: '{prune.saliency.name}' scores whole linear layers by second "
                f"moments, and '{s.name}' are channels of all experts of a layer",
                where=loaded.where("prune.criterion.name"),
                fix="Use a criterion of weights (taylor, magnitude), or leave this space out.",
            )
        if prune.measure.propagate:
            raise RecipeError(
                f"prune.measure.propagate: '{s.name}' are channels of all experts of a layer, "
                "which cannot go before the layers behind are measured",
                where=loaded.where("prune.measure.propagate"),
                fix="Remove `propagate`, or leave this space out.",
            )


def _linears_that_read(axes: AxisMap, s: GroupSet) -> list[str]:
    """Returns the weights of linear layers within the model's layers that read these mini-groups,
    without those of experts.
    """
    prefix, inputs = axes.family.layer.partition("{i}")[0], axes.family.inputs
    read = (side.param for side in s.sides if side.dim == inputs)
    matrices = (p for p in read if p.startswith(prefix) and len(axes.shapes[p]) == 2)
    return [*dict.fromkeys(matrices)]


def _says_all(plugin: Plugin, wanted: Iterable[str]) -> bool:
    """Whether a criterion of forward passes scores all that is measured so."""
    return plugin.reads_forward and {*wanted} <= {*_says_of(plugin)}


def _require_gates(loaded: LoadedRecipe, prune: PruneSpec, sized: SizedModel) -> None:
    """Raises RecipeError where learned gates cannot act, or cannot reach the shape."""
    if prune.gates is None:
        return
    kinds = dict.fromkeys(s.kind for s in sized.sets)
    unknown = next((kind for kind in prune.gates.starts or () if kind not in kinds), None)
    if unknown is not None:
        raise RecipeError(
            f"prune.gates.starts names '{unknown}', which nothing under prune.space cuts",
            where=loaded.where(f"prune.gates.starts.{unknown}"),
            fix=did_you_mean(unknown, kinds),
        )
    try:
        targets = gated_targets(sized.sets)
    except CoverageError as error:
        where = loaded.where("prune.gates.gate.name")
        raise RecipeError(f"prune.gates: {error.what}", where=where, fix=error.fix) from error
    fractions = {s.kind: targets[s.name] for s in sized.sets if s.name in targets}
    fractions = fractions if prune.target.shape else {}
    found = prune.gates.gate.refusal(fractions=fractions, limit=prune.gates.limit)
    if found is not None:
        raise RecipeError(
            f"prune.gates: {found[0]}",
            where=loaded.where("prune.target.shape"),
            fix=found[1],
        )


def _require_projections(loaded: LoadedRecipe, prune: PruneSpec, sized: SizedModel) -> None:
    """Raises RecipeError where no linear layer writes into the residual stream, which a refit
    would change.
    """
    family = sized.axes.family
    if prune.refit is not None and (why := no_refit(family, sized.config)):
        raise RecipeError(
            f"prune.refit: of '{family.name}', {why}",
            where=loaded.where("prune.refit.name"),
            fix="Take prune.refit out.",
        )


def no_refit(family: Family, config: Config) -> str:
    """Returns why projections into the stream cannot be refitted; empty where they can."""
    if not family.sublayers or family.traced:
        return "which was traced, the writers of a layer are not known"
    behind = family.norms_behind(config)
    return "norms lie behind the projections into the stream" if behind else ""


def _measured_on(kind: str) -> str:
    """Returns what a criterion of forward passes must be one of to score mini-groups of a kind."""
    return "layers" if kind in DEPTH else "experts" if kind == "expert" else "inputs"


def _says_of(plugin: Plugin) -> list[str]:
    """Returns what a criterion of forward passes scores: layers (and blocks), inputs, experts."""
    says = {
        "layers": plugin.says_of_depth,
        "inputs": plugin.reads_inputs,
        "experts": plugin.reads_experts,
    }
    return [name for name, said in says.items() if said]


def _missed(budget: Budget, where: str) -> RecipeError:
    """Returns the error for a target that lies between two sizes, or that ranges forbid."""
    gone = 1 - budget.params / budget.start
    if budget.next_size == budget.params and (shut := budget.out_of_range):
        return RecipeError(
            f"prune.target: {budget.target:,} parameters, but at {budget.params:,} "
            f"({gone:.1%} gone) `after` and `until` leave no kind that may go",
            where=where,
            fix=f"Widen `after` or `until` of {', '.join(shut)} under prune.space.",
        )
    return RecipeError(
        f"prune.target: {budget.target:,} parameters lie between two sizes this model can have",
        where=where,
        fix=f"The nearest sizes are {budget.next_size:,} and {budget.params:,}.",
    )


def skipped_layers(spec: SparsifySpec, parent: AxisMap) -> set[int]:
    """Returns the layers that stay dense, by their numbers in the parent; -1 is the last."""
    last = max(parent.depth.layers, default=-1) + 1
    return {i + last if i < 0 else i for i in spec.skip_layers}


def expected(loaded: LoadedRecipe, axes: AxisMap, widths: Widths) -> tuple[int, int] | None:
    """Returns the weights that `sparsify` ranks and those it zeroes at these widths; None without
    `sparsify`.

    Raises RecipeError when all layers are skipped, a skipped layer does not exist, or inputs do not
    divide into the groups of the pattern.
    """
    spec = loaded.recipe.sparsify
    if spec is None:
        return None
    unknown = skipped_layers(spec, axes) - set(axes.depth.layers)
    params = list(_linears(axes, spec))
    if unknown or not params:
        last = max(axes.depth.layers, default=-1)
        raise RecipeError(
            f"sparsify.skip_layers: {f'no layer {min(unknown)}' if unknown else 'nothing is left'}",
            where=loaded.where("sparsify.skip_layers.0"),
            fix=f"The layers are 0 to {last}; negative numbers count from the end.",
        )
    # Of a pruned model, the pattern is checked on the pruned shapes, in the run.
    pattern = spec.n_of_m if loaded.recipe.prune is None else None
    for param in params if pattern else ():
        inputs = axes.shapes[param][axes.family.inputs]
        if pattern and inputs % pattern.of:
            raise RecipeError(
                f"sparsify.pattern: the {inputs} inputs of {param} do not divide into groups of "
                f"{pattern.of}",
                where=loaded.where("sparsify.pattern"),
                fix=f"Write `sparsity: {spec.fraction:.0%}` instead, or leave layers out by "
                "`skip_layers`.",
            )
    weights = sum(axes.numel(param, {**axes.widths, **widths}) for param in params)
    return weights, round(weights * spec.fraction)


def _linears(axes: AxisMap, spec: SparsifySpec) -> Iterator[str]:
    """Yields the linear layers that do not stay dense; experts and routers are not among them."""
    before, after = axes.family.layer.split("{i}")
    skipped = skipped_layers(spec, axes)
    for j, i in enumerate(axes.depth.layers):
        prefix = f"{before}{j}{after}."
        router = axes.family.router.replace("{i}", str(j)) + ".weight"
        for param, shape in axes.shapes.items():
            inside = param.startswith(prefix) and i not in skipped
            if inside and len(shape) == 2 and param != router and not param.endswith("bias"):
                yield param

"""Can this recipe reach its target? Arithmetic on the configuration, before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass

from effcompress import groups
from effcompress.errors import RecipeError
from effcompress.model.biases import biased
from effcompress.model.lineage import parent_of
from effcompress.model.source import config_of
from effcompress.network.axis_map import resolve_model
from effcompress.network.family import family_for
from effcompress.network.target import bounded, target_of
from effcompress.recipe import LoadedRecipe
from effcompress.registry import REGISTRY, Plugin
from effcompress.removal.repairs import for_biases, for_streams
from effcompress.selection.budget import Budget
from effcompress.selection.candidates import candidates_of, least
from effcompress.selection.reachability import TOLERANCE
from effcompress.selection.simulate import simulate
from effcompress.spec import PruneSpec
from effcompress.types import DEPTH, AxisMap, Config, GroupSet


@dataclass(frozen=True)
class SizedModel:
    """A recipe's model as numbers."""

    config: Config
    axes: AxisMap
    sets: list[GroupSet]
    start: int
    target: int | None


def sized_model(loaded: LoadedRecipe) -> SizedModel | None:
    """Parameters now and wanted, from the configuration; None while no configuration is known."""
    config = config_of(loaded.recipe.model)
    if config is None:
        return None
    prune = loaded.recipe.prune
    if prune and (for_biases(prune.repair) or for_streams(prune)):
        config = biased(family_for(parent_of(config)), config)
    found = resolve_model(config)
    axes = found.axes
    sets = bounded(groups.find(axes, prune.space), prune.target) if prune else []
    return SizedModel(found.config, axes, sets, axes.count(), target_of(prune, axes, sets))


def budget_of(price: SizedModel) -> Budget:
    """The budget at the beginning of a run."""
    assert price.target is not None
    return Budget(price.axes, candidates_of(price.sets), {}, price.target)


def require_reachable(loaded: LoadedRecipe) -> SizedModel | None:
    """Raises RecipeError, with the nearest sizes that can be had, if the target cannot be met."""
    price = sized_model(loaded)
    prune = loaded.recipe.prune
    if price is None or prune is None or price.target is None:
        return price
    _require_masks(loaded, prune, price)
    _require_inputs(loaded, prune, price)
    where = _where(loaded, prune)
    if price.target > price.start * (1 + TOLERANCE):
        raise RecipeError(
            f"prune.target: {price.target:,} parameters, but the model has only {price.start:,}",
            where=where,
            fix="Name a smaller target, or a larger model.",
        )
    lowest = least(price.axes, price.sets)
    if price.target < lowest * (1 - TOLERANCE):
        kinds = ", ".join(bound.name for bound in prune.space)
        raise RecipeError(
            f"prune.target: {price.target:,} parameters cannot be reached by cutting {kinds}: "
            f"{lowest:,} always remain",
            where=where,
            fix=f"Name at least {lowest:,}, or add to prune.space what else may go.",
        )
    budget = budget_of(price)
    simulate(budget)
    if not budget.reached:
        raise _missed(budget, where)
    return price


def _require_masks(loaded: LoadedRecipe, prune: PruneSpec, price: SizedModel) -> None:
    """Masks have gradients where one tensor holds what a mini-group does (``measure/taps.py``)."""
    if "mask_grad" not in prune.criterion.needs:
        return
    for s in price.sets:
        if s.kind in DEPTH or any(len(price.axes.shapes[side.param]) > 2 for side in s.sides):
            raise RecipeError(
                f"prune.criterion: '{prune.criterion.name}' takes gradients of masks, which "
                f"'{s.name}' has not: layers, blocks, experts and what experts write into",
                where=loaded.origins.get("prune.criterion", str(loaded.path)),
                fix="Use a criterion of weights (taylor, taylor_second), or leave this space out.",
            )


def _require_inputs(loaded: LoadedRecipe, prune: PruneSpec, price: SizedModel) -> None:
    """Criteria of what layers read know nothing of whole layers, unless they say so."""
    plugin = prune.criterion.plugin
    depth, width = _says_of(plugin)
    both = ", ".join(p.name for p in REGISTRY.all("criterion") if all(_says_of(p)))
    for s in price.sets if plugin.reads_forward else ():
        if not (depth if s.kind in DEPTH else width):
            raise RecipeError(
                f"prune.criterion: '{prune.criterion.name}' says nothing of '{s.name}': it is one "
                + ("of inputs" if s.kind in DEPTH else "of layers"),
                where=loaded.origins.get("prune.criterion.name", str(loaded.path)),
                fix=f"Use a criterion of both ({both}), or leave this space out.",
            )


def _says_of(plugin: Plugin) -> tuple[bool, bool]:
    """Whether a criterion of forward passes scores layers and blocks, and inputs."""
    return bool(plugin.of_layers) or "layer" in plugin.needs, plugin.reads_inputs


def _missed(budget: Budget, where: str) -> RecipeError:
    """What to say of a target that cutting in proportion does not meet."""
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


def _where(loaded: LoadedRecipe, prune: PruneSpec) -> str:
    given = [name for name, value in vars(prune.target).items() if value is not None]
    key = f"prune.target.{given[0]}"
    origin = loaded.origins.get(key, str(loaded.path))
    return f"--set {key}" if origin == "--set" else origin

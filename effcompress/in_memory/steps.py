"""The steps of pruning one by one: what may go, how salient it is, what goes, and the cut."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.optim import Optimizer

from effcompress.errors import RecipeError, did_you_mean
from effcompress.in_memory.batches import Loss
from effcompress.in_memory.result import Groups, MiniGroups, PruneResult, result_of
from effcompress.in_memory.session import (
    Named,
    Space,
    address_of,
    in_steps,
    open_session,
    values_of,
)
from effcompress.network.shapes import bounded, wanted
from effcompress.recipe import load_mapping
from effcompress.registry import Bound, Plugin
from effcompress.removal.repairs import for_experts, for_linears
from effcompress.runner.measuring import Measured, calibrated
from effcompress.runner.prune import commit_event, mask_plan, require_met, unranked
from effcompress.saliency.score import alike
from effcompress.selection import choose as selection
from effcompress.spec import Recipe
from effcompress.types import DEPTH, AxisMap, Due, GroupSet, Plan, Scores, axis_kind

AT_ONCE = {"name": "once", "at": 0}
WHOLE = {"keep": 1.0}
"""A target where none is asked for: nothing goes."""
WEIGHTS = "magnitude"
"""A criterion that reads no text, where saliency is not asked for."""


def mini_groups(model: Any, space: Space | None = None) -> Groups:
    """Returns the mini-groups of a causal language model of transformers: what goes together when
    a head, a channel, an expert or a layer goes. Changes nothing.

    ``space``: kinds of them, as under `prune.space` of a recipe (``"ffn"``, ``{"name": "attention",
    "scope": "global"}``, or a list of these); default: heads, FFN channels and channels of the
    residual stream, in equal numbers from every layer. An architecture that is not declared is
    traced, in a process of its own.

    Raises SourceError for a model that cannot be pruned here (no causal language model, adapters,
    quantised, wrapped), CoverageError or RecipeError for a space that it has not.
    """
    given = {"target": WHOLE, "space": space, "criterion": WEIGHTS, "schedule": AT_ONCE}
    pruned = open_session("mini_groups", model, None, given, feasible=False).state.pruned
    axes, found = pruned.axes, tuple(pruned.sets)
    sets = (
        MiniGroups(s.name, s.kind, s.layer, s.size, axes.freed(s.name, axes.widths), s.minimum)
        for s in found
    )
    return Groups(pruned.params, tuple(sets), found, axes, pruned.config)


def scores(
    model: Any,
    batches: Any = None,
    *,
    criterion: Named = "taylor",
    space: Space | None = None,
    hessian: Named | None = None,
    reduce: Mapping[str, Any] | None = None,
    loss: Loss | None = None,
) -> Scores:
    """Returns the saliency of every mini-group: set -> ``score_G`` in fp32, low for what matters
    little. The model is not changed, and ends in the mode (train, eval) that it was in.

    ``batches``: an iterable of token ids ``[B, T]``, or of mappings with ``input_ids`` and perhaps
    ``attention_mask`` and ``labels``; they are read one sequence at a time, without padding. A
    criterion of weights alone (``magnitude``) needs none. ``loss(model, batch)``: in place of the
    next-token loss, for criteria that take gradients; ``batch`` is one sequence of the script's.
    ``hessian`` and ``reduce``: as under `prune` of a recipe.

    Raises SourceError for batches that cannot be read, RecipeError for an unknown criterion or one
    that needs what is not there, SurgeryError where a gradient is alive (it would be lost).
    """
    given = {
        "target": WHOLE,
        "space": space,
        "criterion": criterion,
        "hessian": hessian,
        "reduce": reduce,
        "schedule": AT_ONCE,
    }
    session = open_session("scores", model, batches, given, loss=loss)
    return calibrated(session.state, session.prune, session.log).scores


def choose(
    groups: Groups,
    scores: Scores,
    *,
    keep: float | str | None = None,
    params: int | str | None = None,
    shape: Mapping[str, int] | None = None,
    selector: Named = "least_salient",
    normalise: str | None = None,
) -> Plan:
    """Returns what goes (set -> units) so that the model has a size: exactly one of ``keep`` (a
    fraction of the parameters), ``params`` (each met within 0.5 %) and ``shape`` (kind -> units
    left in every layer). Changes nothing.

    ``selector`` compares mini-groups of different kinds; ``normalise``: how ``least_salient`` does
    (``raw``, ``per_parameter``, ``per_kind``).

    Raises RecipeError for a target that cannot be met or scores of other mini-groups, RunError
    where all scores are zero.
    """
    target = target_of("choose", keep, params, shape)
    given = {"target": target, "criterion": WEIGHTS, "schedule": AT_ONCE, "space": ["ffn"]}
    given |= {"selector": selector_of(selector, normalise), "measure": {"source": "calibration"}}
    spec = _checked("choose", given).prune
    assert spec is not None and spec.selector is not None
    chooser = spec.selector
    if chooser.plugin.companion is not None:
        raise RecipeError(
            f"selector '{chooser.name}' measures layers before it chooses",
            where="choose(selector=...)",
            fix="Use effcompress.prune, which measures and chooses.",
        )
    _require_scores(groups.found, scores)
    sets = bounded(groups.found, spec.target)
    size = wanted(spec.target, groups.axes, sets)
    assert size is not None, "a fraction, a number or a shape is a size"
    _require_smaller(size, groups)
    found = selection.choose(sets, groups.axes, scores, Due(params=size), size, chooser)
    require_met(found.params, size)
    return found.plan


def cut(
    model: Any,
    plan: Plan,
    *,
    optimizer: Optimizer | None = None,
    repair: Sequence[Named] | None = None,
    batches: Any = None,
) -> PruneResult:
    """Cuts the mini-groups of a plan (set -> units, by their number now) out of the model, in
    place: every ``Parameter`` stays the same object, with fewer rows or columns, and the
    optimizer's moments lose the same ones.

    ``repair``: corrections of what remains, as under `prune.repair` of a recipe (default: gains of
    norms); those that read the inputs of layers need ``batches``. The cut proves itself: masked and
    cut model give the same logits.

    Raises RecipeError for sets or units that the model has not, and for a plan that leaves nothing
    of a set; SurgeryError for an optimizer of another model, and where a gradient, a loss or an
    output of the last step is alive.
    """
    space = Bound(Plugin("space", "of_plan", _limits(plan), ("axes",), {}, "", "cut(plan)"))
    given: dict[str, Any] = {
        "target": WHOLE,
        "space": ["ffn"],
        "criterion": WEIGHTS,
        "repair": None if repair is None else [*repair],
        "schedule": AT_ONCE,
    }
    how: Any = {"optimizer": optimizer, "space": [space], "feasible": False}
    session = open_session("cut", model, batches, given, **how)
    state, prune, log = session.state, session.prune, session.log
    before = session.size
    measures = for_linears(prune.repair) or for_experts(prune.repair)
    found = calibrated(state, prune, log) if measures else Measured({})
    mask_plan(state, prune, plan, found, log)
    commit_event(state, log)
    session.close()
    return result_of(session, before, plan)


def target_of(
    call: str,
    keep: float | str | None,
    params: int | str | None,
    shape: Mapping[str, int] | None,
) -> dict[str, Any]:
    """Returns the target that a script names. Raises RecipeError for none, several, and for a
    fraction that is not one.
    """
    named = {"keep": keep, "params": params, "shape": shape}
    given = {name: value for name, value in named.items() if value is not None}
    if len(given) != 1:
        said = " and ".join(f"{name}=" for name in given) or "no size"
        fix = "Name one of keep=0.8 (a fraction), params=100_000_000, shape={'ffn': 1024}."
        raise RecipeError(f"{said} given; one target is needed", where=f"{call}(...)", fix=fix)
    if isinstance(keep, int | float) and not 0 < keep < 1:
        raise RecipeError(
            f"keep is {keep}, but must be between 0 and 1",
            where=f"{call}(keep=...)",
            fix="E.g. keep=0.8: a fifth of the parameters goes.",
        )
    return given


def selector_of(selector: Named | None, normalise: str | None) -> Named | None:
    """Returns the selector with the knob ``normalise``, which stands for ``least_salient``'s."""
    if normalise is None:
        return selector
    plugin = {"name": selector} if isinstance(selector, str) else selector
    plugin = plugin or {"name": "least_salient"}
    return {**plugin, "normalise": normalise}


def _checked(call: str, prune: Mapping[str, Any]) -> Recipe:
    """Returns the recipe of a section that no model is needed for."""
    values = values_of({"model_type": "llama"}, prune, None)
    return load_mapping(values, address_of(call), in_steps).recipe


def _require_scores(sets: Sequence[GroupSet], scores: Scores) -> None:
    """Raises RecipeError for scores that are not those of these sets, RunError where nothing ranks
    them.
    """
    for s in sets:
        if s.name not in scores:
            what, fix = f"no score of '{s.name}'", did_you_mean(s.name, scores)
            raise RecipeError(what, where="choose(scores)", fix=fix)
        if tuple(scores[s.name].shape) != (s.size,):
            got = tuple(scores[s.name].shape)
            what = f"'{s.name}' has {s.size} mini-groups, its scores the shape {got}"
            fix = "Measure the scores on the model as it is now, with the same space."
            raise RecipeError(what, where="choose(scores)", fix=fix)
        if not bool(torch.isfinite(scores[s.name]).all()):
            fix = "Give finite numbers."
            raise RecipeError(
                f"a score of '{s.name}' is not finite", where="choose(scores)", fix=fix
            )
    if alike(sets, scores) and not any(bool(scores[s.name].any()) for s in sets):
        raise unranked("of these scores")


def _require_smaller(size: int, groups: Groups) -> None:
    if size > groups.params:
        raise RecipeError(
            f"the target is {size:,} parameters, but the model has only {groups.params:,}",
            where="choose(params=...)",
            fix="Name a smaller target.",
        )


def _limits(plan: Plan) -> Any:
    """Returns a space of the sets of a plan, whatever their kinds."""

    def of_plan(axes: AxisMap) -> Iterator[GroupSet]:
        known = [name for name in axes.by_axis if axis_kind(name) not in axes.family.fixed]
        for name, units in plan.items():
            if name not in known:
                kind = axis_kind(name)
                near = [k for k in known if axis_kind(k) == kind] or sorted(
                    {*map(axis_kind, known)}
                )
                fix = did_you_mean(name, near)
                raise RecipeError(f"the model has no '{name}'", where="cut(plan)", fix=fix)
            _require_units(name, units, axes.widths[name])
        for kind in dict.fromkeys(map(axis_kind, plan)):
            yield from axes.sets(kind, minimum=0 if kind in DEPTH else 1)

    return of_plan


def _require_units(name: str, units: Sequence[int], size: int) -> None:
    wrong = next((u for u in units if not (isinstance(u, int) and 0 <= u < size)), None)
    if wrong is not None:
        what, fix = f"'{name}' has no unit {wrong}", f"Its units are 0 to {size - 1}."
        raise RecipeError(what, where="cut(plan)", fix=fix)
    if len({*units}) < len(units):
        raise RecipeError(f"'{name}' names a unit twice", where="cut(plan)", fix="Name it once.")
    if len(units) == size and axis_kind(name) not in DEPTH:
        fix = "Leave one, or cut the whole block (`mlp_block`, `attention_block`) or layer."
        raise RecipeError(f"nothing would be left of '{name}'", where="cut(plan)", fix=fix)

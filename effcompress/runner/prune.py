"""One prune event: measure, choose, mask; every ``commit_every`` removals, shorten the tensors."""

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from effcompress import fault
from effcompress.errors import PluginError, RunError
from effcompress.estimate.allocation import Costs
from effcompress.estimate.memory import TESTED
from effcompress.estimate.schedule import pruning_stage
from effcompress.measure.blockwise import Block, blockwise
from effcompress.measure.experts import ExpertStatistics
from effcompress.measure.grams import readers
from effcompress.measure.statistics import InputStatistics
from effcompress.network.approximate import removed_alone, split
from effcompress.network.pruned_model import PrunedModel
from effcompress.record import events
from effcompress.record.log import Log
from effcompress.removal.mask import route
from effcompress.removal.selftest import same_function
from effcompress.runner import branches
from effcompress.runner.allocate import (
    allocated,
    latency_event,
    levels_and_costs,
    record_choice,
)
from effcompress.runner.gates import absorbing
from effcompress.runner.measuring import Measured, measured, ready, text_of
from effcompress.runner.recovery import refit_event
from effcompress.runner.resources import Meter, Spent, counted, drained
from effcompress.runner.search import search_event
from effcompress.runner.state import RunState
from effcompress.saliency.average import in_original_order
from effcompress.saliency.inputs import score_inputs
from effcompress.saliency.score import alike
from effcompress.selection.choose import Choice, choose, least_salient
from effcompress.selection.levels import Module, ranked
from effcompress.selection.reachability import TOLERANCE
from effcompress.spec import PruneSpec
from effcompress.types import DEPTH, Cut, Due, GroupSet, Plan, Scores, axis_kind, axis_layer


def due_now(state: RunState, prune: PruneSpec, log: Log) -> Due | None:
    """Asks the schedule what is due; the rest of the target, once the pruning stage is over.
    Nothing is due before the first measurement.
    """
    if state.target_reached or not ready(state, prune):
        return None
    begin, end = pruning_stage(state.recipe)
    target = state.target_params
    if prune.allocation is not None:  # one cut, at the start
        return Due(params=target)
    due = prune.schedule.due(
        step=state.step,
        tokens=state.tokens,
        total_tokens=state.total_tokens,
        start_params=state.parent_params,
        params=state.params,
        target_params=target,
        groups_cut=state.groups_cut,
        removed=state.removed,
        left=state.budget().left if "left" in prune.schedule.needs else {},
        positions=state.positions,
        prune_from=begin,
        prune_until=end,
    )
    goes_there = due is not None and (due.again or due.params == target)
    if end < state.total_tokens and state.tokens >= end and not goes_there:
        log.warn(remainder(state))
        return Due(params=target)
    if due and due.params and due.params > target and state.params <= due.params:
        return None  # small enough already: nothing to measure and to compare
    return due


def remainder(state: RunState) -> str:
    """Returns the warning for a pruning stage that ends before the target is reached."""
    train = state.recipe.train
    left = state.params - state.target_params
    what = f"{left:,} parameters too many" if left > 0 else "blocks that are not finished"
    key = "train.stages.pruning" if train and train.stages else "train.tokens"
    return (
        f"the pruning stage ends with {what}; cutting them now: give {key} more tokens, or the "
        "schedule more groups per event"
    )


def prune_event(state: RunState, prune: PruneSpec, due: Due, log: Log) -> None:
    """Measures, chooses and masks mini-groups, records the cut, and commits when enough are masked.

    Raises RunError where every saliency is zero, and where no candidate is left and the target is
    missed by more than 0.5 %.
    """
    meter, before = Meter(state.device), branches.undecided(state, log)
    # First, because a target that is out of reach is known then.
    leveled = state.world.agree(lambda: levels_and_costs(state, prune, log))
    found = measured(state, prune, log)
    _require_ranked(state, prune, found.scores, log)
    _observe(state, prune, due, found)
    if prune.search is not None and not state.shape:
        with counted(state):
            search_event(state, prune, found, log)
        due = replace(due, params=state.target_params)
    # Rank 0 decides for all: scores that differ in the last digit must not lead to other models.
    decide = partial(_decided, state, prune, due, found, leveled, log)
    choice, allocation = state.world.agree(decide)
    if prune.measure.propagate and choice.plan:
        with counted(state, alike=True):
            choice = propagated(state, prune, choice, log)
    branches.branch_off(state, before, choice.params, due, log)
    if allocation is not None:
        record_choice(state, prune, choice, allocation, log)
    if choice.plan:
        # Matrices that were dealt out are solved by their holders, others by every process.
        dealt = found.inputs is not None and found.inputs.dealt_out
        with absorbing(state, due, choice.plan, log), counted(state, alike=not dealt):
            mask_plan(state, prune, choice.plan, found, log)
        fault.point("cut")
        state.average.cut()
        state.groups_cut += sum(choice.removed.values())
        state.since_commit += sum(choice.removed.values())
        for kind, units in choice.units.items():
            state.removed[kind] = state.removed.get(kind, 0) + units
        _write_down(state, choice, meter.read().with_earlier(found.earlier), log)
    state.target_reached = choice.exhausted
    # A block that is masked whole would learn its last bias again, so it is cut at once.
    whole = any(axis_kind(name) in DEPTH for name in choice.plan)
    commits = state.target_reached or whole or state.since_commit >= prune.commit_every
    if commits:
        commit_event(state, log)
    if not state.target_reached:
        if commits and prune.refit_at == "commits":
            refit_event(state, prune, log)
        return
    state.watch()  # removes the hooks
    if allocation is not None:
        latency_event(state, prune, allocation, log)
    require_met(state.params, state.target_params, leveled=allocation is not None)
    refit_event(state, prune, log)


def require_met(params: int, target: int, *, leveled: bool = False) -> None:
    """Raises RunError where this size misses the target by more than 0.5 %. ``leveled``: widths
    were chosen in place of mini-groups.
    """
    if abs(params - target) > TOLERANCE * target:
        raise RunError(
            f"pruning stopped at {params:,} parameters, the target is {target:,}",
            fix="Write a `shrink` nearer to 1 or a smaller `round_to`: no choice of levels comes "
            "nearer."
            if leveled
            else "Nothing more may go: lower a `minimum`, a `finish_on` or a `round_to`, widen "
            "`after` or `until`, or add a space under prune.space.",
        )


def _decided(
    state: RunState,
    prune: PruneSpec,
    due: Due,
    found: Measured,
    leveled: tuple[list[Module], Costs] | None,
    log: Log,
) -> tuple[Choice, events.Allocation | None]:
    """What goes: candidate by candidate, or, with an allocation, by a width for every block."""
    if leveled is None:
        return _chosen(state, prune, due, found.scores), None
    return allocated(state, prune, found, *leveled, log)


def _require_ranked(state: RunState, prune: PruneSpec, scores: Scores, log: Log) -> None:
    """Warns, once per kind, of mini-groups that saliency does not tell apart. Raises RunError where
    every saliency is zero.
    """
    # Those of layers that are still there.
    sets = ranked(state.pruned.sets, prune)
    compared = [s for s in sets if not state.gates or s.name in state.gates.names]
    same, name = alike(compared, scores), prune.saliency.name
    if same and not any(bool(v[torch.isfinite(v)].any()) for v in scores.values()):
        raise unranked(name)
    for kind in same.keys() - state.alike:
        log.warn(f"criterion '{name}': {same[kind]}, so their order in the model decides")
    state.alike |= same.keys()


def unranked(criterion: str) -> RunError:
    """Returns the error for saliencies that are all zero."""
    return RunError(
        f"criterion '{criterion}' gives every mini-group the saliency 0, so nothing ranks them",
        fix="Look at the loss and the text that it is measured on, or use another criterion.",
    )


def _chosen(state: RunState, prune: PruneSpec, due: Due, scores: Scores) -> Choice:
    sets, selector = state.pruned.parent_sets, prune.selector
    assert selector is not None, "recipe.load fills in the default selector"
    known = state.target_params, selector, state.selector_state, state.begun
    # Gates of layers are compared as they are, whatever the layers free.
    raw = state.gates is not None
    return choose(sets, state.pruned.parent, scores, due, *known, raw_pools=raw)


def _observe(state: RunState, prune: PruneSpec, due: Due, found: Measured) -> None:
    """Calls the selector's ``observe``, if it has one, with what was measured for this cut.

    Raises PluginError when it returns something that is not plain JSON.
    """
    selector = prune.selector
    assert selector is not None, "recipe.load fills in the default selector"
    widths = state.pruned.ledger.widths()
    if due.stage != state.stage:
        state.stage, state.begun, state.selector_state = due.stage, dict(widths), None
    if selector.plugin.companion is None:
        return
    layers = {
        name: {axis_layer(unit): v for unit, v in values.items() if axis_kind(unit) == "layer"}
        for name, values in found.of_layers.items()
    }
    new = selector.companion(state=state.selector_state, widths=widths, **layers)
    try:
        # By way of JSON, so that a resumed run sees the very same values.
        state.selector_state = json.loads(json.dumps(new))
    except (TypeError, ValueError) as error:
        raise PluginError(
            f"selector '{selector.name}': what `observe` returns is not plain JSON: {error}",
            where=selector.plugin.where,
            fix="Return numbers, texts, lists and dicts of them.",
        ) from error


def commit_event(state: RunState, log: Log) -> None:
    """Cuts the masked units out of the tensors, and proves that the function stayed the same."""
    if not state.pruned.ledger.pending():
        return
    meter = Meter(state.device)
    # A router sends few tokens to an expert: there, more of them.
    tokens = state.probe_BT.shape[1] if state.pruned.axes.axes("expert") else TESTED
    probe = state.probe_BT[:, :tokens].to(state.device)
    with same_function(state.module, probe, state.optimizer, lambda: state.to_call) as proof:
        state.unwrap()
        layers = state.pruned.depth
        state.pruned.commit(state.optimizer, state.grams)
        fault.point("commit")
    state.watch(anew=state.pruned.depth != layers)  # other tensors, or layers of other numbers
    state.since_commit = 0
    now = {"step": state.step, "params": state.params, **vars(meter.read())}
    log.event(events.Commit(**now, max_logit_difference=proof.max_logit_difference))


def mask_plan(state: RunState, prune: PruneSpec, plan: Plan, found: Measured, log: Log) -> None:
    """Masks the units of a plan. Where that changes more than their own output (removal is then
    only approximate), records by how much on the probe.
    """
    pruned = state.pruned
    how: Any = {"optimizer": state.optimizer, "repairs": prune.repair, "inputs": found.inputs}
    how["outputs"] = found.outputs
    probe = state.probe_BT.to(state.device)
    inexact, exact = split(pruned.family, plan)
    if inexact:
        with removed_alone(pruned, inexact, probe, state.to_call) as seen:
            pruned.mask(inexact, **how)
        sets, moved = tuple(inexact), seen[0]
        log.event(events.Approximate(step=state.step, sets=sets, max_logit_difference=moved))
    pruned.mask(exact, **how)


def _write_down(state: RunState, choice: Choice, spent: Spent, log: Log) -> None:
    cut: dict[str, Any] = {
        **{"step": state.step, "tokens": state.tokens, "params": choice.params},
        **{"removed": choice.removed, "saliency": choice.lowest},
    }
    log.plan(Cut(**cut, plan=choice.plan, scores=choice.scores))
    gone: dict[str, list[float]] = {}
    for s in state.pruned.parent_sets:
        gone.setdefault(s.kind, []).append(1.0 - choice.widths[s.name] / s.size)
    fractions = {kind: sum(each) / len(each) for kind, each in gone.items()}
    measured_by = {**vars(spent), "flops": drained(state)}
    log.event(events.Cut(**cut, share_removed=fractions, **measured_by))


def propagated(state: RunState, prune: PruneSpec, choice: Choice, log: Log) -> Choice:
    """Returns ``choice`` with as many mini-groups of every set, but the least salient by the inputs
    that reach their layer once earlier layers are pruned. The model is not changed: until the last
    layer has been measured, hooks zero what goes where it is read. Heads and channels of one layer
    are scored in the same pass, before either goes. Every rank measures on all sequences, rank 0
    chooses.

    Raises RunError for models that cannot be taken block by block, CoverageError and PluginError as
    ``score_inputs`` does.
    """
    # The same tokens as in `measured`, which has recorded them.
    text = text_of(state, prune.measure.sequences)
    pruned, plan, raw = state.pruned, dict(choice.plan), dict(choice.scores)
    module = state.unwrapped
    waiting = [s for s in pruned.sets if s.name in plan]
    params = readers(module, pruned.axes, waiting)
    with ExitStack() as stack:
        of = module, pruned.family.layer
        for block in blockwise(*of, *text, precision=state.calibrating):
            within = f"{block.path}."
            sets = [s for s in waiting if any(m.param.startswith(within) for m in s.sides)]
            scores = _scored(state, prune, block, sets) if sets else {}
            found = state.world.agree(partial(_least, sets, scores, plan))
            for s in sets:
                plan[s.name], raw[s.name] = found[s.name]
                at = pruned.ledger.positions(s.name, plan[s.name])
                _silence(pruned, s, at, params, stack)
            waiting = [s for s in waiting if s not in sets]
            log.progress("layer", block.number + 1, len(pruned.depth.layers))
            if not waiting:
                break
    return replace(choice, plan=plan, scores=raw)


def _least(
    sets: Sequence[GroupSet], scores: Scores, plan: Plan
) -> dict[str, tuple[list[int], list[float]]]:
    """The least salient units of each set, as many as its plan has, and their saliency."""
    return {s.name: least_salient(scores[s.name], len(plan[s.name]), s.parts) for s in sets}


def _scored(state: RunState, prune: PruneSpec, block: Block, sets: Sequence[GroupSet]) -> Scores:
    """Scores the sets of one layer, in original order, inf where a unit is gone."""
    params = readers(state.module, state.pruned.axes, sets)
    here = {name: dim for name, dim in params.items() if name in block.linears}
    plugin, ledger = prune.saliency.plugin, state.pruned.ledger
    read = InputStatistics(state.module, here, plugin.needs, plugin.of_inputs)
    names = [s.name for s in sets if s.kind == "expert"] if plugin.reads_experts else []
    of = state.module, state.pruned.axes, names, plugin.of_experts
    experts = ExpertStatistics(*of)
    with closing(read), closing(experts), read.listening(), experts.listening():
        block.run()
    found = score_inputs(sets, prune.saliency, read, {}, experts.read())
    sizes = {s.name: ledger.sizes[s.name] for s in sets}
    return ledger.original_order(in_original_order(found, ledger.original, sizes))


def _silence(
    pruned: PrunedModel, s: GroupSet, at: Tensor, params: Mapping[str, int], until: ExitStack
) -> None:
    """Registers hooks that zero the inputs of the mini-groups at these positions; of experts, lets
    the router choose among the others.
    """
    if s.kind == "expert":
        alive_G = pruned.ledger.alive[s.name].clone()
        alive_G[at] = False
        route(pruned.module, pruned.axes, s.name, alive_G)
        until.callback(route, pruned.module, pruned.axes, s.name, pruned.ledger.alive[s.name])
        return
    for m in s.members:
        if params.get(m.param) == m.dim:
            linear = pruned.module.get_submodule(m.param.removesuffix(".weight"))
            hook = partial(_zeroed, m.index_GB[at].flatten())
            until.callback(linear.register_forward_pre_hook(hook).remove)


def _zeroed(gone: Tensor, _module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    x, *rest = args
    return (x.index_fill(-1, gone.to(x.device), 0.0), *rest)

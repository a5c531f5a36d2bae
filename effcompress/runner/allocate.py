"""Chooses a width for every block under a budget: what levels cost, what error they make, the
plugin's choice, and for a target of time whether a model of these widths takes what was predicted.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, final

import torch
from torch import Tensor, nn

from effcompress.errors import RunError
from effcompress.estimate.allocation import (
    Costs,
    bytes_costs,
    params_costs,
    refusal,
    still_fits,
)
from effcompress.isolation import placed
from effcompress.measure.grams import Grams, readers
from effcompress.measure.stats import logits_at
from effcompress.precision import autocast
from effcompress.record import events
from effcompress.record.log import Log
from effcompress.registry import Bound
from effcompress.removal.repairs import for_linears
from effcompress.runner.latency import (
    Source,
    Times,
    compared,
    levels_by_layer,
    shaped,
    table_for,
)
from effcompress.runner.measuring import Measured, calibration_text
from effcompress.runner.resources import counted
from effcompress.runner.state import RunState
from effcompress.selection.allocate import chosen, errors_of, units_gone
from effcompress.selection.choose import Choice
from effcompress.selection.levels import Module, filled, held_back, modules_of, widths_of
from effcompress.selection.reachability import TOLERANCE
from effcompress.spec import AllocationSpec, PruneSpec
from effcompress.types import Scores

AIMED = 0.01
"""Distance of measured from asked times, as a fraction, above which levels are chosen once more."""
PROMISED = 0.05
"""The same for the cut model, above which the run says why."""
AT_MOST = 1.25
"""The budget is changed by this factor at most: beyond it, the machine was busy with other work."""
POSITIONS = 128
"""Tokens of a sequence at which distributions are compared, evenly spread."""
KEPT = 256
"""Weights of other levels that are kept for the next comparison."""


def levels_and_costs(
    state: RunState, prune: PruneSpec, log: Log
) -> tuple[list[Module], Costs] | None:
    """Returns the modules and what their levels cost, None without an allocation. Times are
    measured if the cache has none.

    Raises RunError for a target that no levels meet, before anything else is measured.
    """
    if prune.allocation is None:
        return None
    pruned, target = state.pruned, prune.target
    modules = modules_of(pruned.parent_sets, prune.allocation.shrink)
    if target.sized:
        costs = params_costs(pruned.parent, modules, state.target_params)
    elif target.memory is not None:
        assert prune.workload is not None
        load = prune.workload
        costs = bytes_costs(pruned.parent, pruned.config, modules, load, target.memory)
    else:
        assert prune.workload is not None
        source = Source(pruned.module, pruned.parent, pruned.config)
        table, known = table_for(source, modules, prune.workload, log.note)
        log.note("times of blocks: measured by an earlier run" if known else "times measured")
        if table.busy:
            log.warn(table.busy)
        costs = table.costs(modules, target)
    if (said := refusal(costs, modules, target.named)) is not None:
        raise RunError(said[0], fix=said[1])
    return modules, costs


@torch.no_grad()
def allocated(
    state: RunState,
    prune: PruneSpec,
    found: Measured,
    modules: Sequence[Module],
    costs: Costs,
    log: Log,
) -> tuple[Choice, events.Allocation]:
    """Returns the widths that the plugin chooses, and the event that records them. For a target of
    time a random model of these widths is timed beside the source model, and where that is not what
    was asked, the plugin chooses once more with a budget changed by as much.

    Raises PluginError for anything else than one level per module within the budget.
    """
    spec, started = prune.allocation, time.monotonic()
    assert spec is not None
    whole = WholeModel(state, prune, found, modules, log)
    if spec.errors == "replaced":
        error_ML = replaced(whole, modules, spec, log)
    else:
        error_ML = errors_of(modules, found.scores, prune.saliency)
    ask = partial(_levels, state, spec, modules, error_ML, whole)
    levels, aimed = ask(costs), None
    if prune.target.timed and (wanted := _aim(state, prune, modules, levels, costs)) is not None:
        aimed = replace(costs, asked=wanted)
        if aimed.least <= wanted:
            levels = ask(aimed)
    width_M = _widths(modules, levels, error_ML, costs)
    sets, axes = state.pruned.parent_sets, state.pruned.parent
    choice = chosen(sets, modules, width_M, found.scores, axes)
    event = events.Allocation(
        step=state.step,
        method=spec.method.name,
        errors=spec.errors,
        unit=costs.unit,
        asked=costs.asked,
        predicted=_predicted(modules, levels, width_M, costs),
        before=costs.whole,
        least=costs.least,
        aimed=aimed and aimed.asked,
        widths=dict(zip((m.name for m in modules), width_M, strict=True)),
        error=sum(e[k] for e, k in zip(error_ML, levels, strict=True)),
        loss=whole.known(levels),
        comparisons=whole.count,
        seconds=time.monotonic() - started,
    )
    return choice, event


def record_choice(
    state: RunState, prune: PruneSpec, choice: Choice, event: events.Allocation, log: Log
) -> None:
    """Records the choice; where the target is no size, that of the choice is from now on."""
    log.event(event)
    if not prune.target.sized:
        state.target_params = choice.params


def _widths(
    modules: Sequence[Module],
    levels: Sequence[int],
    error_ML: Sequence[Sequence[float]],
    costs: Costs,
) -> list[int]:
    """The widths at these levels; what they leave of an exact budget is filled with channels."""
    spare = 0.0 if costs.unit == "seconds" else costs.asked - costs.of(levels)
    return filled(modules, levels, error_ML, costs.cost_ML, spare)


def _predicted(
    modules: Sequence[Module], levels: Sequence[int], width_M: Sequence[int], costs: Costs
) -> float:
    """The cost of a choice with what was filled up; costs are linear between two levels."""
    total = costs.of(levels)
    for module, level, width, cost in zip(modules, levels, width_M, costs.cost_ML, strict=True):
        if more := width - module.widths[level]:
            span = module.widths[level - 1] - module.widths[level]
            total += more * (cost[level - 1] - cost[level]) / span
    return total


def _levels(
    state: RunState,
    spec: AllocationSpec,
    modules: Sequence[Module],
    error_ML: Sequence[Sequence[float]],
    whole: WholeModel,
    costs: Costs,
) -> list[int]:
    """Asks the plugin, and again without the last level of a block, where more blocks of a kind
    would go than the space allows: always the one that makes the largest difference stays.
    """
    open_M = [len(m.widths) for m in modules]
    while True:
        offered = replace(costs, cost_ML=_first(costs.cost_ML, open_M))
        levels = _asked(state, spec, modules, _first(error_ML, open_M), whole, offered)
        held = held_back(modules, levels, error_ML)
        if not held:
            return levels
        for k in held:  # the first one without which the target stays in reach
            tried = [count - (n == k) for n, count in enumerate(open_M)]
            if still_fits(costs, modules, tried) or k == held[-1]:
                open_M = tried
                break


def _first(
    values_ML: Sequence[Sequence[float]], open_M: Sequence[int]
) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(values[:n]) for values, n in zip(values_ML, open_M, strict=True))


def _asked(
    state: RunState,
    spec: AllocationSpec,
    modules: Sequence[Module],
    error_ML: Sequence[Sequence[float]],
    whole: WholeModel,
    costs: Costs,
) -> list[int]:
    """Asks the plugin, and holds it to its contract."""
    found = spec.method(
        error_ML=error_ML,
        cost_ML=costs.cost_ML,
        # A target just below the least that there is is met by that, as `TOLERANCE` says.
        budget=max(costs.budget, sum(map(min, costs.cost_ML))),
        kind_M=[m.kind for m in modules],
        loss=whole,
        sequences=whole.sequences,
        generator=torch.Generator().manual_seed(state.recipe.seed),
    )
    plugin = spec.method.plugin
    numbers = isinstance(found, Sequence) and all(type(level) is int for level in found)
    if not numbers or len(found) != len(modules):
        fix = "Return the number of a level, from 0 on, for every module."
        raise plugin.error(f"returned {found!r:.60} for {len(modules)} modules", fix)
    if any(not 0 <= k < len(offered) for k, offered in zip(found, costs.cost_ML, strict=True)):
        raise plugin.error("returned a level that a module does not have")
    if costs.of(found) > costs.asked * (1 + TOLERANCE):
        spent, asked = costs.said(costs.of(found)), costs.said(costs.asked)
        raise plugin.error(f"returned levels that cost {spent}, where {asked} were asked for")
    return list(found)


def _aim(
    state: RunState,
    prune: PruneSpec,
    modules: Sequence[Module],
    levels: Sequence[int],
    costs: Costs,
) -> float | None:
    """Times a random model of the chosen widths beside the source model. Returns the time to ask
    for instead, changed by as much as the measured time misses the asked; None where it does not.
    """
    assert prune.workload is not None
    pruned, width_M = state.pruned, [m.widths[k] for m, k in zip(modules, levels, strict=True)]
    widths = {**pruned.parent.widths, **widths_of(modules, width_M)}
    trial = shaped(pruned.config, pruned.family, levels_by_layer(pruned.depth, widths))
    seen = compared(pruned.module, trial.to(state.device), prune.workload)
    if prune.target.speedup is not None:
        missed = prune.target.speedup / seen.speed_up.median
    else:
        missed = seen.pruned.median / costs.asked
    missed = min(max(missed, 1 / AT_MOST), AT_MOST)
    return costs.asked / missed if abs(missed - 1) > AIMED else None


def latency_event(state: RunState, prune: PruneSpec, chosen: events.Allocation, log: Log) -> None:
    """Times the cut model beside a random one of the source model's widths, records what was asked,
    predicted and measured, and warns where they are more than 5 % apart.
    """
    load, pruned = prune.workload, state.pruned
    if not prune.target.timed or load is None:
        return
    levels = levels_by_layer(pruned.parent.depth, pruned.parent.widths)

    def timed() -> Times:
        dense = shaped(pruned.config, pruned.family, levels).to(state.device)
        return compared(dense, state.module, load)

    seen = state.world.agree(timed)
    asked = prune.target.speedup
    scale = 1.0 if asked is None else seen.dense.median / chosen.before
    event = events.Latency(
        step=state.step,
        phase=load.phase,
        batch=load.batch,
        length=load.length,
        threads=load.threads or torch.get_num_threads(),
        rounds=load.rounds,
        asked=chosen.asked * scale,
        predicted=chosen.predicted * scale,
        measured=seen.pruned.median,
        low=seen.pruned.low,
        high=seen.pruned.high,
        dense=seen.dense.median,
        asked_speed_up=asked,
        speed_up=seen.speed_up.median,
    )
    log.event(event)
    missed = event.measured / event.asked if asked is None else asked / event.speed_up
    if abs(missed - 1) > PROMISED:
        log.warn(_missed(event, missed))


def _missed(event: events.Latency, missed: float) -> str:
    times = [f"{value * 1e3:.4g}" for value in (event.asked, event.predicted, event.measured)]
    return (
        f"the cut model takes {missed:.3f} times what was asked: asked {times[0]} ms, predicted "
        f"{times[1]} ms from its blocks timed one by one, measured {times[2]} ms "
        f"({event.low * 1e3:.4g} to {event.high * 1e3:.4g} over {event.rounds} rounds); a quieter "
        "machine or more prune.workload.rounds narrow that"
    )


@final
class WholeModel:
    """The model with every block at some level, compared with the source model on calibration
    text: the KL divergence of their next-token distributions in nats per token.

    What reads the units that go gets other weights for the pass, repaired as the recipe says; the
    model itself is not changed.
    """

    def __init__(
        self,
        state: RunState,
        prune: PruneSpec,
        found: Measured,
        modules: Sequence[Module],
        log: Log,
    ) -> None:
        assert prune.allocation is not None
        self.sequences = prune.allocation.sequences or prune.measure.sequences
        self.count = 0
        """Comparisons so far, without those that were known."""
        self._state, self._modules, self._log = state, modules, log
        self._scores: Scores = found.scores
        self._inputs: Grams | None = found.inputs
        self._repairs = for_linears(prune.repair)
        self._params: Mapping[str, nn.Parameter] = state.pruned.parameters()
        sets = {s.name: s for s in state.pruned.sets}
        chosen = [sets[module.name] for module in modules]
        self._inputs_of = readers(state.module, state.pruned.axes, chosen)
        self._read = [s.reading(self._inputs_of) for s in chosen]
        """Of every module the linear layers that read it, and the inputs that each unit owns."""
        self._text: tuple[Tensor, Tensor | None] | None = None
        self._dense: list[Tensor] = []
        self._weights: dict[tuple[int, int], dict[str, Tensor]] = {}
        self._known: dict[tuple[int, ...], list[float]] = {}
        """Levels -> the divergence on each sequence, from the first on."""

    def __call__(self, levels: Sequence[int], sequences: int) -> float:
        """Returns the divergence on the first so many sequences."""
        key, count = tuple(levels), max(1, min(sequences, self.sequences))
        if len(key) != len(self._modules):
            raise ValueError(f"{len(key)} levels for {len(self._modules)} modules")
        found = self._known.setdefault(key, [])
        if len(found) < count:
            self._compare(key, found, count)
        return sum(found[:count]) / count

    def known(self, levels: Sequence[int]) -> float | None:
        """Returns the divergence on the most text on which these levels were compared, if any."""
        found = self._known.get(tuple(levels))
        return sum(found) / len(found) if found else None

    def _compare(self, levels: tuple[int, ...], found: list[float], count: int) -> None:
        """Adds the divergences on the sequences up to ``count`` that are not in ``found``."""
        self.count += 1
        self._log.progress("comparison", self.count, None)
        training = self._state.module.training
        self._state.module.eval()
        with counted(self._state):
            # First, because the weights of the source model are those in place.
            while len(self._dense) < count:
                self._dense.append(self._distribution({}, len(self._dense)))
            other = self._stitched(levels)
            for n in range(len(found), count):
                dense_PV, found_PV = self._dense[n], self._distribution(other, n)
                kl_P = (dense_PV.exp() * (dense_PV - found_PV)).sum(-1)
                found.append(float(kl_P.double().mean()))
        self._state.module.train(training)

    def _distribution(self, weights: Mapping[str, Tensor], n: int) -> Tensor:
        """Log-probabilities ``[P, V]`` in fp32 at some tokens of sequence ``n``."""
        if self._text is None:
            self._text = calibration_text(self._state, self.sequences, self._log)
        ids_NT, positions_NT = self._text
        module, device = self._state.module, self._state.device
        how: dict[str, Any] = {"input_ids": ids_NT[n : n + 1].to(device), "use_cache": False}
        if positions_NT is not None:
            how |= placed(module, positions_NT[n : n + 1])
        tokens = ids_NT.shape[1]
        stride = max(1, tokens // POSITIONS)
        at_P = torch.arange(stride - 1, tokens, stride, device=device)
        few = logits_at(module, at_P)  # the output matrix is a fifth of the pass
        with autocast(device, self._state.calibrating):
            found = torch.func.functional_call(module, dict(weights), (), {**how, **few}).logits[0]
        return (found if few else found[at_P]).float().log_softmax(-1)

    def _stitched(self, levels: tuple[int, ...]) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for k, level in enumerate(levels):
            if level:
                found |= self._level(k, level)
        return found

    def _level(self, k: int, level: int) -> dict[str, Tensor]:
        """The weight, and bias, of what reads module ``k`` at a level."""
        if (k, level) in self._weights:
            self._weights[k, level] = self._weights.pop((k, level))  # the newest is last
            return self._weights[k, level]
        module = self._modules[k]
        width = module.widths[level]
        units = torch.tensor(units_gone(module, self._scores[module.name], width))
        found: dict[str, Tensor] = {}
        for param, index_GB in self._read[k].items():
            found |= self._without(param, index_GB[units].flatten(), whole=not width)
        self._weights[k, level] = found
        if len(self._weights) > KEPT:
            del self._weights[next(iter(self._weights))]
        return found

    def _without(self, param: str, gone: Tensor, *, whole: bool) -> dict[str, Tensor]:
        """The weight, and bias, of a layer without these inputs; ``whole``: its block goes."""
        beside = param.removesuffix("weight") + "bias"
        weight, bias = self._params[param], self._params.get(beside)
        turned = self._inputs_of[param] == 0
        new_OI = (weight.T if turned else weight).detach().clone()
        bias_O = None if bias is None else bias.detach().clone()
        if not whole:
            new_OI, bias_O = self._repaired(param, new_OI, bias_O, gone)
        new_OI = new_OI.index_fill(1, gone.to(new_OI.device), 0.0)
        found = {param: new_OI.T if turned else new_OI}
        # A block that goes takes its bias along.
        return found if bias_O is None else {**found, beside: bias_O * (not whole)}

    def _repaired(
        self, param: str, weight_OI: Tensor, bias_O: Tensor | None, gone: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        for repair in self._repairs if self._inputs is not None else ():
            assert self._inputs is not None
            given = {"gram": self._inputs.read(param), "mean": self._inputs.mean(param)}
            weight_OI, more_O = _corrected(repair, weight_OI, given, gone)
            if more_O is not None and bias_O is not None:
                bias_O = bias_O + more_O
        return weight_OI, bias_O


def _corrected(
    repair: Bound, weight_OI: Tensor, given: dict[str, Tensor | None], gone: Tensor
) -> tuple[Tensor, Tensor | None]:
    return repair.corrected(weight_OI, **given, gone=gone.to(weight_OI.device))


def replaced(
    whole: WholeModel, modules: Sequence[Module], spec: AllocationSpec, log: Log
) -> list[list[float]]:
    """Returns the error of every level as the divergence of the source model from itself with that
    one block replaced; levels between the measured ones are interpolated by width.
    """
    found: list[list[float]] = []
    for k, module in enumerate(modules):
        log.progress("block", k + 1, len(modules))
        last, known = len(module.widths) - 1, {0: 0.0}
        for n in range(1, spec.replaced_at + 1):
            level = round(last * n / spec.replaced_at)
            levels = [level if m == k else 0 for m in range(len(modules))]
            if level not in known:
                known[level] = max(0.0, whole(levels, whole.sequences))
        found.append(_interpolated(known, module.widths))
    return found


def _interpolated(known: Mapping[int, float], widths: Sequence[int]) -> list[float]:
    """Values at all levels, linear in the width between known ones."""
    at = sorted(known)
    values: list[float] = []
    for level, width in enumerate(widths):
        low = max(k for k in at if k <= level)
        high = min(k for k in at if k >= level)
        span = widths[low] - widths[high]
        part = (widths[low] - width) / span if span else 0.0
        values.append(known[low] + part * (known[high] - known[low]))
    return values

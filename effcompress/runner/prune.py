"""One prune event: measured scores -> choice -> masked units -> (now and then) shorter tensors."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from effcompress.data import Corpus
from effcompress.errors import RunError
from effcompress.log import Log
from effcompress.measure.grams import Grams, readers
from effcompress.measure.stats import TrainingStats, collect, from_training
from effcompress.removal.compensate import for_linears
from effcompress.removal.selftest import same_function
from effcompress.runner.approximate import removed_alone, split
from effcompress.runner.reach import wanted
from effcompress.runner.state import RunState
from effcompress.saliency.average import in_original_order
from effcompress.saliency.score import score
from effcompress.selection.budget import TOLERANCE
from effcompress.selection.choose import Choice, choose
from effcompress.selection.schedules import ask
from effcompress.spec import PruneSpec
from effcompress.types import DEPTH, Cut, Due, Plan, Scores


def averages(prune: PruneSpec) -> bool:
    """Whether saliency is taken in step by step: it needs gradients, and training's are used. One
    of weights and the optimizer's moments alone is computed when a cut is due.
    """
    riding = prune.measure.source == "training"
    return riding and "grad" in from_training(prune.criterion.needs, prune.hessian)


@contextmanager
def listening(state: RunState) -> Iterator[None]:
    """While pruning goes on, keep account of what layers read, if a repair uses that."""
    if state.grams is None or state.target_reached:
        yield
    else:
        with state.grams.listening():
            yield


def observe(state: RunState, prune: PruneSpec) -> None:
    """Take the saliency of this step's gradients into the mean: no extra pass."""
    if state.target_reached or not averages(prune):
        return
    stats = TrainingStats(state.module, prune.criterion.needs, prune.hessian, state.optimizer)
    scores = score(state.pruned.sets, prune.criterion, stats)
    state.average.update(scores, state.pruned.ledger.original)


def due_now(state: RunState, prune: PruneSpec, total_tokens: int) -> Due | None:
    """What the schedule asks for at this point. Nothing is due before anything was measured."""
    if state.target_reached:
        return None
    if averages(prune) and state.average.weight == 0.0:
        return None
    return ask(
        prune.schedule,
        step=state.step,
        tokens=state.tokens,
        total_tokens=total_tokens,
        start_params=state.parent_params,
        params=state.params,
        target_params=wanted(prune.target, state.parent_params),
        groups_cut=state.groups_cut,
    )


def prune_event(state: RunState, prune: PruneSpec, due: Due, corpus: Corpus, log: Log) -> None:
    """Decide, mask, write down; commit when enough has gathered."""
    target = wanted(prune.target, state.parent_params)
    pruned = state.pruned
    scores, inputs = _measured(state, prune, corpus)
    assert prune.selector is not None, "recipe.load fills in the default selector"
    if inputs is not None and inputs is not state.grams:
        inputs.close()  # all of calibration was heard
    choice = choose(pruned.parent_sets, pruned.parent, scores, due, target, prune.selector)
    if choice.plan:
        _mask(state, prune, choice.plan, inputs, log)
        state.average.cut()
        state.groups_cut += sum(choice.removed.values())
        state.since_commit += sum(choice.removed.values())
        _write_down(state, choice, log)
    state.target_reached = choice.exhausted or choice.params <= target
    # A block that is masked whole would learn its last bias again: it goes at once.
    whole = any(name.split(".")[0] in DEPTH for name in choice.plan)
    if state.target_reached or whole or state.since_commit >= prune.commit_every:
        commit_event(state, log)
    if state.target_reached and abs(state.params - target) > TOLERANCE * target:
        raise RunError(
            f"pruning stopped at {state.params:,} parameters, the target is {target:,}",
            fix="Nothing more may go: lower a `minimum`, or add a space under prune.space.",
        )


def commit_event(state: RunState, log: Log) -> None:
    """Cut the masked units out of the tensors, with proof that nothing else changed."""
    if not state.pruned.ledger.pending():
        return
    started = time.monotonic()
    probe = state.probe_BT.to(state.device)
    with same_function(state.module, probe, state.optimizer) as proof:
        layers = state.pruned.depth
        state.pruned.commit(state.optimizer, state.grams)
    if state.pruned.depth != layers:
        state.watch()  # layers have other numbers now
    state.since_commit = 0
    log.event(
        "commit",
        step=state.step,
        params=state.params,
        seconds=time.monotonic() - started,
        max_logit_difference=proof.max_logit_difference,
    )


def _mask(state: RunState, prune: PruneSpec, plan: Plan, inputs: Grams | None, log: Log) -> None:
    """Where a removal changes more than what the units did, say by how much (on the probe)."""
    pruned = state.pruned
    how: Any = {"optimizer": state.optimizer, "repairs": prune.repair, "inputs": inputs}
    inexact, exact = split(pruned.family, plan)
    if inexact:
        with removed_alone(pruned, inexact, state.probe_BT.to(state.device)) as seen:
            pruned.mask(inexact, **how)
        log.event("approximate", step=state.step, sets=[*inexact], max_logit_difference=seen[0])
    pruned.mask(exact, **how)


def _measured(state: RunState, prune: PruneSpec, corpus: Corpus) -> tuple[Scores, Grams | None]:
    """Saliency in original order, and what layers read: as training went on, or measured now."""
    ledger, criterion = state.pruned.ledger, prune.criterion
    if averages(prune):
        return ledger.original_order(state.average.read()), state.grams
    grams, stats = state.grams, None
    if prune.measure.source == "training":
        stats = TrainingStats(state.module, criterion.needs, prune.hessian, state.optimizer)
    else:
        grams = _calibration_grams(state, prune)
        ids_NT = corpus.calibration(prune.measure.sequences, state.recipe.seed)
        stats = collect(state.module, ids_NT, criterion.needs, prune.hessian, grams)
    scores = score(state.pruned.sets, criterion, stats)
    return ledger.original_order(in_original_order(scores, ledger.original, ledger.sizes)), grams


def _calibration_grams(state: RunState, prune: PruneSpec) -> Grams | None:
    """Of all calibration tokens, every time anew."""
    if not for_linears(prune.repair):
        return None
    params = readers(state.module, state.pruned.axes, state.pruned.sets)
    return Grams(state.module, params, tokens=1 << 62, decay=1.0)


def _write_down(state: RunState, choice: Choice, log: Log) -> None:
    cut = Cut(
        step=state.step,
        tokens=state.tokens,
        plan=choice.plan,
        saliency=choice.lowest,
        removed=choice.removed,
        scores=choice.scores,
        params=choice.params,
        widths=choice.widths,
    )
    log.plan(cut)
    gone: dict[str, list[float]] = {}
    for s in state.pruned.parent_sets:
        gone.setdefault(s.kind, []).append(1.0 - choice.widths[s.name] / s.size)
    log.event(
        "cut",
        step=state.step,
        tokens=state.tokens,
        params=choice.params,
        removed=choice.removed,
        share_removed={kind: sum(shares) / len(shares) for kind, shares in gone.items()},
        saliency=choice.lowest,
    )

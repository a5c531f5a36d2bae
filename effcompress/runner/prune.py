"""One prune event: measured scores -> choice -> masked units -> (now and then) shorter tensors."""

from __future__ import annotations

import time
from typing import Any

from effcompress.data import Corpus
from effcompress.errors import RunError
from effcompress.log import Log
from effcompress.measure.stats import TrainingStats, collect
from effcompress.removal.selftest import same_function
from effcompress.runner.approximate import removed_alone, split
from effcompress.runner.reach import wanted
from effcompress.runner.state import RunState
from effcompress.saliency.average import ScoreAverage
from effcompress.saliency.score import score
from effcompress.selection.budget import TOLERANCE
from effcompress.selection.choose import Choice, choose
from effcompress.selection.schedules import ask
from effcompress.spec import PruneSpec
from effcompress.types import DEPTH, Cut, Due, Plan, Scores


def needs_gradients(prune: PruneSpec) -> bool:
    """Whether the criterion must wait for a measurement; one of weights alone never does."""
    return bool({"grad", "hess"} & set(prune.criterion.needs))


def observe(state: RunState, prune: PruneSpec) -> None:
    """Take the saliency of this step's gradients into the running mean: no extra pass."""
    if state.target_reached or prune.measure.source != "training" or not needs_gradients(prune):
        return
    stats = TrainingStats(state.module, prune.criterion.needs, prune.hessian)
    scores = score(state.pruned.sets, prune.criterion, stats)
    state.average.update(scores, state.pruned.ledger.original)


def due_now(state: RunState, prune: PruneSpec, total_tokens: int) -> Due | None:
    """What the schedule asks for at this point. Nothing is due before anything was measured."""
    if state.target_reached:
        return None
    rides = prune.measure.source == "training" and needs_gradients(prune)
    if rides and state.average.weight == 0.0:
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
    scores = pruned.ledger.original_order(_scores(state, prune, corpus))
    assert prune.selector is not None, "recipe.load fills in the default selector"
    choice = choose(pruned.parent_sets, pruned.parent, scores, due, target, prune.selector)
    if choice.plan:
        _mask(state, prune, choice.plan, log)
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
        state.pruned.commit(state.optimizer)
    state.since_commit = 0
    log.event(
        "commit",
        step=state.step,
        params=state.params,
        seconds=time.monotonic() - started,
        max_logit_difference=proof.max_logit_difference,
    )


def _mask(state: RunState, prune: PruneSpec, plan: Plan, log: Log) -> None:
    """Where a removal changes more than what the units did, say by how much (on the probe)."""
    pruned = state.pruned
    how: Any = {"optimizer": state.optimizer, "repairs": prune.repair}
    inexact, exact = split(pruned.family, plan)
    if inexact:
        with removed_alone(pruned, inexact, state.probe_BT.to(state.device)) as seen:
            pruned.mask(inexact, **how)
        log.event("approximate", step=state.step, sets=[*inexact], max_logit_difference=seen[0])
    pruned.mask(exact, **how)


def _scores(state: RunState, prune: PruneSpec, corpus: Corpus) -> Scores:
    """Saliency in original order: the running mean of training, or measured now."""
    if not needs_gradients(prune):
        stats = TrainingStats(state.module, (), None)
    elif prune.measure.source == "training":
        return state.average.read()
    else:
        ids_NT = corpus.calibration(prune.measure.sequences, state.recipe.seed)
        stats = collect(state.module, ids_NT, prune.criterion.needs, prune.hessian)
    now = ScoreAverage(state.pruned.ledger.sizes, decay=1.0)
    scores = score(state.pruned.sets, prune.criterion, stats)
    now.update(scores, state.pruned.ledger.original)
    return now.read()


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

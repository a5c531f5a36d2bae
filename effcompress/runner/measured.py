"""What is known of the mini-groups and of the layers' inputs when a cut is due: taken from training
as it goes on, or from extra passes over calibration text.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

from effcompress.data import Corpus
from effcompress.log import Log
from effcompress.measure.stats import TrainingStats, from_training
from effcompress.runner.calibrated import Measured, adds, calibrated
from effcompress.runner.state import RunState
from effcompress.saliency.average import in_original_order
from effcompress.saliency.score import require_finite, score
from effcompress.spec import PruneSpec


def averages(prune: PruneSpec) -> bool:
    """Whether saliency is taken in step by step: it needs gradients, and training's are used. One
    of weights and the optimizer's moments alone is computed when a cut is due.
    """
    needs = from_training(prune.criterion.needs, prune.hessian)
    return prune.measure.source == "training" and bool({"grad", "mask_grad"} & needs)


def ready(state: RunState, prune: PruneSpec) -> bool:
    """Whether what criterion and repairs take from training is there: gradients were taken in,
    layers were listened to, the optimizer has moments.
    """
    if prune.measure.source != "training":
        return True
    heard = state.grams is None or bool(state.grams.means)
    scored = not averages(prune) or state.average.weight > 0.0
    return heard and scored and _has_moments(state, prune)


def _has_moments(state: RunState, prune: PruneSpec) -> bool:
    needed = "second_moment" in from_training(prune.criterion.needs, prune.hessian)
    return not needed or (state.optimizer is not None and bool(state.optimizer.state))


@contextmanager
def listening(state: RunState) -> Iterator[None]:
    """While pruning goes on: keep account of what layers read and of the gradients of masks, if a
    repair or the criterion uses them.
    """
    state.mask_scores = {}
    with ExitStack() as stack:
        if not state.target_reached:
            if state.grams is not None:
                stack.enter_context(state.grams.listening())
            if state.taps is not None and state.recipe.prune is not None:
                take = adds(state.mask_scores, state.recipe.prune.criterion)
                stack.enter_context(state.taps.listening(take))
        yield


def observe(state: RunState, prune: PruneSpec) -> None:
    """Take the saliency of this step's gradients into the mean: no extra pass."""
    if state.target_reached or not averages(prune) or not _has_moments(state, prune):
        return
    if state.taps is not None:
        scores = state.world.total(state.mask_scores)
        require_finite(scores, prune.criterion)
    else:
        stats = _stats(state, prune)
        scores = score(state.pruned.sets, prune.criterion, stats, prune.reduce)
    state.average.update(scores, state.pruned.ledger.original)


def _stats(state: RunState, prune: PruneSpec) -> TrainingStats:
    needs, world = prune.criterion.needs, state.world
    return TrainingStats(state.module, needs, prune.hessian, state.optimizer, world)


def measured(state: RunState, prune: PruneSpec, corpus: Corpus, log: Log) -> Measured:
    """Saliency in original order, and what else is known: as training went on, or measured now."""
    ledger, criterion = state.pruned.ledger, prune.criterion
    if averages(prune):
        return Measured(ledger.original_order(state.average.read()), state.grams)
    if prune.measure.source == "training":
        stats = _stats(state, prune)
        now = Measured(score(state.pruned.sets, criterion, stats, prune.reduce), state.grams)
    else:
        now = calibrated(state, prune, corpus, log)
    scores = in_original_order(now.scores, ledger.original, ledger.sizes)
    return replace(now, scores=ledger.original_order(scores))

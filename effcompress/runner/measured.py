"""What is known of the mini-groups and of the layers' inputs when a cut is due: taken from training
as it goes on, or from extra passes over calibration text.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from torch import Tensor

from effcompress.data import Corpus, digest
from effcompress.log import Log
from effcompress.measure.grams import Grams, readers
from effcompress.measure.stats import TrainingStats, collect, from_training
from effcompress.measure.taps import MaskGradients, Take
from effcompress.registry import Bound
from effcompress.removal.compensate import for_linears
from effcompress.runner.state import RunState
from effcompress.runner.timeline import reads_text
from effcompress.saliency.average import in_original_order
from effcompress.saliency.score import score, score_masks
from effcompress.spec import PruneSpec
from effcompress.types import Scores


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
    heard = state.grams is None or bool(state.grams.values)
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
                take = _adds(state.mask_scores, state.recipe.prune.criterion)
                stack.enter_context(state.taps.listening(take))
        yield


def observe(state: RunState, prune: PruneSpec) -> None:
    """Take the saliency of this step's gradients into the mean: no extra pass."""
    if state.target_reached or not averages(prune) or not _has_moments(state, prune):
        return
    if state.taps is not None:
        scores = state.mask_scores
    else:
        stats = TrainingStats(state.module, prune.criterion.needs, prune.hessian, state.optimizer)
        scores = score(state.pruned.sets, prune.criterion, stats)
    state.average.update(scores, state.pruned.ledger.original)


def measured(
    state: RunState, prune: PruneSpec, corpus: Corpus, log: Log
) -> tuple[Scores, Grams | None]:
    """Saliency in original order, and what layers read: as training went on, or measured now."""
    ledger, criterion = state.pruned.ledger, prune.criterion
    if averages(prune):
        return ledger.original_order(state.average.read()), state.grams
    if prune.measure.source == "training":
        stats = TrainingStats(state.module, criterion.needs, prune.hessian, state.optimizer)
        scores, grams = score(state.pruned.sets, criterion, stats), state.grams
    else:
        scores, grams = _calibrated(state, prune, corpus, log)
    return ledger.original_order(in_original_order(scores, ledger.original, ledger.sizes)), grams


def _calibrated(
    state: RunState, prune: PruneSpec, corpus: Corpus, log: Log
) -> tuple[Scores, Grams | None]:
    """From passes over the calibration text, all of its tokens; which they were is written down."""
    sets, criterion = state.pruned.sets, prune.criterion
    grams = taps = None
    found: Scores = {}
    listen = []
    if for_linears(prune.repair):
        params = readers(state.module, state.pruned.axes, sets)
        grams = Grams(state.module, params, tokens=1 << 62, decay=1.0)
        listen.append(grams.listening())
    if "mask_grad" in criterion.needs:
        taps = MaskGradients(state.module, state.pruned.axes, sets)
        listen.append(taps.listening(_adds(found, criterion)))
    ids_NT = corpus.calibration(prune.measure.sequences, state.recipe.seed)
    if reads_text(prune):
        log.event(
            "calibration",
            step=state.step,
            sequences=ids_NT.shape[0],
            tokens=ids_NT.numel(),
            hash=digest(ids_NT),
        )
    stats = collect(state.module, ids_NT, criterion.needs, prune.hessian, listen)
    for listener in (grams, taps):
        if listener is not None:
            listener.close()
    return found if taps is not None else score(sets, criterion, stats), grams


def _adds(scores: Scores, criterion: Bound) -> Take:
    """Score the mask gradients of a micro-batch and add them to those before."""

    def take(name: str, mask_grad_TG: Tensor) -> None:
        score_G = score_masks(criterion, name, mask_grad_TG)
        before = scores.get(name)
        scores[name] = score_G if before is None else before + score_G

    return take

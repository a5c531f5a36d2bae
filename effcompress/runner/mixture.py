"""Weights of the domains that follow their held-out losses (dynamic batch loading): measured as the
model trains, changed by the recipe's plugin, given to the stream.
"""

import time
from collections.abc import Mapping
from dataclasses import replace

import torch

from effcompress import data
from effcompress.estimate.schedule import too_rare
from effcompress.record import events
from effcompress.record.log import Log
from effcompress.registry import Bound
from effcompress.runner.evaluation import scores
from effcompress.runner.gates import deterministic
from effcompress.runner.resources import counted, drained
from effcompress.runner.state import RunState
from effcompress.train import Losses
from effcompress.types import Batch

DOMINANT = 0.9
"""A domain of more than this is warned of."""
ROUNDING = 1e-3
"""What the weights of a plugin may miss 1 by, before they are normalised in fp64."""


def begin(state: RunState, log: Log) -> None:
    """Determines the reference losses, before anything is cut, and records them."""
    spec = state.recipe.data.mixture
    if spec is None:
        return
    losses: dict[str, float] = {}
    if not isinstance(spec.reference, str):
        state.reference = {name: float(spec.reference[name]) for name in state.corpus.domains}
    elif spec.reference == "scaling":
        state.reference = data.predicted(spec.scaling, state.target_params)
    else:
        losses = heldout_losses(state, spec.sequences)
    state.reference = state.reference or losses
    _record(state, losses, None, log)
    if said := too_rare(state.recipe):
        log.warn(said)


def heldout_losses(state: RunState, sequences: int) -> dict[str, float]:
    """Domain -> held-out loss in nats per token of the model as it is, in evaluation mode and,
    where masks are learned, under gates without noise. Every measurement of a mixture is made
    here, by all ranks, on windows behind those that the run is evaluated on: what a result is
    judged by does not steer its training.
    """
    spec = replace(state.recipe.evaluate, sequences=sequences)
    behind = state.recipe.evaluate.sequences
    with deterministic(state), counted(state):
        found = scores(state.to_call, state.corpus, spec, state.world, behind=behind)
    return {name: score.loss for name, score in found.items()}


def update_if_due(state: RunState, log: Log) -> None:
    """Every so many optimizer steps: measures, and changes the weights from the next batch on.

    Raises PluginError where the plugin fails or returns no weights.
    """
    spec = state.recipe.data.mixture
    if spec is None or state.step % spec.every or state.tokens >= state.total_tokens:
        return
    started = time.monotonic()
    follows = spec.losses == "training"
    losses = _trained_losses(state) if follows else heldout_losses(state, spec.sequences)
    # A domain that gave no training text since has no loss: it is as far as it should be.
    asked = spec.method, state.stream.fractions, {**state.reference, **losses}, state.reference
    weights = state.world.agree(lambda: reweighed(*asked))
    state.stream.reweigh(weights)
    _record(state, losses, time.monotonic() - started, log)
    for name, weight in weights.items():
        if weight > DOMINANT and name not in state.dominant:
            state.dominant.append(name)
            log.warn(
                f"data.mixture: from step {state.step} on, {weight:.1%} of the samples are of the "
                f"domain '{name}'; a smaller `eta` or a higher `floor` leaves more to the others"
            )


def learned(state: RunState, batch: Batch, losses: Losses) -> None:
    """Takes note of the losses of a step's training text, where the mixture follows them."""
    spec = state.recipe.data.mixture
    if spec is None or spec.losses != "training":
        return
    for name, loss in losses.domain_loss.items():
        total, rows = state.trained_losses.get(name, (0.0, 0))
        more = batch.domains.count(name)
        state.trained_losses[name] = [total + more * loss, rows + more]


def _trained_losses(state: RunState) -> dict[str, float]:
    """Domain -> mean loss of its training sequences since the weights changed last, where it gave
    any.
    """
    sums, state.trained_losses = state.trained_losses, {}
    return {name: total / rows for name, (total, rows) in sums.items()}


def _record(state: RunState, losses: Mapping[str, float], seconds: float | None, log: Log) -> None:
    log.event(
        events.Mixture(
            step=state.step,
            tokens=state.tokens,
            weights=state.stream.fractions,
            losses=losses,
            reference=state.reference,
            seconds=seconds,
            flops=drained(state),
        )
    )


def reweighed(
    bound: Bound,
    weights: Mapping[str, float],
    losses: Mapping[str, float],
    reference: Mapping[str, float],
) -> dict[str, float]:
    """Domain -> weight as the plugin changes it, normalised in fp64. Raises PluginError where it
    fails, or returns another shape, a negative or unfinite weight, or a sum that is not 1.
    """
    names = [*weights]
    given = {"weights": weights, "losses": losses, "reference": reference}
    found = bound(
        **{
            key: torch.tensor([held[name] for name in names], dtype=torch.float64)
            for key, held in given.items()
        }
    )
    fix = "Return one weight for each domain, [D], from 0 to 1, whose sum is 1."
    bound.plugin.require_shape(found, f"for {len(names)} domains", (len(names),), fix=fix)
    found_D = found.detach().double().cpu()
    total = float(found_D.sum())
    # Written so that a NaN, which compares as false, is refused too.
    if not (bool((found_D >= 0).all()) and abs(total - 1.0) <= ROUNDING):
        said = ", ".join(f"{name} {w:.4g}" for name, w in zip(names, found_D.tolist(), strict=True))
        raise bound.plugin.error(f"returned the weights {said}", fix)
    return dict(zip(names, (found_D / total).tolist(), strict=True))

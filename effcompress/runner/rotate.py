"""One-shot slicing of the residual stream, in place of a cut."""

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from effcompress.errors import SurgeryError
from effcompress.measure.held_out import divided, fitted, own, sequences_of
from effcompress.measure.moments import Parts
from effcompress.network.rotated import Method, rotate_stream
from effcompress.network.sliced import sliced_shape
from effcompress.record import events
from effcompress.record.log import Log
from effcompress.registry import Bound
from effcompress.removal.selftest import ROUNDINGS, TOLERANCE, logits_of, rounding
from effcompress.runner.measuring import calibration_text
from effcompress.runner.resources import Meter, counted, drained
from effcompress.runner.state import RunState
from effcompress.spec import PruneSpec, RotateSpec

ORTHOGONAL = 1e-8
"""Largest entry of Q^T Q - I that is taken for rounding."""


def rotate_event(state: RunState, prune: PruneSpec, rotate: RotateSpec, log: Log) -> None:
    """Rotates and slices the stream on calibration text, and records what is left of it where.

    Raises RunError for models that cannot be run layer by layer, PluginError where the rotation is
    not orthogonal, SurgeryError where the sliced model is another function than the source model
    with projections in place of slices.
    """
    meter, pruned = Meter(state.device), state.pruned
    log.phase("rotating the residual stream")
    shape = sliced_shape(prune, pruned.config, pruned.axes)
    measured, refit = prune.measure.sequences, prune.refit
    reads = None if refit is None else sequences_of(refit, prune.measure)
    count = measured if reads is None else max(measured, reads.read)
    ids_NT, positions_NT = calibration_text(state, count, log)
    least = measured if reads is None else min(measured, reads.read)
    world = divided(least, state.world)
    state.unwrap()
    fits: list[events.Fitted] = []
    method = replace(_method(state, prune, rotate, fits), measured=own(measured, world))
    if reads is not None:
        apart = reads.own(world) if reads.held_out else None
        method = replace(method, fitted=own(reads.read, world), held_out=apart)
    with counted(state, alike=world.size < state.world.size):
        done = rotate_stream(
            pruned,
            shape,
            (ids_NT, positions_NT),
            method,
            world=world,
            tell=partial(log.progress, "layer"),
        )
    state.rotated()
    _require_same(state, ids_NT[:1], done.max_logit_difference, done.largest_logit)
    log.event(
        events.Rotated(
            step=state.step,
            method=rotate.method.name,
            signal=rotate.signal,
            refit=None if refit is None else refit.name,
            tied=bool(shape.config.get("tie_word_embeddings")),
            channels=shape.axes.widths["outer"],
            width=shape.width,
            params=state.params,
            places=tuple(
                events.Sliced(layer=p.layer, block=p.block, energy=p.energy) for p in done.places
            ),
            fits=tuple(fits),
            max_logit_difference=done.max_logit_difference,
            **vars(meter.read()),
            flops=drained(state),
        )
    )


def _method(
    state: RunState, prune: PruneSpec, rotate: RotateSpec, fits: list[events.Fitted]
) -> Method:
    """Returns the recipe's plugins as functions that rank 0 calls for all ranks. ``fits`` gets how
    each fit was chosen.
    """
    draw = torch.Generator().manual_seed(state.recipe.seed)

    def choose(moment_DD: Tensor, kept: int) -> Tensor:
        chosen = state.world.agree(lambda: _chosen(rotate.method, moment_DD, kept, draw))
        return chosen.to(moment_DD.device)

    def fit(refit: Bound, weight_OI: Tensor, parts: Parts) -> Tensor:
        new_OI, _, how = state.world.agree(lambda: fitted(refit, weight_OI, parts))
        fits.append(how)
        return new_OI.to(weight_OI.device, torch.float64)

    fitting = None if prune.refit is None else partial(fit, prune.refit)
    return Method(choose, rotate.signal == "normed", fitting)


def _chosen(method: Bound, moment_DD: Tensor, kept: int, draw: torch.Generator) -> Tensor:
    """Asks the plugin for a rotation. Raises PluginError where it is not orthogonal."""
    d = len(moment_DD)
    uniform_DD = torch.rand(d, d, generator=draw, dtype=torch.float64).to(moment_DD.device)
    with method.keeping(moment=moment_DD):
        found = method(moment=moment_DD, uniform=uniform_DD, kept=kept)
    method.plugin.require_shape(found, f"for a stream of {d} channels", (d, d))
    basis_DD = found.double()
    error = float((basis_DD.T @ basis_DD - torch.eye(d, device=basis_DD.device)).abs().max())
    if not error <= ORTHOGONAL:
        said = f"returned a matrix that is not orthogonal: Q^T Q differs from I by {error:.2g}"
        raise method.plugin.error(said, "Return orthonormal columns, in fp64.")
    return basis_DD


def _require_same(state: RunState, ids_1T: Tensor, moved: float, largest: float) -> None:
    """Raises SurgeryError where logits moved by more than rounding."""
    # Each rank has tried a sequence of its own; all pass a sharded model again, or none does.
    if not state.world.any(not moved <= TOLERANCE * max(largest, 1.0)):
        return
    probe = ids_1T.to(state.device)
    logits = logits_of(state.to_call, probe)
    limit = ROUNDINGS * rounding(state.to_call, probe, logits)
    if state.world.any(not moved <= limit):
        raise SurgeryError(
            f"logits moved by {moved:.3g} (largest logit {largest:.3g}) when the stream was "
            "rotated",
            fix="This is a fault of effcompress or of the family's declaration; please report it.",
        )

"""What follows the last cut: projections are refitted to the source model's; recovery attaches
low-rank updates (LoRA) and loads the source model as the teacher.
"""

import torch

from effcompress.distributed.shards import Shards
from effcompress.errors import SurgeryError
from effcompress.measure.held_out import divided, fitted, sequences_of
from effcompress.measure.hooks import inputs_of, linears
from effcompress.measure.moments import Parts
from effcompress.measure.streams import Split, follow
from effcompress.record import events
from effcompress.record.log import Log
from effcompress.registry import Bound
from effcompress.runner.measuring import calibration_text
from effcompress.runner.resources import Meter, counted, drained
from effcompress.runner.source_model import source_again
from effcompress.runner.state import RunState
from effcompress.spec import DistillSpec, PruneSpec
from effcompress.train import next_token
from effcompress.train.loss import Distillation


def begin(state: RunState, log: Log, *, offline: bool) -> None:
    """Attaches low-rank updates and loads the teacher, behind a cut at token 0 and on every resume.

    Raises RunError when peft is not installed.
    """
    recover = state.recipe.recover
    if recover is not None and recover.method == "lora" and state.lora is None:
        prefix = state.pruned.axes.family.layer.partition("{i}")[0]
        state.attach([name.removesuffix(".weight") for name in linears(state.module, prefix)])
    if (spec := state.recipe.teacher) is not None and state.objective is next_token:
        state.objective = _teacher(state, spec, log, offline=offline)


def end(state: RunState) -> None:
    """Merges LoRA updates into the weights, and releases the teacher."""
    state.merge()
    state.objective = next_token


def _teacher(state: RunState, spec: DistillSpec, log: Log, *, offline: bool) -> Distillation:
    log.note("loading the source model as the teacher")
    source, channels = source_again(state, log, offline=offline)
    dtype = torch.bfloat16 if spec.teacher == "bf16" else torch.float32
    parent, pruned = state.pruned.parent.depth.layers, state.pruned
    layers = tuple(parent.index(i) for i in pruned.depth.layers)
    teacher = state.beside(source.to(dtype).requires_grad_(False))
    return Distillation(teacher, spec, layers, channels)


@torch.no_grad()
def refit_event(state: RunState, prune: PruneSpec, log: Log) -> None:
    """Fits every projection into the residual stream, front to back. Each process reads a part of
    the text.

    Raises RunError for classes with norms behind the projections, PluginError when the refit
    returns another shape.
    """
    if prune.refit is None:
        return
    log.phase("fitting to the source model")
    meter, module, pruned = Meter(state.device), state.unwrapped, state.pruned
    # It was loaded when the run began, so it is on this machine.
    source, channels = source_again(state, log, offline=True)
    if state.shards is None:
        source.to(state.device)
    else:  # layers are gathered one at a time, of both models
        of = pruned.family.layers, state.world.size, state.device
        Shards(source, *of, replicas=state.recipe.distributed.replicas)
    large = source.eval()
    sequences = sequences_of(prune.refit, prune.measure)
    ids_NT, positions_NT = calibration_text(state, sequences.read, log)
    world = divided(sequences.read, state.world)
    own = slice(world.rank, None, world.size)
    positions_NT = None if positions_NT is None else positions_NT[own]
    split = Split(sequences.own(world) if sequences.held_out else None, world)
    change = _Change(state, prune.refit)
    training = module.training
    text = ids_NT[own], channels, change, positions_NT, split, state.calibrating
    with counted(state, alike=world.size < state.world.size):
        for path in follow(large, module.eval(), pruned.axes, pruned.parent, *text):
            log.note(f"fitted {path}")
    module.train(training)
    log.event(
        events.Refit(
            step=state.step,
            weights=len(change.relative),
            change=change.relative,
            sequences=sequences.read,
            held_out=sequences.held_out,
            fits=change.fits,
            **vars(meter.read()),
            flops=drained(state),
        )
    )


class _Change:
    """Writes the plugin's weights and notes how they were chosen, and by how much they changed."""

    def __init__(self, state: RunState, bound: Bound) -> None:
        self.bound, self.module = bound, state.module
        self.world = state.world
        self.relative: dict[str, float] = {}
        """Weight -> norm of its change over its norm."""
        self.fits: dict[str, events.Fitted] = {}

    def __call__(self, name: str, parts: Parts) -> None:
        path = name.removesuffix(".weight")
        linear = self.module.get_submodule(path)
        weight = self.module.get_parameter(name)  # asked for now: of a sharded model, all rows
        turned = inputs_of(linear) == 0
        old_OI = weight.detach().T if turned else weight.detach()
        # Rank 0 decides for all: errors that differ in the last digit must not lead to other fits.
        found = self.world.agree(lambda: fitted(self.bound, old_OI, parts))
        new_OI, more_O, self.fits[name] = found
        new_OI = new_OI.to(old_OI.device)
        self.relative[name] = float((new_OI - old_OI).norm() / old_OI.norm().clamp(min=1e-30))
        old_OI.copy_(new_OI)
        if more_O is not None:
            bias = getattr(linear, "bias", None)
            if bias is None:
                raise SurgeryError(f"refit '{self.bound.name}' has no bias to write to", where=name)
            bias.add_(more_O.to(bias.device))

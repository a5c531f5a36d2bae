"""What follows the last cut: projections are refitted to the source model's; recovery attaches
low-rank updates (LoRA) and loads the source model as the teacher.
"""

import torch
from torch import Tensor, nn

from effcompress.errors import SurgeryError
from effcompress.measure.hooks import inputs_of, linears
from effcompress.measure.streams import Moments, follow
from effcompress.model.load import load as load_model
from effcompress.record import events
from effcompress.record.log import Log
from effcompress.registry import Bound
from effcompress.runner.measuring import calibration_text
from effcompress.runner.provenance import require_same, source_model
from effcompress.runner.resources import Meter
from effcompress.runner.state import RunState
from effcompress.spec import DistillSpec, PruneSpec
from effcompress.train import next_token
from effcompress.train.loss import Distillation


def begin(state: RunState, log: Log, *, offline: bool) -> None:
    """Attaches low-rank updates and loads the teacher, after the cut and on every resume.

    Raises RunError when peft is not installed.
    """
    recover = state.recipe.recover
    if recover is None:
        return
    if recover.method == "lora" and state.lora is None:
        prefix = state.pruned.axes.family.layer.partition("{i}")[0]
        state.attach([name.removesuffix(".weight") for name in linears(state.module, prefix)])
    spec = recover.distill or (DistillSpec() if recover.method == "distill" else None)
    if spec is not None:
        state.objective = _teacher(state, spec, log, offline=offline)


def end(state: RunState) -> None:
    """Merges LoRA updates into the weights, and releases the teacher."""
    state.merge()
    state.objective = next_token


def _source(state: RunState, log: Log, *, offline: bool) -> tuple[nn.Module, Tensor | None]:
    """Loads the source model a second time; also returns which of its hidden channels the pruned
    model has (None: all). Raises RunError when it is another than the run began with.
    """
    channels = state.pruned.ledger.original.get("hidden")
    kept = None if channels is None else channels.to(state.device)
    if state.source is not None:
        return state.source, kept
    recipe = state.recipe
    rng = torch.get_rng_state()
    source = load_model(recipe.model, seed=recipe.seed, offline=offline, progress=log.note)
    torch.set_rng_state(rng)  # a resumed run loads it at another step
    require_same(state.provenance, source_model(recipe, source))
    return source.module, kept


def _teacher(state: RunState, spec: DistillSpec, log: Log, *, offline: bool) -> Distillation:
    log.note("loading the source model as the teacher")
    source, channels = _source(state, log, offline=offline)
    dtype = torch.bfloat16 if spec.teacher == "bf16" else torch.float32
    parent, pruned = state.pruned.parent.depth.layers, state.pruned
    layers = tuple(parent.index(i) for i in pruned.depth.layers)
    return Distillation(source.to(state.device, dtype), spec, layers, channels)


@torch.no_grad()
def refit_event(state: RunState, prune: PruneSpec, log: Log) -> None:
    """Fits every projection into the residual stream, front to back.

    Raises RunError for classes with norms behind the projections, PluginError when the refit
    returns another shape.
    """
    if prune.refit is None:
        return
    meter, module, pruned = Meter(state.device), state.module, state.pruned
    # It was loaded when the run began, so it is on this machine.
    source, channels = _source(state, log, offline=True)
    large = source.to(state.device).eval()
    ids_NT, positions_NT = calibration_text(state, prune.measure.sequences, log)
    change = _Change(state, prune.refit)
    training = module.training
    axes = pruned.axes, pruned.parent
    for path in follow(large, module.eval(), *axes, ids_NT, channels, change, positions_NT):
        log.note(f"fitted {path}")
    module.train(training)
    written = {"weights": len(change.relative), "change": change.relative}
    log.event(events.Refit(step=state.step, **written, **vars(meter.read())))


class _Change:
    """Writes the plugin's weights and notes by how much they changed."""

    def __init__(self, state: RunState, bound: Bound) -> None:
        self.params, self.bound, self.module = state.pruned.parameters(), bound, state.module
        self.relative: dict[str, float] = {}
        """Weight -> norm of its change over its norm."""

    def __call__(self, name: str, moments: Moments) -> None:
        weight = self.params[name]
        path = name.removesuffix(".weight")
        turned = inputs_of(self.module.get_submodule(path)) == 0
        old_OI = weight.detach().T if turned else weight.detach()
        new_OI, more_O = self.bound.corrected(old_OI, **vars(moments))
        self.relative[name] = float((new_OI - old_OI).norm() / old_OI.norm().clamp(min=1e-30))
        old_OI.copy_(new_OI)
        if more_O is not None:
            bias = self.params.get(f"{path}.bias")
            if bias is None:
                raise SurgeryError(f"refit '{self.bound.name}' has no bias to write to", where=name)
            bias.add_(more_O)

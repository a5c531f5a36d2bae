"""Recovery after one-shot pruning: attaches low-rank updates (LoRA) and loads the teacher."""

from __future__ import annotations

import torch
from torch import nn

from effcompress.measure.hooks import LINEAR
from effcompress.model.load import load as load_model
from effcompress.record.log import Log
from effcompress.runner.state import RunState
from effcompress.spec import DistillSpec, RecoverSpec
from effcompress.train.loss import Distillation
from effcompress.types import AxisMap


def begin(state: RunState, log: Log, *, offline: bool) -> None:
    """Attaches low-rank updates and loads the teacher, after the cut and on every resume.

    Raises RunError when peft is not installed.
    """
    recover = state.recipe.recover
    if recover is None:
        return
    if recover.method == "lora" and state.lora is None:
        state.attach(linears(state.module, state.pruned.axes))
    spec = teacher_of(recover)
    if spec is not None:
        state.objective = _teacher(state, spec, log, offline=offline)


def end(state: RunState) -> None:
    """Merges LoRA updates and releases the teacher."""
    state.merge()
    state.reset_objective()


def teacher_of(recover: RecoverSpec) -> DistillSpec | None:
    """Returns the options of distillation; None where training uses the text alone."""
    if recover.method == "distill":
        return recover.distill or DistillSpec()
    return recover.distill


def linears(module: nn.Module, axes: AxisMap) -> list[str]:
    """Returns the paths of the linear layers within the model's layers."""
    prefix = axes.family.layer.partition("{i}")[0]
    return [
        path
        for path, child in module.named_modules()
        if path.startswith(prefix) and type(child).__name__ in LINEAR
    ]


def _teacher(state: RunState, spec: DistillSpec, log: Log, *, offline: bool) -> Distillation:
    """Loads the source model a second time, as the teacher."""
    recipe, pruned = state.recipe, state.pruned
    log.note("loading the source model as the teacher")
    rng = torch.get_rng_state()
    source = load_model(recipe.model, seed=recipe.seed, offline=offline, progress=log.note)
    torch.set_rng_state(rng)  # a resumed run loads it at another step
    dtype = torch.bfloat16 if spec.teacher == "bf16" else torch.float32
    teacher = source.module.to(state.device, dtype)
    parent = pruned.parent.depth.layers
    layers = tuple(parent.index(i) for i in pruned.depth.layers)
    channels = pruned.ledger.original.get("hidden")
    if channels is not None:
        channels = channels.to(state.device)
    return Distillation(teacher, spec, layers, channels)

"""Refits the projections into the residual stream to the source model's, after the last removal."""

from __future__ import annotations

import torch

from effcompress.data import Corpus
from effcompress.errors import SurgeryError
from effcompress.measure.hooks import LINEAR
from effcompress.measure.streams import Moments, follow
from effcompress.model.load import load as load_model
from effcompress.record import events
from effcompress.record.log import Log
from effcompress.registry import Bound
from effcompress.runner.measuring import calibration_text
from effcompress.runner.resources import Meter
from effcompress.runner.state import RunState
from effcompress.spec import PruneSpec


@torch.no_grad()
def refit_event(state: RunState, prune: PruneSpec, corpus: Corpus, log: Log) -> None:
    """Fits every projection into the residual stream, front to back.

    Raises RunError for classes with norms behind the projections, PluginError when the refit
    returns another shape.
    """
    if prune.refit is None:
        return
    meter = Meter(state.device)
    pruned, recipe = state.pruned, state.recipe
    rng = torch.get_rng_state()
    # It was loaded when the run began, so it is on this machine.
    source = load_model(recipe.model, seed=recipe.seed, offline=True, progress=log.note)
    torch.set_rng_state(rng)
    large = source.module.to(state.device).eval()
    channels = pruned.ledger.original.get("hidden")
    ids_NT = calibration_text(state, prune.measure.sequences, corpus, log)
    change = _Change(state, prune.refit)
    training = state.module.training
    for path in follow(
        large,
        state.module.eval(),
        pruned.axes,
        pruned.parent,
        ids_NT,
        None if channels is None else channels.to(state.device),
        change,
    ):
        log.note(f"fitted {path}")
    state.module.train(training)
    spent = meter.read()
    log.event(
        events.Refit(
            step=state.step,
            seconds=spent.seconds,
            memory_bytes=spent.memory_bytes,
            weights=change.count,
            change=change.relative,
        )
    )


class _Change:
    """Writes the plugin's weights and counts them."""

    def __init__(self, state: RunState, bound: Bound) -> None:
        self.params, self.bound = state.pruned.parameters(), bound
        self.module = state.module
        self.count = 0
        self.relative: dict[str, float] = {}
        """Weight -> norm of its change over its norm."""

    def __call__(self, name: str, moments: Moments) -> None:
        weight = self.params[name]
        path = name.removesuffix(".weight")
        turned = LINEAR[type(self.module.get_submodule(path)).__name__] == 0
        old_OI = weight.detach().T if turned else weight.detach()
        found = self.bound(weight=old_OI, **vars(moments))
        new_OI, more_O = found if isinstance(found, tuple) else (found, None)
        wanted = f"for a weight of {tuple(old_OI.shape)}"
        self.bound.plugin.require_shape(new_OI, wanted, old_OI.shape)
        self.relative[name] = float((new_OI - old_OI).norm() / old_OI.norm().clamp(min=1e-30))
        self.count += 1
        old_OI.copy_(new_OI)
        if more_O is not None:
            bias = self.params.get(f"{path}.bias")
            if bias is None:
                raise SurgeryError(f"refit '{self.bound.name}' has no bias to write to", where=name)
            bias.add_(more_O)

"""One optimizer step. A step whose loss or gradient is not finite is skipped."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from effcompress import train
from effcompress.errors import NotFinite, RunError
from effcompress.estimate.schedule import anew_at, loop_at, rate_span
from effcompress.record import events
from effcompress.record.log import Log
from effcompress.runner import gates, mixture
from effcompress.runner.measuring import listening, observe
from effcompress.runner.state import RunState
from effcompress.sparsity.apply import hold
from effcompress.spec import LoopSpec
from effcompress.train import Losses
from effcompress.train.compiled import GRAPHS
from effcompress.types import Batch


@contextmanager
def compiled(state: RunState, log: Log) -> Iterator[None]:
    """Runs layers as compiled code (torch.compile) inside, if the recipe asks for it and no hook
    measures in training: compiled code does not call Python hooks.
    """
    spec = state.recipe.loop
    hooked = state.grams is not None or state.taps is not None or state.gates is not None
    if spec is None or not spec.compile or hooked:
        yield
        return
    code, before = state.compiled, state.compiled.graphs
    with code.running(state.layers):
        yield
    if code.graphs > before:
        log.event(events.Compiled(step=state.step, graphs=code.graphs))
    if before <= GRAPHS < code.graphs:
        log.warn(f"{GRAPHS} graphs are compiled; layers that fit none of them run uncompiled")


def train_step(state: RunState, log: Log, started: float, save: Callable[[], None]) -> bool:
    """Trains on the next batch; returns whether the step was taken. A step whose loss or gradient
    is not finite is skipped: weights and moments stay, the position in the text moves on.

    Raises RunError after more skipped steps in a row than ``bad_steps``, with a checkpoint by
    ``save`` behind the text of the last one.
    """
    recipe, begun = state.recipe, state.tokens
    spec = loop_at(recipe, begun)
    assert spec is not None and state.optimizer is not None
    if begun == anew_at(recipe):
        state.optimizer.state.clear()  # a training of its own begins
    batch = state.stream.next(spec.batch_size)
    # Padding that this batch does without is counted, or the steps would depend on the text.
    tokens = spec.batch_size * state.corpus.sequence_length
    state.step += 1
    state.tokens += tokens
    start, end = rate_span(recipe, begun)
    rate = train.learning_rate(spec.learning_rate, state.tokens - start, end - start, tokens)
    try:
        losses, norm = _learn(state, batch, spec, rate, log)
    except NotFinite as error:
        _leave_out(state, spec, error, log, save)
        return False
    state.left_out = 0
    mixture.learned(state, batch, losses)
    seconds = time.monotonic() - started
    log.event(
        events.Step(
            step=state.step,
            tokens=state.tokens,
            loss=losses.loss,
            objective=None if state.objective is train.next_token else losses.objective,
            domain_loss=losses.domain_loss,
            learning_rate=rate,
            grad_norm=norm,
            params=state.params,
            tokens_per_second=tokens / seconds,
            flops=state.flops_per_token * batch.ids_BT.numel(),
            seconds=state.seconds + seconds,
        )
    )
    return True


def _learn(
    state: RunState, batch: Batch, spec: LoopSpec, rate: float, log: Log
) -> tuple[Losses, float]:
    """Runs backward, measurements and update; returns losses and the norm of the gradient."""
    prune, optimizer = state.recipe.prune, state.optimizer
    assert optimizer is not None
    state.module.train()
    module, begun = state.train_module, state.tokens - batch.ids_BT.numel()
    masked = gates.masking(state, begun)
    how: Any = {"around": gates.drawing(state)} if masked else {}
    with listening(state), compiled(state, log):
        losses = train.backward(module, batch, spec, state.objective, state.world, **how)
    if state.grams is not None:
        state.operations += state.grams.operations
    if masked and state.gates is not None:
        state.gates.gather(state.world)
    if prune:
        observe(state, prune)
    hold(state.module, state.zeros)
    norm = train.update(state.module, optimizer, spec, rate, state.world)
    if masked:
        gates.learn(state, spec, begun, rate, log)
    return losses, norm


def _leave_out(
    state: RunState, spec: LoopSpec, error: NotFinite, log: Log, save: Callable[[], None]
) -> None:
    state.module.zero_grad(set_to_none=True)
    if state.gates is not None:
        state.gates.forget()
    reset = state.grams.forget_unfinite() if state.grams is not None else []
    state.left_out += 1
    again = f"; second moments of {reset[0]} and {len(reset) - 1} others restart" if reset else ""
    where = f"{error.where}: " if error.where else ""
    if state.left_out <= spec.bad_steps:
        log.warn(f"step {state.step} is left out: {where}{error.what}{again}")
        return
    steps = f"step {state.step}" if state.left_out == 1 else f"{state.left_out} steps in a row"
    state.left_out = 0  # a resumed run may skip as many again
    save()
    raise RunError(
        f"{steps} cannot be used: {error.what}",
        where=error.where,
        fix="The weights are as they were before, and saved: --resume goes on with the text behind "
        "them. If that does not help, start afresh (--output) with a lower learning rate.",
    )

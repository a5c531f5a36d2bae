"""Learned gates in a run: drawn for every micro-batch of the pruning stage, trained after every
step, and multiplied into the weights by the cut.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor

from effcompress.errors import RunError
from effcompress.estimate.schedule import pruning_stage
from effcompress.evaluation import perplexity
from effcompress.record import events
from effcompress.record.log import Log
from effcompress.runner.measuring import text_of
from effcompress.runner.state import RunState
from effcompress.spec import LoopSpec
from effcompress.types import Due, Plan

LOSS_SEQUENCES = 4
"""Sequences of the training text on which the loss around the cut is measured."""
LOW = 0.1
"""A kept gate below this is named in the record: what was learned did not decide for it."""


def masking(state: RunState, tokens: int) -> bool:
    """Whether a step that begins at these tokens is taken under gates."""
    return state.gates is not None and tokens >= pruning_stage(state.recipe)[0]


def drawing(state: RunState) -> Callable[[int], AbstractContextManager[None]]:
    """Returns what to enter around the passes of a micro-batch of the step that has begun."""
    learned = state.gates
    assert learned is not None
    return lambda number: learned.drawn(state.step, number)


def deterministic(state: RunState) -> AbstractContextManager[None]:
    """Returns what to enter around an evaluation in the middle of training: gates without noise."""
    if state.gates is None or not masking(state, state.tokens):
        return nullcontext()
    return state.gates.deterministic()


def learn(state: RunState, spec: LoopSpec, begun: int, rate: float, log: Log) -> None:
    """Trains the gates on the gradients of a step that began at ``begun`` tokens."""
    assert state.gates is not None
    begin, end = pruning_stage(state.recipe)
    progress = (begun - begin) / (end - begin)
    found = state.gates.learn(progress, rate / spec.learning_rate.peak)
    log.event(events.Gates(step=state.step, tokens=state.tokens, families=found))


@contextmanager
def absorbing(state: RunState, due: Due, plan: Plan, log: Log) -> Iterator[None]:
    """Around the masking of a plan: multiplies the gates into the weights first, and records what
    the model computed under them and computes without. Nothing where the run has no gates.

    Raises RunError for a schedule that wants less than the whole target at once.
    """
    gates, prune = state.gates, state.recipe.prune
    if gates is None or prune is None or prune.gates is None:
        yield
        return
    if due.params != state.target_params or due.again:
        raise RunError(
            f"prune.schedule '{prune.schedule.name}' cuts in several steps, learned gates in one",
            fix="Write `schedule: at_end`.",
        )
    values = gates.values(plan)
    open_loss, _ = _measured(state)
    with gates.forward.using(values):
        masked_loss, before_BTV = _measured(state)
    gates.forward.absorb(values, also_ends=prune.gates.compat)
    gates.forward.close()
    state.gates = None
    yield
    cut_loss, after_BTV = _measured(state)
    kept = torch.cat([value_G[value_G > 0] for value_G in values.values()])
    log.event(
        events.Absorbed(
            step=state.step,
            kept=len(kept),
            low=int((kept < LOW).sum()),
            loss_open=open_loss,
            loss_masked=masked_loss,
            loss_cut=cut_loss,
            max_logit_difference=float((before_BTV - after_BTV).abs().max()),
        )
    )


@torch.no_grad()
def _measured(state: RunState) -> tuple[float, Tensor]:
    """The mean loss on some text, in nats per token, and the logits of the probe."""
    state.module.eval()
    ids_NT, positions_NT = text_of(state, LOSS_SEQUENCES)
    found = perplexity(state.to_call, ids_NT, 1, positions_NT=positions_NT)
    return found.loss, state.to_call(input_ids=state.probe_BT.to(state.device)).logits

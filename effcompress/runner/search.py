"""The search for a shape: the largest shapes of a grid are masked one after the other, and the one
of the lowest loss becomes the target (``prune.search``).
"""

import time
from typing import Any

from torch import Tensor

from effcompress.evaluation import perplexity
from effcompress.network.shape_search import SizedShape, shapes_of
from effcompress.network.shapes import bounded
from effcompress.record import events
from effcompress.record.log import Log
from effcompress.runner.measuring import Measured, calibration_text
from effcompress.runner.state import RunState
from effcompress.selection.choose import choose
from effcompress.spec import PruneSpec, TargetSpec
from effcompress.types import Due, Plan

OTHER_DRAW = 1
"""Added to the seed: shapes are tried on another draw of calibration text than units are ranked
on.
"""


def search_event(state: RunState, prune: PruneSpec, found: Measured, log: Log) -> None:
    """Tries the shapes and takes the best; the model is as before. Rank 0 tries and decides."""
    search, started = prune.search, time.monotonic()
    assert search is not None
    text = calibration_text(state, search.sequences, log, draw=OTHER_DRAW)
    tried = state.world.agree(lambda: _tried(state, prune, found, text, log))
    best = min(tried, key=lambda shape: shape.loss)
    state.take_shape(best.units)
    log.event(
        events.Search(
            step=state.step,
            tried=tuple(tried),
            chosen=best.units,
            sequences=len(text[0]),
            seconds=time.monotonic() - started,
        )
    )


def _tried(
    state: RunState,
    prune: PruneSpec,
    found: Measured,
    text: tuple[Tensor, Tensor | None],
    log: Log,
) -> list[events.TriedShape]:
    """Returns the shapes with the loss of the masked model, in nats per token."""
    pruned, (ids_NT, positions_NT) = state.pruned, text
    shapes = shapes_of(prune, pruned.parent, pruned.parent_sets, pruned.config)
    tried = []
    for number, shape in enumerate(shapes, 1):
        plan = _plan(state, prune, shape, found)
        with pruned.trial(plan, repairs=prune.repair, inputs=found.inputs):
            how: Any = {"positions_NT": positions_NT, "precision": state.calibrating}
            loss = perplexity(state.module, ids_NT, 1, **how).loss
        sizes = {"params": shape.params, "active": shape.active}
        tried.append(events.TriedShape(units=shape.units, loss=loss, **sizes))
        log.progress("shape", number, len(shapes))
    return tried


def _plan(state: RunState, prune: PruneSpec, shape: SizedShape, found: Measured) -> Plan:
    """Returns what would be cut for a shape: the least salient units of every set."""
    assert prune.selector is not None, "recipe.load fills in the default selector"
    sets = bounded(state.pruned.parent_sets, TargetSpec(shape=shape.units))
    due = Due(params=shape.params)
    known = shape.params, prune.selector, state.selector_state, state.begun
    return choose(sets, state.pruned.parent, found.scores, due, *known).plan

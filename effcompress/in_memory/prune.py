"""Pruning in one call: measure, choose and cut, as a run does between two training steps."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch.optim import Optimizer

from effcompress.in_memory.batches import Loss
from effcompress.in_memory.result import PruneResult, result_of
from effcompress.in_memory.session import Named, Session, Space, open_session
from effcompress.in_memory.steps import selector_of, target_of
from effcompress.runner.prune import commit_event, due_now, prune_event


def prune(
    model: Any,
    batches: Any = None,
    *,
    keep: float | str | None = None,
    params: int | str | None = None,
    shape: Mapping[str, int] | None = None,
    criterion: Named = "taylor",
    space: Space | None = None,
    selector: Named | None = None,
    normalise: str | None = None,
    allocation: Named | None = None,
    repair: Sequence[Named] | None = None,
    refit: Named | None = None,
    hessian: Named | None = None,
    reduce: Mapping[str, Any] | None = None,
    rounds: int = 1,
    propagate: bool = False,
    optimizer: Optimizer | None = None,
    loss: Loss | None = None,
) -> PruneResult:
    """Prunes a causal language model of transformers in place, down to a size: exactly one of
    ``keep`` (a fraction of the parameters), ``params`` (each met within 0.5 %) and ``shape`` (kind
    -> units left in every layer).

    ``batches``: calibration text, as for ``scores``. All other arguments are what the section
    `prune` of a recipe calls so, with the same defaults, and cut the same mini-groups. ``rounds``:
    cuts of equally many parameters, with saliency measured anew before each; ``propagate``: every
    layer is scored on what the pruned layers in front of it hand on; ``refit`` keeps a copy of the
    model until the end. ``optimizer``: its moments follow, and every ``Parameter`` stays the same
    object.

    Raises RecipeError for an argument that cannot be, contradicts another or asks for a size out of
    reach, SourceError for a model or batches that cannot be used (nothing is changed then),
    RunError where saliency ranks nothing, SurgeryError as ``cut``.
    """
    given = {
        "target": target_of("prune", keep, params, shape),
        "space": space,
        "criterion": criterion,
        "selector": selector_of(selector, normalise),
        "allocation": allocation,
        "repair": None if repair is None else [*repair],
        "refit": refit,
        "hessian": hessian,
        "reduce": reduce,
        "measure": {"propagate": propagate},
        "schedule": {"name": "once", "at": 0, "rounds": rounds},
    }
    session = open_session("prune", model, batches, given, optimizer=optimizer, loss=loss)
    before = session.size
    try:
        cut_if_due(session)
        commit_event(session.state, session.log)
    finally:
        session.close()
    return result_of(session, before)


def cut_if_due(session: Session) -> None:
    """Makes the cuts that the schedule asks for at this place."""
    state, prune, log = session.state, session.prune, session.log
    again = True
    while again and (due := due_now(state, prune, log)) is not None:
        prune_event(state, prune, due, log)
        again = due.again

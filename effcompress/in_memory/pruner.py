"""Pruning within a training loop of a script: saliency from its gradients, cuts between its
steps.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, final

import torch
from torch import nn
from torch.optim import Optimizer

from effcompress.errors import NotFinite, RecipeError, SurgeryError
from effcompress.in_memory.prune import cut_if_due
from effcompress.in_memory.result import PruneResult, result_of
from effcompress.in_memory.session import Named, Space, open_session
from effcompress.in_memory.steps import selector_of, target_of
from effcompress.runner.measuring import listening, observe
from effcompress.runner.prune import commit_event, prune_event, remainder
from effcompress.types import Due


@final
class Pruner:
    """Pruning-aware training (arXiv:2502.06663) in a loop of a script::

        pruner = Pruner(model, optimizer, keep=0.8, steps=1000)
        for batch in batches:
            model(**batch).loss.backward()
            pruner.step()           # in place of optimizer.step() and optimizer.zero_grad()
        result = pruner.finish()

    ``step`` is three things, which a loop may do by itself: ``observe()`` once gradients are there,
    the optimizer's step and ``zero_grad(set_to_none=True)``, and ``cut_if_due()``. The optimizer
    goes on with the same ``Parameter`` objects, their moments as they were.
    """

    def __init__(
        self,
        model: Any,
        optimizer: Optimizer,
        *,
        steps: int,
        keep: float | str | None = None,
        params: int | str | None = None,
        shape: Mapping[str, int] | None = None,
        warmup: int = 0,
        until: int | None = None,
        schedule: Named = "constant_rate",
        criterion: Named = "taylor",
        space: Space | None = None,
        selector: Named | None = None,
        normalise: str | None = None,
        repair: Sequence[Named] | None = None,
        hessian: Named | None = None,
        reduce: Mapping[str, Any] | None = None,
        measure: Mapping[str, Any] | None = None,
        commit_every: int = 16,
    ) -> None:
        """``steps``: optimizer steps that the loop will make. Saliency is measured from the first;
        cuts lie between ``warmup`` and ``until`` (default: all ``steps``), where what is left of
        the way to the target goes at once. The target, ``schedule`` and all that follows are what
        the section `prune` of a recipe calls so; where a schedule says tokens, it counts steps
        here.

        Raises RecipeError for what contradicts itself or is out of reach, SourceError for a model
        that cannot be pruned, SurgeryError for an optimizer that is not this model's.
        """
        end = steps if until is None else until
        _require_order(steps, warmup, end)
        stages = {"warmup": warmup, "pruning": end - warmup, "continued": steps - end}
        given = {
            "target": target_of("Pruner", keep, params, shape),
            "space": space,
            "criterion": criterion,
            "selector": selector_of(selector, normalise),
            "repair": None if repair is None else [*repair],
            "hessian": hessian,
            "reduce": reduce,
            "measure": {"source": "training", **(measure or {})},
            "schedule": schedule,
            "commit_every": commit_every,
        }
        how: Any = {"stages": stages, "optimizer": optimizer}
        self._session = open_session("Pruner", model, None, given, **how)
        self._optimizer, self._before = optimizer, self._session.size
        self._passes = ExitStack()
        self._listening = False
        self._hook = model.register_forward_pre_hook(self._begin)

    @property
    def params(self) -> int:
        """Parameters of the model as a function: masked mini-groups do not count."""
        return self._session.state.params

    @property
    def target(self) -> int:
        """Parameters at the end."""
        return self._session.state.target_params

    @property
    def done(self) -> bool:
        """Whether the target is reached: nothing more is measured or cut."""
        return self._session.state.target_reached

    def step(self) -> None:
        """Observes the gradients, makes the optimizer's step, drops the gradients, and cuts what is
        due.

        Raises SurgeryError while an output is alive whose backward did not run, RunError where the
        target is missed.
        """
        self.observe()
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self.cut_if_due()

    def observe(self) -> None:
        """Adds the saliency of the gradients that are there to its mean: after the backward passes
        of a step, before gradients are clipped or dropped. Gradients that are not finite are left
        out, with a warning.
        """
        session = self._session
        self._end()
        try:
            observe(session.state, session.prune)
        except NotFinite as error:
            session.log.warn(f"step {session.state.step + 1} is not measured: {error.what}")

    def cut_if_due(self) -> None:
        """Counts an optimizer step, and cuts what the schedule asks for behind it. No gradient may
        be alive.
        """
        state = self._session.state
        state.step += 1
        state.tokens += 1
        with _said_of_outputs():
            cut_if_due(self._session)

    def finish(self) -> PruneResult:
        """Cuts what is masked only, and at once what is left of the way to the target; removes the
        hooks. Returns what was cut. May be called twice.
        """
        session, state = self._session, self._session.state
        self._end()
        self._hook.remove()
        with _said_of_outputs():
            if not state.target_reached:
                session.log.warn(remainder(state))
                prune_event(state, session.prune, Due(params=state.target_params), session.log)
            commit_event(state, session.log)
        session.close()
        return result_of(session, self._before)

    def _begin(self, module: nn.Module, _args: object) -> None:
        """Lets hooks measure from the first training pass of a step on."""
        if module.training and torch.is_grad_enabled() and not self._listening:
            self._listening = True
            self._passes.enter_context(listening(self._session.state))

    def _end(self) -> None:
        self._passes.close()
        self._listening = False


@contextmanager
def _said_of_outputs() -> Iterator[None]:
    """Says in words of a loop what keeps a tensor from being exchanged."""
    try:
        yield
    except SurgeryError as error:
        if "cannot be exchanged" not in error.what:
            raise
        raise SurgeryError(
            "an output of the model whose backward did not run is alive, and its graph refers to "
            "what this cut exchanges",
            where=error.where,
            fix="Compute what is only looked at under torch.no_grad(), or drop it (del outputs).",
        ) from error


def _require_order(steps: int, warmup: int, end: int) -> None:
    if not 0 <= warmup < end <= steps:
        raise RecipeError(
            f"cuts lie between step {warmup} and step {end} of {steps}",
            where="Pruner(steps=...)",
            fix="Give 0 <= warmup < until <= steps.",
        )

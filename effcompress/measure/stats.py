"""Inputs of criteria of weights: slices of rows of a parameter, its gradient and its Hessian."""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from effcompress.distributed.repeated import aside
from effcompress.distributed.rows import first_row, is_sharded, own, shard_group
from effcompress.distributed.world import ALONE, World, needs_all_ranks
from effcompress.errors import RunError
from effcompress.isolation import placed
from effcompress.precision import Precision, autocast, in_full
from effcompress.registry import Bound


class TrainingStats:
    """Reads the gradients of training's own backward and its optimizer's moments: no extra pass.

    The Hessian is estimated from this batch alone, or is the optimizer's; averaging over steps
    happens on the scores.
    """

    def __init__(
        self,
        module: nn.Module,
        needs: Iterable[str],
        hessian: Bound | None,
        optimizer: Optimizer | None = None,
        world: World = ALONE,
    ) -> None:
        self._world = world
        self._params = dict(module.named_parameters())
        self._needs = from_training(needs, hessian)
        self._hessian = hessian if "hess" in needs else None
        self._moments = SecondMoments(optimizer) if "second_moment" in self._needs else None

    def shape(self, param: str) -> tuple[int, ...]:
        """Shape of a parameter."""
        return tuple(self._params[param].shape)

    def held(self, param: str) -> range:
        """Returns the rows of this process: all, unless the parameter is sharded."""
        start = first_row(p := self._params[param].detach())
        return range(start, start + own(p).shape[0])

    def total(self, sums: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Adds up the sums over the rows of all processes."""
        shared = any(is_sharded(p) for p in self._params.values())
        group = shard_group(self._params.values())
        return self._world.total(sums, group) if shared else dict(sums)

    def rows(self, param: str, start: int, stop: int) -> dict[str, Tensor]:
        """Returns the inputs for rows ``start:stop``, each ``[stop - start, ...]``."""
        p = self._params[param]
        first = first_row(p)
        here = slice(start - first, stop - first)
        found = {"weight": own(p.detach())[here]}
        if "grad" in self._needs:
            found["grad"] = own(_gradient(p, param))[here]
        if self._moments is not None:
            found["second_moment"] = self._moments.rows(p, param, here)
        if self._hessian is not None:
            found["hess"] = _hess(self._hessian, found)
        return found


def _gradient(p: nn.Parameter, name: str) -> Tensor:
    """Returns the gradient; zeros for a parameter that nothing trains (a bias of a selection).
    Raises RunError where none arrived.
    """
    if p.grad is None and p.requires_grad:
        raise RunError("no gradient reached this parameter", where=name)
    return torch.zeros_like(p) if p.grad is None else p.grad


def from_training(needs: Iterable[str], hessian: Bound | None) -> set[str]:
    """Returns what a criterion and its Hessian take from training, besides the weight."""
    found = set(needs)
    if "hess" in found:
        assert hessian is not None, "recipe.load binds a hessian to criteria that need it"
        found |= set(hessian.needs)
    return found & {"grad", "second_moment", "mask_grad"}


class SecondMoments:
    """AdamW's running mean of squared gradients, bias corrected (Adam, arXiv:1412.6980, alg. 1)."""

    def __init__(self, optimizer: Optimizer | None) -> None:
        if optimizer is None:
            raise RunError(
                "the Hessian comes from the optimizer, but nothing is trained here",
                fix="Write `hessian: fisher_diag`, or add a train section.",
            )
        self._optimizer = optimizer
        self._beta2 = {
            id(p): group["betas"][1] for group in optimizer.param_groups for p in group["params"]
        }

    def rows(self, p: nn.Parameter, name: str, here: slice) -> Tensor:
        """Returns rows ``here`` of this process; RunError before the optimizer's first step."""
        if not p.requires_grad:
            return torch.zeros_like(own(p)[here])
        state = self._optimizer.state.get(p, {})
        if "exp_avg_sq" not in state:
            raise RunError("the optimizer has made no step yet", where=name)
        corrected = 1.0 - self._beta2[id(p)] ** float(state["step"])
        return own(state["exp_avg_sq"])[here] / corrected


NOT_PREDICTED = -100
"""The label of tokens that transformers leaves out of a loss."""


class CalibrationStats(TrainingStats):
    """Gradient and Hessian averaged over calibration sequences, held beside the model: of a sharded
    model each process holds those of its rows.
    """

    def __init__(
        self,
        module: nn.Module,
        grad: Mapping[str, Tensor],
        hess: Mapping[str, Tensor],
        world: World = ALONE,
    ) -> None:
        super().__init__(module, (), None, world=world)
        self._means = {"grad": grad, "hess": hess}

    def rows(self, param: str, start: int, stop: int) -> dict[str, Tensor]:
        """Returns the inputs for rows ``start:stop``, each ``[stop - start, ...]``."""
        held = {name: mean[param] for name, mean in self._means.items() if param in mean}
        first = self.held(param).start
        rows = {name: value[start - first : stop - first] for name, value in held.items()}
        return super().rows(param, start, stop) | rows


def collect(
    module: nn.Module,
    ids_NT: Tensor,
    needs: Iterable[str],
    hessian: Bound | None,
    listening: Sequence[AbstractContextManager[None]] = (),
    world: World = ALONE,
    tell: Callable[[int, int], None] = lambda _done, _total: None,
    positions_NT: Tensor | None = None,
    loss_of: Callable[[nn.Module, int], Tensor] | None = None,
    *,
    in_turn: bool = True,
    precision: Precision = "fp32",
) -> CalibrationStats:
    """Returns the mean gradient (and mean per-sequence Hessian) of the next-token loss over
    ``ids_NT``, or of another loss: ``loss_of`` the module and the number of a sequence.

    One sequence per backward, as the Fisher matrix is defined on single samples. ``listening``:
    contexts of hooks, entered for all passes together. Parameters end with ``grad`` None. Without a
    need for gradients there is no backward, and without hooks either there is no pass at all. The
    processes of ``world`` take sequences ``in_turn``, each at least one, or each reads all of them;
    gradient and Hessian are averaged over all, hooks see those of their own process.
    ``tell(done, total)`` reports progress in sequences of this process. ``positions_NT``: those of
    the tokens in isolated documents, whose first tokens are not predicted. ``precision``: of the
    passes; gradients and sums are in fp32.

    ``module`` may be an FSDP2 wrapper. Its backward adds up the gradients of all processes, so a
    Hessian of single sequences wants them not to be ``in_turn``.
    """
    wanted = set(needs) & {"grad", "hess"}
    backward = bool(wanted) or "mask_grad" in needs
    means = _Means(module, wanted, hessian, len(ids_NT))
    together = needs_all_ranks(module)
    means.times = world.size if together and not in_turn else 1
    training = module.training
    module.eval()  # dropout would add noise, and use up the run's random numbers
    every = range(len(ids_NT)) if backward or listening else ()
    numbers = [*every[world.rank :: world.size]] if in_turn else [*every]
    device = next(module.parameters()).device

    def run(n: int, *, counts: bool = True) -> None:
        module.zero_grad(set_to_none=True)
        with torch.set_grad_enabled(backward):
            if loss_of is not None:
                loss = loss_of(module, n)
            else:
                own_1T = None if positions_NT is None else positions_NT[n : n + 1]
                one_pass = _next_token if backward else _forward
                loss = one_pass(module, ids_NT[n : n + 1].to(device), own_1T)
        with in_full(device, precision):
            if backward:
                (loss if counts else 0.0 * loss).backward()
            if wanted:
                means.add()

    # Around all passes: no weight changes, so each is cast once.
    with autocast(device, precision, cached=not together):
        with ExitStack() as stack:
            for context in listening:
                stack.enter_context(context)
            for number, n in enumerate(numbers):
                tell(number, len(numbers))
                run(n)
        if together and in_turn and numbers:  # others' passes: nothing of this process counts
            for _ in range(-(-len(ids_NT) // world.size) - len(numbers)):
                with aside():
                    run(numbers[-1], counts=False)
    module.zero_grad(set_to_none=True)
    module.train(training)
    among = world if in_turn and not together else ALONE
    return CalibrationStats(module, among.total(means.grad), among.total(means.hess), world)


def few_logits(module: nn.Module) -> dict[str, int]:
    """Returns the argument by which a class applies its output matrix to the last token alone;
    nothing for a class without it.
    """
    takes = inspect.signature(module.forward).parameters
    return {"logits_to_keep": 1} if "logits_to_keep" in takes else {}


def logits_at(module: nn.Module, at_P: Tensor) -> dict[str, Tensor]:
    """Returns the argument by which a class applies its output matrix to these tokens alone;
    nothing for a class that cannot.
    """
    takes = inspect.signature(module.forward).parameters.get("logits_to_keep")
    return {"logits_to_keep": at_P} if takes and "Tensor" in str(takes.annotation) else {}


def _forward(module: nn.Module, row_1T: Tensor, positions_1T: Tensor | None) -> Tensor:
    """Runs the layers, in which hooks measure, and as little behind them as the class can."""
    how = {**placed(module, positions_1T), **few_logits(module)}
    return module(input_ids=row_1T, use_cache=False, **how).logits


def _next_token(module: nn.Module, row_1T: Tensor, positions_1T: Tensor | None) -> Tensor:
    """Returns the mean loss of a sequence's next tokens."""
    labels_1T, how = row_1T, placed(module, positions_1T)
    if how:
        labels_1T = row_1T.masked_fill(how["position_ids"] == 0, NOT_PREDICTED)
    return module(input_ids=row_1T, labels=labels_1T, use_cache=False, **how).loss


class _Means:
    """Running means, over ``count`` sequences, of the gradients on the parameters and of their
    Hessians; of a sharded model, those of this process's rows.
    """

    def __init__(
        self, module: nn.Module, wanted: set[str], hessian: Bound | None, count: int
    ) -> None:
        self._module, self._wanted, self._hessian = module, wanted, hessian
        self._count = count
        self.times = 1
        """How often each sequence is in its gradient: once for each process that reads it."""
        self.grad: dict[str, Tensor] = {}
        self.hess: dict[str, Tensor] = {}

    @torch.no_grad()
    def add(self) -> None:
        """Adds the gradients of a pass."""
        for name, p in self._module.named_parameters():
            grad = own(_gradient(p, name)).float()
            grad = grad / self.times if self.times > 1 else grad
            if "hess" in self._wanted:
                assert self._hessian is not None
                value = _hess(self._hessian, {"weight": own(p.detach()), "grad": grad})
                _add(self.hess, name, value, self._count)
            if "grad" in self._wanted:
                _add(self.grad, name, grad, self._count)


def _hess(hessian: Bound, inputs: Mapping[str, Tensor]) -> Tensor:
    """Asks a Hessian. Raises PluginError for another shape than the weight's or a changed input."""
    with hessian.keeping(**inputs):
        found = hessian(**inputs)
    shape = inputs["weight"].shape
    hessian.plugin.require_shape(found, f"for a weight of shape {tuple(shape)}", shape)
    return found


def _add(into: dict[str, Tensor], name: str, value: Tensor, count: int) -> None:
    if name in into:
        into[name].add_(value, alpha=1 / count)
    else:
        into[name] = value / count

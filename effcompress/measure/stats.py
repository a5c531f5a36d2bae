"""What a criterion is given: blocks of rows of a parameter, of its gradient and of its Hessian."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from effcompress.errors import PluginError, RunError
from effcompress.registry import Bound


class TrainingStats:
    """Reads the gradients that training's own backward left on the parameters: no extra pass.

    The Hessian is estimated from this batch alone; averaging over steps happens on the scores.
    """

    def __init__(self, module: nn.Module, needs: Iterable[str], hessian: Bound | None) -> None:
        self._params = dict(module.named_parameters())
        self._needs = set(needs)
        self._hessian = hessian

    def shape(self, param: str) -> tuple[int, ...]:
        """Shape of a parameter."""
        return tuple(self._params[param].shape)

    def rows(self, param: str, start: int, stop: int) -> dict[str, Tensor]:
        """The inputs for rows ``start:stop``, each ``[stop - start, ...]``."""
        p = self._params[param]
        found = {"weight": p.detach()[start:stop]}
        if self._needs & {"grad", "hess"}:
            if p.grad is None:
                raise RunError("no gradient reached this parameter", where=param)
            found["grad"] = p.grad[start:stop]
        if "hess" in self._needs:
            assert self._hessian is not None, "recipe.load binds a hessian to criteria that need it"
            found["hess"] = _estimate(self._hessian, found)
        return found


class CalibrationStats:
    """Gradient and Hessian averaged over calibration sequences, held beside the model."""

    def __init__(
        self, module: nn.Module, grad: Mapping[str, Tensor], hess: Mapping[str, Tensor]
    ) -> None:
        self._params = dict(module.named_parameters())
        self._grad, self._hess = grad, hess

    def shape(self, param: str) -> tuple[int, ...]:
        """Shape of a parameter."""
        return tuple(self._params[param].shape)

    def rows(self, param: str, start: int, stop: int) -> dict[str, Tensor]:
        """The inputs for rows ``start:stop``, each ``[stop - start, ...]``."""
        found = {"weight": self._params[param].detach()[start:stop]}
        for name, source in (("grad", self._grad), ("hess", self._hess)):
            if param in source:
                found[name] = source[param][start:stop]
        return found


def collect(
    module: nn.Module, ids_NT: Tensor, needs: Iterable[str], hessian: Bound | None
) -> CalibrationStats:
    """Mean gradient (and mean per-sequence Hessian) of the next-token loss over ``ids_NT``.

    One sequence per backward, as the Fisher matrix is defined on single samples. Parameters end
    with ``grad`` None. Without a need for gradients no pass is made.
    """
    wanted = set(needs) & {"grad", "hess"}
    grads: dict[str, Tensor] = {}
    hess: dict[str, Tensor] = {}
    if not wanted:
        return CalibrationStats(module, grads, hess)
    count = ids_NT.shape[0]
    training = module.training
    module.eval()  # dropout would add noise, and use up the run's random numbers
    for ids_T in ids_NT:
        module.zero_grad(set_to_none=True)
        row = ids_T[None].to(next(module.parameters()).device)
        module(input_ids=row, labels=row, use_cache=False).loss.backward()
        with torch.no_grad():
            for name, p in module.named_parameters():
                if p.grad is None:
                    raise RunError("no gradient reached this parameter", where=name)
                grad = p.grad.float()
                if "hess" in wanted:
                    assert hessian is not None
                    here = {"weight": p.detach(), "grad": grad}
                    _add(hess, name, _estimate(hessian, here), count)
                if "grad" in wanted:
                    _add(grads, name, grad, count)
    module.zero_grad(set_to_none=True)
    module.train(training)
    return CalibrationStats(module, grads, hess)


def _estimate(hessian: Bound, inputs: dict[str, Tensor]) -> Tensor:
    """The plugin's diagonal Hessian; PluginError if it changes what it was given."""
    before = {name: t._version for name, t in inputs.items()}
    value = hessian(**inputs)
    for name, t in inputs.items():
        if t._version != before[name]:
            where = hessian.plugin.where
            raise PluginError(f"hessian '{hessian.name}' changes its {name}", where=where)
    return value


def _add(into: dict[str, Tensor], name: str, value: Tensor, count: int) -> None:
    if name in into:
        into[name].add_(value, alpha=1 / count)
    else:
        into[name] = value / count

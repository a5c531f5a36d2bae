"""Optimizer state of parameters that are masked, shortened or dropped.

AdamW keeps ``exp_avg`` and ``exp_avg_sq`` in the parameter's shape and ``step`` as a scalar. Only
what has the parameter's shape is cut with it; the scalar stays, so bias correction goes on.
"""

from collections.abc import Iterator, Mapping

from torch import Tensor, nn
from torch.optim import Optimizer

from effcompress.errors import SurgeryError


def moments(optimizer: Optimizer | None, p: nn.Parameter) -> Iterator[tuple[str, Tensor]]:
    """Yields the state tensors shaped like ``p`` with their keys (Adam: exp_avg, exp_avg_sq)."""
    if optimizer is not None:
        for key, value in _tensors(optimizer.state.get(p, {})):  # `state[p]` would create an entry
            if value.shape == p.shape:
                yield key, value


def forget(optimizer: Optimizer, module: nn.Module) -> None:
    """Drops the parameters that the model no longer has, together with their state."""
    living = {id(p) for p in module.parameters()}
    for group in optimizer.param_groups:
        for p in group["params"]:
            if id(p) not in living:
                optimizer.state.pop(p, None)
        group["params"] = [p for p in group["params"] if id(p) in living]


def require_no_gradient(p: nn.Parameter, name: str) -> None:
    """Raises SurgeryError while ``p`` has a gradient: it belongs to a weight that changes here."""
    if p.grad is not None:
        raise SurgeryError(
            "removal happens between optimizer steps, but a gradient is alive",
            where=name,
            fix="Call optimizer.zero_grad(set_to_none=True) first.",
        )


def check_state(optimizer: Optimizer, params: Mapping[str, nn.Parameter]) -> None:
    """Checks that the optimizer holds exactly the model's parameters and that state shapes agree.

    Raises SurgeryError naming the parameter.
    """
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for name, p in params.items():
        if p.requires_grad and id(p) not in held:
            raise SurgeryError("this parameter is not in the optimizer", where=name)
        for key, value in _tensors(optimizer.state.get(p, {})):
            if value.shape != p.shape:
                raise SurgeryError(
                    f"optimizer state '{key}' has shape {tuple(value.shape)}, the parameter "
                    f"{tuple(p.shape)}",
                    where=name,
                )
    extra = held - {id(p) for p in params.values()}
    if extra:
        raise SurgeryError(f"the optimizer holds {len(extra)} parameters the model does not have")


def _tensors(state: Mapping[str, object]) -> list[tuple[str, Tensor]]:
    """State that may have the parameter's shape; scalars such as ``step`` do not count."""
    return [(k, v) for k, v in state.items() if isinstance(v, Tensor) and v.dim() > 0]

"""Optimizer state follows the parameter: whatever is shaped like it is cut like it."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from effcompress.errors import SurgeryError


def moments(optimizer: Optimizer | None, p: nn.Parameter) -> Iterator[Tensor]:
    """State tensors shaped like ``p`` (Adam: exp_avg, exp_avg_sq)."""
    if optimizer is None or p not in optimizer.state:
        return
    for value in optimizer.state[p].values():
        if torch.is_tensor(value) and value.dim() > 0 and value.shape == p.shape:
            yield value


def check_state(optimizer: Optimizer, params: dict[str, nn.Parameter]) -> None:
    """Every living parameter is in the optimizer, no dead one is, and all state shapes agree.

    Raises SurgeryError naming the parameter.
    """
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for name, p in params.items():
        if p.requires_grad and id(p) not in held:
            raise SurgeryError("this parameter is not in the optimizer", where=name)
        for key, value in optimizer.state.get(p, {}).items():
            if torch.is_tensor(value) and value.dim() > 0 and value.shape != p.shape:
                raise SurgeryError(
                    f"optimizer state '{key}' has shape {tuple(value.shape)}, the parameter "
                    f"{tuple(p.shape)}",
                    where=name,
                )
    extra = held - {id(p) for p in params.values()}
    if extra:
        raise SurgeryError(f"the optimizer holds {len(extra)} parameters the model does not have")

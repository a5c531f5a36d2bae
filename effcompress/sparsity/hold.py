"""Zeros that stay zero while everything else learns."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from effcompress.errors import RunError


@torch.no_grad()
def hold(module: nn.Module, zeros: Mapping[str, Tensor]) -> None:
    """Take the gradient of every weight that is to stay zero, before the optimizer looks.

    Without a gradient its moments stay zero, so AdamW's step is zero; so is its weight decay, of
    zero. The norm of the gradient then counts living weights only.
    """
    for name, p in module.named_parameters():
        if name in zeros and p.grad is not None:
            p.grad.masked_fill_(zeros[name], 0.0)


def require_held(module: nn.Module, zeros: Mapping[str, Tensor]) -> None:
    """Raises RunError naming a weight that should have stayed zero and did not."""
    for name, p in module.named_parameters():
        if name in zeros and bool(p.detach()[zeros[name]].any()):
            raise RunError("a weight that was made zero is not zero any more", where=name)


def count(module: nn.Module, params: Mapping[str, object] | list[str]) -> int:
    """Zeros in these weights."""
    held = dict(module.named_parameters())
    return sum(int((held[name] == 0).sum()) for name in params)

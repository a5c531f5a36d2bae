"""What is made small, in fp32, with the loss of each row kept for the domains."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class RowLoss:
    """``[B]`` in nats per token: ``objective`` is trained on and keeps the graph, ``text`` is the
    next-token loss.
    """

    objective: Tensor
    text: Tensor


Objective = Callable[[nn.Module, Tensor, Tensor | None], RowLoss]
"""A model, ``ids_BT`` and ``trained_BT`` (None: all) -> the loss of each row."""


def next_token(module: nn.Module, ids_BT: Tensor, trained_BT: Tensor | None = None) -> RowLoss:
    """Mean cross-entropy of each sequence's next tokens."""
    loss_B = cross_entropy(module(input_ids=ids_BT, use_cache=False).logits, ids_BT, trained_BT)
    return RowLoss(loss_B, loss_B.detach())


def cross_entropy(logits_BTV: Tensor, ids_BT: Tensor, trained_BT: Tensor | None = None) -> Tensor:
    """Mean next-token cross-entropy of each sequence, ``[B]``; keeps the graph."""
    losses = functional.cross_entropy(
        logits_BTV[:, :-1].flatten(0, 1).float(), ids_BT[:, 1:].flatten(), reduction="none"
    )
    return over_tokens(losses.view(ids_BT.shape[0], -1), trained_BT)


def over_tokens(each_BT: Tensor, trained_BT: Tensor | None) -> Tensor:
    """Mean over the predicted tokens of each row that are trained on, ``[B]``; 0 where none is.
    ``each_BT`` is one shorter: the first token is not predicted.
    """
    if trained_BT is None:
        return each_BT.mean(1)
    weight_BT = trained_BT[:, 1:].to(each_BT.dtype)
    return (each_BT * weight_BT).sum(1) / weight_BT.sum(1).clamp(min=1.0)


def by_domain(loss_B: Tensor, domains: tuple[str, ...]) -> dict[str, float]:
    """Mean loss of each domain that occurs; one that does not occur is left out, never NaN."""
    found: dict[str, list[float]] = {}
    for value, domain in zip(loss_B.tolist(), domains, strict=True):
        found.setdefault(domain, []).append(value)
    return {domain: sum(values) / len(values) for domain, values in sorted(found.items())}


def autocast(device: torch.device, precision: str, *, cached: bool = True) -> torch.autocast:
    """The autocast region of a precision: ``bf16`` computes in bfloat16, weights stay fp32; their
    casts are kept until it ends, unless ``cached`` is false.
    """
    bf16 = precision == "bf16"
    return torch.autocast(
        device.type, dtype=torch.bfloat16, enabled=bf16, cache_enabled=bf16 and cached
    )

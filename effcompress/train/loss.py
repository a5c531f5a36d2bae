"""Next-token loss, in fp32, with the loss of each row kept for the domains."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


def row_losses(module: nn.Module, ids_BT: Tensor) -> Tensor:
    """Mean next-token cross-entropy of each sequence, ``[B]``, in nats; keeps the graph."""
    logits = module(input_ids=ids_BT, use_cache=False).logits
    losses = functional.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(), ids_BT[:, 1:].flatten(), reduction="none"
    )
    return losses.view(ids_BT.shape[0], -1).mean(1)


def by_domain(loss_B: Tensor, domains: tuple[str, ...]) -> dict[str, float]:
    """Mean loss of each domain that occurs; one that does not occur is left out, never NaN."""
    found: dict[str, list[float]] = {}
    for value, domain in zip(loss_B.tolist(), domains, strict=True):
        found.setdefault(domain, []).append(value)
    return {domain: sum(values) / len(values) for domain, values in sorted(found.items())}


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The autocast region of a precision: ``bf16`` computes in bfloat16, weights stay fp32."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")

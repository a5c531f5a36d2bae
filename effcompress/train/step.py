"""One optimizer step, in two halves: between them the gradients are there for others to read."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.optim import Optimizer

from effcompress.errors import RunError
from effcompress.spec import LoopSpec
from effcompress.train.loss import Objective, autocast, by_domain, next_token
from effcompress.types import Batch


@dataclass(frozen=True)
class Losses:
    """What a batch cost, in nats per token; ``objective`` is what was trained on, if it is not the
    next-token loss.
    """

    loss: float
    domain_loss: dict[str, float]
    objective: float


def backward(
    module: nn.Module, batch: Batch, spec: LoopSpec, objective: Objective = next_token
) -> Losses:
    """Accumulate the gradient of the mean objective over the batch, one micro-batch after another.

    Raises RunError when the loss is not finite; the weights are as they were before the step.
    """
    device = next(module.parameters()).device
    size = spec.micro_batch_size or spec.batch_size
    rows: list[torch.Tensor] = []
    trained = 0.0
    count = batch.ids_BT.shape[0]
    for ids_BT in batch.ids_BT.split(size):
        with autocast(device, spec.precision):
            found = objective(module, ids_BT.to(device))
        mean = found.objective.sum() / count
        mean.backward()
        trained += float(mean.detach())
        rows.append(found.text.float().cpu())
    loss_B = torch.cat(rows)
    loss = float(loss_B.mean())
    if not torch.isfinite(loss_B).all():
        domains = sorted(
            {d for d, v in zip(batch.domains, loss_B, strict=True) if not v.isfinite()}
        )
        raise RunError(
            f"the loss is {loss} (domains: {', '.join(domains)})",
            fix="Resume from the last checkpoint with a lower train.learning_rate.peak.",
        )
    return Losses(loss, by_domain(loss_B, batch.domains), trained)


def update(module: nn.Module, optimizer: Optimizer, spec: LoopSpec, rate: float) -> float:
    """Clip, step, and drop the gradients. Returns the norm of the gradient before clipping.

    Raises RunError, before any weight changes, when the norm is not finite.
    """
    parameters = [p for p in module.parameters() if p.grad is not None]
    norm_0 = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    norm = float(norm_0)
    # Before scaling: a factor of nan would spread to every gradient and hide where it came from.
    if not math.isfinite(norm):
        bad = [
            name
            for name, p in module.named_parameters()
            if p.grad is not None and not bool(torch.isfinite(p.grad).all())
        ]
        raise RunError(
            f"the gradient is not finite (norm {norm})",
            where=bad[0] if bad else None,
            fix="Resume from the last checkpoint with a lower train.learning_rate.peak.",
        )
    nn.utils.clip_grads_with_norm_(parameters, spec.clip, norm_0)
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm

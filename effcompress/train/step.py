"""One optimizer step, in two halves: between them the gradients are there for others to read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from effcompress.distributed import ALONE, World, in_step, is_sharded, own, unsynchronised
from effcompress.errors import NotFinite
from effcompress.spec import LearningRateSpec, LoopSpec
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
    module: nn.Module,
    batch: Batch,
    spec: LoopSpec,
    objective: Objective = next_token,
    world: World = ALONE,
) -> Losses:
    """Accumulate the gradient of the mean objective over the batch, one micro-batch after another.
    Of ``batch``, the same everywhere, each process of ``world`` computes its own rows; the losses
    are those of the whole batch, and so is the gradient if ``module`` is a replica.

    Raises NotFinite when the loss is not; the weights are as they were before the step.
    """
    device = next(module.parameters()).device
    own = world.part(len(batch.ids_BT))
    size = min(spec.micro_batch_size or spec.batch_size, own.stop - own.start)
    rows: list[torch.Tensor] = []
    trained = 0.0
    # A row without a token that is trained on (all of it prompt) counts for nothing.
    used_B = torch.ones(len(batch.ids_BT), dtype=torch.bool)
    if batch.trained_BT is not None:
        used_B = batch.trained_BT[:, 1:].any(1)
    count = max(1, int(used_B.sum()))
    for start in range(own.start, own.stop, size):
        stop = min(start + size, own.stop)
        ids_BT, trained_BT = _part(batch, start, stop, device)
        # Replicas exchange gradients once, in the backward of the last.
        with unsynchronised(module) if stop < own.stop else nullcontext():
            with autocast(device, spec.precision, cached=not in_step(module)):
                found = objective(module, ids_BT, trained_BT)
            mean = found.objective.sum() / count
            mean.backward()
        trained += float(mean.detach())
        rows.append(found.text.float())
    loss_B = world.cat(torch.cat(rows)).cpu()[used_B]
    (trained,) = world.sums([trained])
    domains = tuple(d for d, used in zip(batch.domains, used_B.tolist(), strict=True) if used)
    loss = float(loss_B.mean()) if len(loss_B) else 0.0
    if not torch.isfinite(loss_B).all():
        bad = sorted({d for d, v in zip(domains, loss_B, strict=True) if not v.isfinite()})
        raise NotFinite(f"the loss is not finite (domains: {', '.join(bad)})")
    return Losses(loss, by_domain(loss_B, domains), trained)


def _part(
    batch: Batch, start: int, stop: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """A micro-batch, on the device."""
    rows = slice(start, stop)
    trained_BT = batch.trained_BT
    return (
        batch.ids_BT[rows].to(device),
        None if trained_BT is None else trained_BT[rows].to(device),
    )


def update(
    module: nn.Module, optimizer: Optimizer, spec: LoopSpec, rate: float, world: World = ALONE
) -> float:
    """Clip, step, and drop the gradients. Returns the norm of the gradient before clipping, of all
    rows where they are shared out over the processes of ``world``.

    Raises NotFinite, before any weight changes, when the norm is not.
    """
    parameters = [p for p in module.parameters() if p.grad is not None]
    shared = any(is_sharded(p) for p in parameters)
    grads = [own(p.grad) for p in parameters if p.grad is not None]
    norm_0 = nn.utils.get_total_norm(grads)
    norm = world.sums([float(norm_0) ** 2])[0] ** 0.5 if shared else float(norm_0)
    # Before scaling: a factor of nan would spread to every gradient and hide where it came from.
    if not math.isfinite(norm):
        bad = [
            name
            for name, p in module.named_parameters()
            if p.grad is not None and not bool(torch.isfinite(own(p.grad)).all())
        ]
        raise NotFinite("the gradient is not finite", where=bad[0] if bad else None)
    if shared:
        _scale(grads, min(1.0, spec.clip / (norm + 1e-6)))
    else:
        nn.utils.clip_grads_with_norm_(parameters, spec.clip, norm_0)
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm


def _scale(grads: Sequence[Tensor], factor: float) -> None:
    """What torch's clipping does, for which gradients may not be shared out."""
    if factor < 1.0:
        for grad in grads:
            grad.mul_(factor)


def optimizer(module: nn.Module, spec: LoopSpec) -> AdamW:
    """AdamW over what is trained, in two groups: matrices decay, gains and biases do not."""
    trained = [p for p in module.parameters() if p.requires_grad]
    matrices = [p for p in trained if p.dim() > 1]
    vectors = [p for p in trained if p.dim() <= 1]
    groups = [
        {"params": matrices, "weight_decay": spec.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    beta1, beta2 = spec.betas
    return AdamW(
        groups,
        lr=spec.learning_rate.peak,
        betas=(beta1, beta2),
        fused=spec.fused,
        foreach=not spec.fused,
    )


def learning_rate(spec: LearningRateSpec, tokens: int, total: int) -> float:
    """Learning rate of the step that ends at ``tokens`` of ``total`` tokens."""
    progress = tokens / total
    if spec.warmup > 0 and progress < spec.warmup:
        return spec.peak * progress / spec.warmup
    floor = spec.floor * spec.peak
    if spec.schedule == "cosine":
        through = (progress - spec.warmup) / max(1e-12, 1.0 - spec.warmup)
        return floor + (spec.peak - floor) * 0.5 * (1.0 + math.cos(math.pi * min(1.0, through)))
    if spec.schedule == "trapezoidal" and spec.decay > 0 and progress > 1.0 - spec.decay:
        left = max(0.0, (1.0 - progress) / spec.decay)
        return floor + (spec.peak - floor) * left
    return spec.peak

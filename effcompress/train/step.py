"""One optimizer step with AdamW, in two halves; saliency reads the gradients between them."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from effcompress.distributed.rows import is_sharded, own, shard_group
from effcompress.distributed.world import ALONE, World, needs_all_ranks, unsynchronised
from effcompress.errors import NotFinite
from effcompress.precision import autocast
from effcompress.spec import LearningRateSpec, LoopSpec
from effcompress.train.loss import Objective, by_domain, next_token
from effcompress.types import Batch


@dataclass(frozen=True)
class Losses:
    """Losses of a batch in nats per token: next-token loss, the same per domain, and the objective
    that was minimised.
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
    around: Callable[[int], AbstractContextManager[None]] = lambda _number: nullcontext(),
) -> Losses:
    """Accumulates the gradient of the mean objective over the batch, in micro-batches, both passes
    of each within ``around`` its number in the global batch.

    ``batch`` is the global batch, equal on every rank; each computes its own rows. Losses are those
    of the whole batch, and so are gradients if ``module`` is wrapped (DDP or FSDP2).

    Raises NotFinite when the loss is not finite, or no token of the batch is trained on; weights
    are unchanged then.
    """
    device = next(module.parameters()).device
    own = world.own_rows(len(batch.ids_BT))
    size = min(spec.micro_batch_size or spec.batch_size, own.stop - own.start)
    rows: list[Tensor] = []
    trained = 0.0
    # A row without a trained token (all prompt, or all padding) does not count as a row.
    used_B = torch.ones(len(batch.ids_BT), dtype=torch.bool)
    if batch.trained_BT is not None:
        used_B = batch.trained_BT[:, 1:].any(1)
    if not (count := int(used_B.sum())):
        raise NotFinite("no token of the batch is trained on: all are of prompts")
    starts = range(own.start, own.stop, size)
    for number, start in enumerate(starts, world.rank * len(starts)):
        stop = min(start + size, own.stop)
        ids_BT, trained_BT, positions_BT = (
            None if each is None else each[start:stop].to(device)
            for each in (batch.ids_BT, batch.trained_BT, batch.positions_BT)
        )
        assert ids_BT is not None
        # DDP exchanges gradients once, in the backward of the last micro-batch.
        with unsynchronised(module) if stop < own.stop else nullcontext(), around(number):
            with autocast(device, spec.precision, cached=not needs_all_ranks(module)):
                found = objective(module, ids_BT, trained_BT, positions_BT)
            # Divided by the rows of the global batch: sums over micro-batches and ranks are the
            # mean.
            mean = found.objective.sum() / count
            mean.backward()
        trained += float(mean.detach())
        rows.append(found.text.float())
    loss_B = world.cat(torch.cat(rows)).cpu()[used_B]
    (trained,) = world.sums([trained])
    domains = tuple(d for d, used in zip(batch.domains, used_B.tolist(), strict=True) if used)
    if not torch.isfinite(loss_B).all():
        bad = sorted({d for d, v in zip(domains, loss_B, strict=True) if not v.isfinite()})
        raise NotFinite(f"the loss is not finite (domains: {', '.join(bad)})")
    return Losses(float(loss_B.mean()), by_domain(loss_B, domains), trained)


def update(
    module: nn.Module, optimizer: Optimizer, spec: LoopSpec, rate: float, world: World = ALONE
) -> float:
    """Clips the gradient, steps the optimizer and drops the gradients. Returns the norm of the
    whole gradient before clipping, over the ranks of ``world`` where parameters are sharded.

    Raises NotFinite, before any weight changes, when the norm is not finite.
    """
    parameters = [p for p in module.parameters() if p.grad is not None]
    sharded = any(is_sharded(p) for p in parameters)
    grads = [own(p.grad) for p in parameters if p.grad is not None]
    norm_0 = nn.utils.get_total_norm(grads)
    norm = float(norm_0)
    if sharded:
        norm = world.sums([norm**2], shard_group(parameters))[0] ** 0.5
    # Before clipping: a factor of nan would spread to every gradient and hide where it came from.
    if not math.isfinite(norm):
        bad = [
            name
            for name, p in module.named_parameters()
            if p.grad is not None and not bool(torch.isfinite(own(p.grad)).all())
        ]
        raise NotFinite("the gradient is not finite", where=bad[0] if bad else None)
    if sharded:  # torch's clipping does not accept these
        factor = min(1.0, spec.clip / (norm + 1e-6))
        for grad in grads if factor < 1.0 else ():
            grad.mul_(factor)
    else:
        nn.utils.clip_grads_with_norm_(parameters, spec.clip, norm_0)
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm


def optimizer(module: nn.Module, spec: LoopSpec) -> AdamW:
    """Returns AdamW over the trained parameters in two groups: matrices decay, vectors do not."""
    trained = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() > 1], "weight_decay": spec.weight_decay},
        {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0},
    ]
    # One of the two, said: torch's default depends on the device, and each rounds differently.
    kernel: Any = {"fused": spec.fused, "foreach": not spec.fused, "betas": tuple(spec.betas)}
    return AdamW(groups, lr=spec.learning_rate.peak, **kernel)


def learning_rate(spec: LearningRateSpec, tokens: int, total: int, step: int) -> float:
    """Returns the learning rate of a step of ``step`` tokens that ends at ``tokens`` of ``total``.

    Warm-up is linear from 0 to ``peak``. ``cosine`` decays from ``peak`` to ``floor * peak`` over
    the tokens after the warm-up; ``trapezoidal`` is constant and decays linearly at the end.
    Warm-up is read at the end of a step and decay at its beginning (as in transformers), so that
    with ``floor`` 0 neither the first step nor the last one has a rate of 0.
    """
    progress = tokens / total
    if spec.warmup > 0 and progress < spec.warmup:
        return spec.peak * progress / spec.warmup
    progress = max(spec.warmup, (tokens - step) / total)
    floor = spec.floor * spec.peak
    if spec.schedule == "cosine":
        through = (progress - spec.warmup) / max(1e-12, 1.0 - spec.warmup)
        return floor + (spec.peak - floor) * 0.5 * (1.0 + math.cos(math.pi * min(1.0, through)))
    if spec.schedule == "trapezoidal" and spec.decay > 0 and progress > 1.0 - spec.decay:
        left = max(0.0, (1.0 - progress) / spec.decay)
        return floor + (spec.peak - floor) * left
    return spec.peak

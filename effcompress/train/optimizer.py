"""AdamW and its learning rate."""

from __future__ import annotations

import math

from torch import nn
from torch.optim import AdamW

from effcompress.spec import LearningRateSpec, LoopSpec


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

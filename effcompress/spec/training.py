"""The sections ``train``, ``recover`` and ``distributed``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from effcompress.spec.key import Count, Fraction, key


@dataclass(frozen=True, kw_only=True)
class LearningRateSpec:
    """The learning rate as a function of tokens."""

    peak: float = key("highest learning rate", 3e-4, above=0)
    schedule: Literal["trapezoidal", "cosine", "constant"] = key(
        "trapezoidal: warm-up, constant, linear decay at the end", "trapezoidal"
    )
    warmup: Fraction = key("fraction of the tokens in the warm-up", 0.02)
    decay: Fraction = key("trapezoidal: fraction of the tokens in the decay", 0.2)
    floor: Fraction = key("learning rate at the end, as a fraction of the peak", 0.0)


@dataclass(frozen=True, kw_only=True)
class StagesSpec:
    """Training in three stages under one learning-rate schedule."""

    warmup: Count = key("tokens before the first cut; saliency is already measured", 0)
    pruning: Count = key("tokens of pruning-aware training", minimum=1)
    continued: Count = key("tokens of training at the final size", 0)


@dataclass(frozen=True, kw_only=True)
class LoopSpec:
    """Settings of the training loop and of AdamW."""

    batch_size: int = key("sequences per optimizer step", 8, minimum=1)
    micro_batch_size: int | None = key(
        "sequences per forward pass; default: all of them", None, minimum=1
    )
    learning_rate: LearningRateSpec = key("learning rate over tokens", LearningRateSpec())
    weight_decay: float = key("AdamW weight decay, on matrices only", 0.1, minimum=0)
    betas: tuple[float, ...] = key(
        "AdamW betas", (0.9, 0.95), expert=True, least=2, most=2, minimum=0, below=1
    )
    clip: float = key("gradient clipping: largest norm", 1.0, above=0)
    precision: Literal["fp32", "bf16"] = key("bf16: autocast over fp32 master weights", "fp32")
    recompute: bool = key(
        "activation checkpointing: keep only the input of each layer and recompute the rest in the "
        "backward pass; less memory, a third more compute",
        False,
    )
    compile: bool = key(
        "torch.compile for layers that are trained and have no hooks of a repair or criterion; "
        "minutes at the beginning, faster steps",
        False,
    )
    bad_steps: int = key(
        "consecutive steps that may be skipped because loss, gradient or saliency is not finite; "
        "one more stops the run",
        3,
        minimum=0,
        expert=True,
    )
    fused: bool = key("fused AdamW kernel", False, expert=True)


@dataclass(frozen=True, kw_only=True)
class TrainSpec(LoopSpec):
    """Pruning-aware training: exactly one of tokens, stages."""

    tokens: Count | None = key("tokens to train on, pruning included", None, minimum=1)
    stages: StagesSpec | None = key(
        "tokens by stage; the schedule then prunes in the pruning stage, and at its end the rest "
        "is cut at once",
        None,
    )


@dataclass(frozen=True, kw_only=True)
class LoraSpec:
    """Low-rank updates of every matrix in the layers, merged at the end (arXiv:2106.09685)."""

    rank: int = key("rank of an update", 8, minimum=1)
    alpha: float = key("an update is scaled by alpha / rank", 16.0, above=0)
    dropout: Fraction = key("dropout on the input of an update", 0.05, below=1)


@dataclass(frozen=True, kw_only=True)
class DistillSpec:
    """Distillation from the source model (the teacher) on the same text: forward KL of its
    next-token distribution (arXiv:2407.14679).
    """

    temperature: float = key(
        "both distributions are softened by it, the loss scaled back", 1.0, above=0
    )
    text_weight: float = key(
        "weight of the cross-entropy on the text, added to the KL loss", 0.0, minimum=0
    )
    hidden_weight: float = key(
        "weight of 1 - cosine between the hidden states after every layer, on the channels that "
        "are left",
        0.0,
        minimum=0,
    )
    teacher: Literal["fp32", "bf16"] = key("precision of the teacher's weights", "bf16")


@dataclass(frozen=True, kw_only=True)
class RecoverSpec(LoopSpec):
    """Training after one-shot pruning: the model is cut before the first step."""

    tokens: Count = key("tokens to train on", minimum=1)
    method: Literal["full", "lora", "distill"] = key(
        "full: all weights, on the text; lora: low-rank updates; distill: all weights, on the "
        "source model's predictions",
        "full",
    )
    lora: LoraSpec | None = key("knobs of method lora", None)
    distill: DistillSpec | None = key(
        "knobs of method distill; with method lora, the updates are distilled", None
    )


@dataclass(frozen=True, kw_only=True)
class DistributedSpec:
    """What each of several processes holds; the launcher (torchrun) sets their number."""

    mode: Literal["replicate", "shard"] = key(
        "replicate: every process has the whole model (DDP); shard: weights, gradients and moments "
        "are sharded, and a layer is gathered only while it computes (FSDP2)",
        "replicate",
    )

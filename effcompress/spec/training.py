"""Training and its budget."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from effcompress.spec.key import Count, Fraction, key


@dataclass(frozen=True, kw_only=True)
class LearningRateSpec:
    """Learning rate over tokens."""

    peak: float = key("highest learning rate", 3e-4, above=0)
    schedule: Literal["trapezoidal", "cosine", "constant"] = key(
        "trapezoidal: warm up, stay, go down linearly at the end", "trapezoidal"
    )
    warmup: Fraction = key("share of the tokens that the warm-up takes", 0.02)
    decay: Fraction = key("trapezoidal: share of the tokens that the way down takes", 0.2)
    floor: Fraction = key("lowest learning rate at the end, as a share of the peak", 0.0)


@dataclass(frozen=True, kw_only=True)
class StagesSpec:
    """Training in three parts, one after the other, under one learning-rate curve."""

    warmup: Count = key("tokens before pruning begins; saliency is measured already", 0)
    pruning: Count = key("tokens of pruning-aware training", minimum=1)
    continued: Count = key("tokens of training at the final size", 0)


@dataclass(frozen=True, kw_only=True)
class LoopSpec:
    """The optimizer."""

    batch_size: int = key("sequences per optimizer step", 8, minimum=1)
    micro_batch_size: int | None = key(
        "sequences per forward pass; default: all of them", None, minimum=1
    )
    learning_rate: LearningRateSpec = key("learning rate over tokens", LearningRateSpec())
    weight_decay: float = key("AdamW weight decay, on matrices only", 0.1, minimum=0)
    betas: tuple[float, ...] = key(
        "AdamW betas", (0.9, 0.95), expert=True, least=2, most=2, minimum=0, below=1
    )
    clip: float = key("largest norm of the gradient", 1.0, above=0)
    precision: Literal["fp32", "bf16"] = key("bf16: autocast over fp32 master weights", "fp32")
    recompute: bool = key(
        "keep only what each layer reads and compute it once more in the backward: less memory, a "
        "third more compute",
        False,
    )
    compile: bool = key(
        "layers as compiled code (torch.compile) wherever they are trained and no repair or "
        "criterion listens to them; minutes at the beginning, faster steps",
        False,
    )
    bad_steps: int = key(
        "steps in a row that are left out because loss, gradient or saliency is not finite; one "
        "more, and the run stops",
        3,
        minimum=0,
        expert=True,
    )
    fused: bool = key("fused AdamW kernel", False, expert=True)


@dataclass(frozen=True, kw_only=True)
class TrainSpec(LoopSpec):
    """Training that pruning is a part of: exactly one of tokens, stages."""

    tokens: Count | None = key("tokens to train on, pruning included", None, minimum=1)
    stages: StagesSpec | None = key(
        "tokens by stage; the schedule then prunes in the pruning stage, and what remains to be "
        "cut when it ends is cut there",
        None,
    )


@dataclass(frozen=True, kw_only=True)
class LoraSpec:
    """Low-rank updates of every matrix in the layers, merged into it in the end
    (arXiv:2106.09685).
    """

    rank: int = key("rank of an update", 8, minimum=1)
    alpha: float = key("an update is scaled by alpha / rank", 16.0, above=0)
    dropout: Fraction = key("dropout in front of an update", 0.05, below=1)


@dataclass(frozen=True, kw_only=True)
class DistillSpec:
    """The source model as a teacher, on the same text: forward KL of its next-token distribution
    (arXiv:2407.14679).
    """

    temperature: float = key(
        "both distributions are softened by it, the loss scaled back", 1.0, above=0
    )
    text_weight: float = key(
        "weight of the loss on the text itself beside that on the teacher", 0.0, minimum=0
    )
    hidden_weight: float = key(
        "weight of 1 - cosine between the hidden states behind every layer, on the channels that "
        "are left",
        0.0,
        minimum=0,
    )
    teacher: Literal["fp32", "bf16"] = key("what the teacher's weights are kept in", "bf16")


@dataclass(frozen=True, kw_only=True)
class RecoverSpec(LoopSpec):
    """Training after pruning at once: the model is cut before the first step."""

    tokens: Count = key("tokens to train on", minimum=1)
    method: Literal["full", "lora", "distill"] = key(
        "full: all weights, on the text; lora: low-rank updates; distill: all weights, on what the "
        "source model says of the text",
        "full",
    )
    lora: LoraSpec | None = key("knobs of method lora", None)
    distill: DistillSpec | None = key(
        "knobs of method distill; beside method lora, the updates are trained on the teacher", None
    )

"""What is made small, in fp32, with the loss of each row kept for the domains."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional

from effcompress.errors import RunError
from effcompress.spec import DistillSpec


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


@final
class Distillation:
    """``T^2 KL(teacher || student)`` at temperature ``T``, mean over tokens, plus what else the
    recipe asks for.

    ``layers`` are the numbers that the student's layers have in the teacher, ``channels`` those of
    its hidden channels (None: all). The teacher is never trained; its logits are not kept.
    """

    def __init__(
        self,
        teacher: nn.Module,
        spec: DistillSpec,
        layers: tuple[int, ...],
        channels: Tensor | None,
    ) -> None:
        self.teacher = teacher.eval().requires_grad_(False)
        self.spec, self.layers, self.channels = spec, layers, channels

    def __call__(
        self, module: nn.Module, ids_BT: Tensor, trained_BT: Tensor | None = None
    ) -> RowLoss:
        """Raises RunError when the vocabularies differ."""
        hidden = self.spec.hidden_weight > 0
        with torch.no_grad():
            said = self.teacher(input_ids=ids_BT, use_cache=False, output_hidden_states=hidden)
        own = module(input_ids=ids_BT, use_cache=False, output_hidden_states=hidden)
        if own.logits.shape != said.logits.shape:
            raise RunError(
                f"the teacher has {said.logits.shape[-1]} tokens, the model {own.logits.shape[-1]}"
            )
        text_B = cross_entropy(own.logits, ids_BT, trained_BT)
        objective_B = divergence(said.logits, own.logits, self.spec.temperature, trained_BT)
        if self.spec.text_weight:
            objective_B = objective_B + self.spec.text_weight * text_B
        if hidden:
            far_B = self._hidden(said.hidden_states, own.hidden_states)
            objective_B = objective_B + self.spec.hidden_weight * far_B
        return RowLoss(objective_B, text_B.detach())

    def _hidden(self, teacher: tuple[Tensor, ...], student: tuple[Tensor, ...]) -> Tensor:
        """``1 - cos`` behind every layer, mean over layers and tokens, ``[B]``. The last state is
        behind the final norm in both.
        """
        far = []
        for j, i in enumerate(self.layers):
            last = j == len(self.layers) - 1
            theirs = teacher[-1] if last else teacher[i + 1]
            if self.channels is not None:
                theirs = theirs[..., self.channels]
            cosine_BT = functional.cosine_similarity(student[j + 1].float(), theirs.float(), dim=-1)
            far.append(1.0 - cosine_BT.mean(1))
        return torch.stack(far).mean(0)


def divergence(
    teacher_BTV: Tensor, student_BTV: Tensor, temperature: float, trained_BT: Tensor | None = None
) -> Tensor:
    """``T^2 KL(teacher || student)`` of the distributions of the next tokens, mean over the tokens
    of each row, ``[B]``, in fp32.
    """
    theirs = functional.log_softmax(teacher_BTV[:, :-1].float() / temperature, dim=-1)
    own = functional.log_softmax(student_BTV[:, :-1].float() / temperature, dim=-1)
    each_BT = functional.kl_div(own, theirs, reduction="none", log_target=True).sum(-1)
    return temperature**2 * over_tokens(each_BT, trained_BT)

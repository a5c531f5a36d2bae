"""A teacher's next-token distribution as the target (arXiv:1503.02531; arXiv:2407.14679)."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional

from effcompress.errors import RunError
from effcompress.spec import DistillSpec
from effcompress.train.loss import RowLoss, cross_entropy, over_tokens


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

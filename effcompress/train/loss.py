"""Training objectives: next-token cross-entropy, and distillation from a teacher's distribution.

Losses are computed in fp32 and per row, because each row belongs to a domain whose loss is
recorded. Distillation: arXiv:1503.02531, and arXiv:2407.14679 for pruned students.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from effcompress.errors import RunError
from effcompress.isolation import placed
from effcompress.spec import DistillSpec


@dataclass(frozen=True)
class RowLoss:
    """Losses [B] in nats per token: ``objective`` with its graph, ``text`` for the next token."""

    objective: Tensor
    text: Tensor


Objective = Callable[[nn.Module, Tensor, Tensor | None, Tensor | None], RowLoss]
"""A model, ``ids_BT``, ``trained_BT`` (None: all) and ``positions_BT`` (None: those of the row) ->
the loss of each row.
"""


def next_token(
    module: nn.Module,
    ids_BT: Tensor,
    trained_BT: Tensor | None = None,
    positions_BT: Tensor | None = None,
) -> RowLoss:
    """Objective: mean cross-entropy of each sequence's next tokens."""
    out = module(input_ids=ids_BT, use_cache=False, **placed(module, positions_BT))
    loss_B = cross_entropy(out.logits, ids_BT, trained_BT)
    return RowLoss(loss_B, loss_B.detach())


def cross_entropy(logits_BTV: Tensor, ids_BT: Tensor, trained_BT: Tensor | None = None) -> Tensor:
    """Returns the mean next-token cross-entropy of each sequence [B]; keeps the graph."""
    losses = functional.cross_entropy(
        logits_BTV[:, :-1].flatten(0, 1).float(), ids_BT[:, 1:].flatten(), reduction="none"
    )
    return over_tokens(losses.view(ids_BT.shape[0], -1), trained_BT)


def over_tokens(each_BT: Tensor, trained_BT: Tensor | None) -> Tensor:
    """Returns the mean over the trained tokens of each row [B]; 0 where none is. ``each_BT`` is one
    shorter than ``trained_BT``: the first token is not predicted.
    """
    if trained_BT is None:
        return each_BT.mean(1)
    weight_BT = trained_BT[:, 1:].to(each_BT.dtype)
    return (each_BT * weight_BT).sum(1) / weight_BT.sum(1).clamp(min=1.0)


def by_domain(loss_B: Tensor, domains: tuple[str, ...]) -> dict[str, float]:
    """Returns the mean loss of each domain in the batch; absent domains have no entry."""
    found: dict[str, list[float]] = {}
    for value, domain in zip(loss_B.tolist(), domains, strict=True):
        found.setdefault(domain, []).append(value)
    return {domain: sum(values) / len(values) for domain, values in sorted(found.items())}


@final
class Distillation:
    """Objective: ``T^2 KL(teacher || student)`` at temperature ``T``, mean over tokens, plus the
    recipe's weighted text loss and hidden-state loss.

    ``layers``: the teacher's number of each layer of the student; ``channels``: the teacher's
    hidden channels that the student has (None: all). The teacher is frozen.
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
        self,
        module: nn.Module,
        ids_BT: Tensor,
        trained_BT: Tensor | None = None,
        positions_BT: Tensor | None = None,
    ) -> RowLoss:
        """Returns the losses of each row. Raises RunError when the vocabularies differ."""
        hidden = self.spec.hidden_weight > 0
        how: Any = {"output_hidden_states": hidden, "use_cache": False}
        with torch.no_grad():
            said = self.teacher(input_ids=ids_BT, **how, **placed(self.teacher, positions_BT))
        own = module(input_ids=ids_BT, **how, **placed(module, positions_BT))
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
        """Returns ``1 - cos`` of the hidden states after each layer, mean over layers and tokens
        [B].

        ``hidden_states[0]`` is the embedding, so the output of layer ``i`` is entry ``i + 1``. The
        last entry of transformers is after the final norm: the student's last layer is compared
        with the teacher's last entry, whichever teacher layer it descends from.
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
    """Returns ``T^2 KL(teacher || student)`` of the next-token distributions, mean over the tokens
    of each row [B], in fp32. ``T^2`` keeps the gradient's scale, which falls with ``1 / T^2``.
    """
    theirs = functional.log_softmax(teacher_BTV[:, :-1].float() / temperature, dim=-1)
    own = functional.log_softmax(student_BTV[:, :-1].float() / temperature, dim=-1)
    each_BT = functional.kl_div(own, theirs, reduction="none", log_target=True).sum(-1)
    return temperature**2 * over_tokens(each_BT, trained_BT)

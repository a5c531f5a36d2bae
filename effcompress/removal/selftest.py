"""Self-test of a commit: same logits, same ties, optimizer and model in agreement."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from effcompress.errors import SurgeryError
from effcompress.removal.optimizer import check_state

TOLERANCE = 1e-4
"""Largest difference of a logit, relative to the largest logit, in fp32."""
ROUNDINGS = 30.0
"""Above that tolerance: largest difference as a multiple of the effect of one rounding."""


@dataclass
class Proof:
    """Result of the self-test; filled in when the commit is done."""

    max_logit_difference: float = field(default=0.0)


@contextmanager
def same_function(
    module: nn.Module,
    ids_BT: Tensor,
    optimizer: Optimizer | None,
    callable_form: Callable[[], nn.Module] | None = None,
) -> Iterator[Proof]:
    """Runs a commit inside; raises SurgeryError if the model is not the same function afterwards.

    ``callable_form`` returns the wrapper to call where ``module`` itself cannot run (FSDP2). It is
    asked before and after, because the commit drops the wrapper and a new one is built.
    """
    ties, to_call = _ties(module), callable_form or (lambda: module)
    before = logits_of(to_call(), ids_BT)
    proof = Proof()
    yield proof
    after = logits_of(to_call(), ids_BT)
    proof.max_logit_difference = float((after - before).abs().max())
    scale = float(before.abs().max())
    # Of 16-bit weights a fixed tolerance says nothing: their own rounding decides.
    exact = next(module.parameters()).dtype in (torch.float32, torch.float64)
    allowed = TOLERANCE * max(scale, 1.0) if exact else 0.0
    # `not <=` instead of `>`: a difference of nan must fail.
    if not proof.max_logit_difference <= allowed and not (
        proof.max_logit_difference <= ROUNDINGS * rounding(to_call(), ids_BT, after)
    ):
        raise SurgeryError(
            f"logits moved by {proof.max_logit_difference:.3g} (largest logit {scale:.3g}) when "
            "masked units were cut out",
            fix="This is a fault of effcompress or of the family's declaration; please report it.",
        )
    if _ties(module) != ties:
        raise SurgeryError("tied weights came apart when the masked units were cut out")
    if optimizer is not None:
        check_state(optimizer, dict(module.named_parameters()))


@torch.no_grad()
def rounding(module: nn.Module, ids_BT: Tensor, logits: Tensor) -> float:
    """Returns how far logits move when every number of the embedding moves by one rounding of
    fp32, or of its own type where that is coarser.

    A model that pruning broke amplifies rounding errors a thousandfold, and shorter sums round
    differently, so a fixed tolerance would reject commits that are exact.
    """
    embedding: nn.Module = module.get_input_embeddings()  # type: ignore[operator]
    flip = torch.Generator().manual_seed(0)

    def nudge(_module: nn.Module, _args: object, out: Tensor) -> Tensor:
        signs = torch.randint(0, 2, out.shape, generator=flip).to(out.device) * 2 - 1
        eps = max(torch.finfo(dtype).eps for dtype in (out.dtype, torch.float32))
        return (out * (1 + signs * eps)).to(out.dtype)

    with embedding.register_forward_hook(nudge):
        return float((logits_of(module, ids_BT) - logits).abs().max())


@torch.no_grad()
def logits_of(module: nn.Module, ids_BT: Tensor) -> Tensor:
    """Returns logits [B, T, V] in fp32, in evaluation mode, without cache; restores the mode."""
    training = module.training
    module.eval()
    logits = module(input_ids=ids_BT, use_cache=False).logits.float()
    module.train(training)
    return logits


def _ties(module: nn.Module) -> list[tuple[str, ...]]:
    """Returns the groups of names that share one Parameter object (tied weights)."""
    names: dict[int, list[str]] = {}
    for name, p in module.named_parameters(remove_duplicate=False):
        names.setdefault(id(p), []).append(name)
    return sorted(tuple(group) for group in names.values() if len(group) > 1)

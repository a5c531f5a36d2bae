"""Computes perplexity: exp of the mean negative log-likelihood per predicted token."""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from effcompress.distributed.repeated import aside
from effcompress.distributed.world import ALONE, World, needs_all_ranks
from effcompress.errors import RunError
from effcompress.isolation import placed
from effcompress.precision import Precision, autocast
from effcompress.record.events import DomainScore


@torch.no_grad()
def perplexity(
    module: nn.Module,
    ids_NT: Tensor,
    batch_size: int,
    counted_NT: Tensor | None = None,
    world: World = ALONE,
    positions_NT: Tensor | None = None,
    precision: Precision = "fp32",
) -> DomainScore:
    """Evaluates windows ``ids_NT`` independently: position ``t`` predicts ``t + 1``, no overlap.
    ``counted_NT``: the tokens whose prediction counts (None: all but the first of each window);
    ``positions_NT``: those of the tokens in isolated documents; ``precision``: of the passes.

    Log-likelihoods are computed in fp32 and added in fp64. The ranks of ``world`` take batches in
    turn. Raises RunError if no token counts, or the loss is not finite.
    """
    training = module.training
    module.eval()
    device = next(module.parameters()).device
    cached = not needs_all_ranks(module)
    total, tokens = 0.0, 0
    batches = batches_of(ids_NT, batch_size, counted_NT, positions_NT)
    if not any(bool(counted_BT[:, 1:].any()) for _, counted_BT, _ in batches):
        raise RunError("no token of the held-out text is predicted, so there is no perplexity")
    for ids_BT, counted_BT, positions_BT in in_turn(batches, world, together=not cached):
        ids_BT, counted_BT = ids_BT.to(device), counted_BT.to(device)
        how = placed(module, positions_BT)
        with autocast(device, precision, cached=cached):
            logits = module(input_ids=ids_BT, use_cache=False, **how).logits[:, :-1]
        losses = functional.cross_entropy(
            logits.flatten(0, 1).float(), ids_BT[:, 1:].flatten(), reduction="none"
        )
        counted = counted_BT[:, 1:].flatten()
        total += float(losses.double()[counted].sum())
        tokens += int(counted.sum())
    module.train(training)
    total, counted_all = world.sums([total, tokens])
    tokens = int(counted_all)
    if not math.isfinite(total):
        raise RunError("the held-out loss is not finite")
    loss = total / tokens
    return DomainScore(
        perplexity=math.exp(min(loss, 700.0)),  # at most 1e304
        loss=loss,
        tokens=tokens,
        sequences=ids_NT.shape[0],
    )


Batch = tuple[Tensor, Tensor, Tensor | None]
"""Windows, which of their tokens count, and the positions of these (None: those of the row)."""


def batches_of(
    ids_NT: Tensor, batch_size: int, counted_NT: Tensor | None, positions_NT: Tensor | None
) -> list[Batch]:
    """Returns the windows in batches; where ``counted_NT`` is None, all of their tokens count."""
    if counted_NT is None:
        counted_NT = torch.ones_like(ids_NT, dtype=torch.bool)
    split = [each.split(batch_size) for each in (ids_NT, counted_NT)]
    placed_NT = (None,) * len(split[0]) if positions_NT is None else positions_NT.split(batch_size)
    return [*zip(*split, placed_NT, strict=True)]


def in_turn(batches: Sequence[Batch], world: World, *, together: bool) -> Iterator[Batch]:
    """Yields the batches of this rank, every ``size``-th. ``together``: every rank gets as many, so
    that all enter each pass; those without a last batch get one in which no token counts, and what
    they compute for it is not the method's.
    """
    yield from batches[world.rank :: world.size]
    if together and world.rank >= len(batches) % world.size > 0:
        ids_BT, counted_BT, positions_BT = batches[-1]
        with aside():
            yield ids_BT, torch.zeros_like(counted_BT), positions_BT

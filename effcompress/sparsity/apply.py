"""Ask a sparsifier for one layer's new weight, and believe nothing. Keep its zeros while everything
else learns.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from effcompress.distributed.rows import is_sharded, own, shard_group
from effcompress.distributed.world import ALONE, World
from effcompress.errors import RunError
from effcompress.registry import Bound
from effcompress.spec import Pattern

SLACK = 0.005
"""Share of zeros that a method may stay below what was asked for (rounding, searches)."""


def require_pattern(pattern: Pattern | None, shape: tuple[int, ...], dim: int, where: str) -> None:
    """Raises RunError when the inputs along ``dim`` do not divide into groups."""
    if pattern is not None and shape[dim] % pattern.of:
        raise RunError(
            f"{shape[dim]} inputs do not divide into groups of {pattern.of}",
            where=where,
            fix="Write `sparsity:` instead of `pattern:`, list the layer under "
            f"`skip_layers:`, or prune with `round_to: {pattern.of}`.",
        )


@torch.no_grad()
def sparsified(
    method: Bound,
    weight_OI: Tensor,
    moment: Tensor | None,
    sparsity: float,
    pattern: Pattern | None,
    where: str,
) -> Tensor:
    """The new weight, ``[O, I]``. ``moment``: ``[I, I]`` mean of ``x x^T``, or ``[I]`` of ``x^2``.

    Raises PluginError for a result of another shape, with too few zeros or none of the pattern,
    RunError for inputs or results that are not finite.
    """
    available: dict[str, object] = {"weight": weight_OI, "sparsity": sparsity, "pattern": pattern}
    if moment is not None:
        if not bool(torch.isfinite(moment).all()):
            raise RunError("what this layer reads is not finite", where=where)
        available["gram"] = moment
        square_I = moment.diagonal() if moment.dim() == 2 else moment
        available["input_norm"] = square_I.clamp(min=0).sqrt()
    with method.keeping(weight=weight_OI):
        new_OI = method(**available)
    method.plugin.require_shape(
        new_OI,
        f"for a weight of shape {tuple(weight_OI.shape)}",
        weight_OI.shape,
        fix="A sparsifier returns the weight, with zeros, in its shape.",
    )
    if not bool(torch.isfinite(new_OI).all()):
        raise RunError(f"'{method.name}' made a weight that is not finite", where=where)
    _require_zeros(method, new_OI, sparsity, pattern)
    return new_OI


def _require_zeros(method: Bound, new_OI: Tensor, sparsity: float, pattern: Pattern | None) -> None:
    zero_OI = new_OI == 0
    share = int(zero_OI.count_nonzero()) / zero_OI.numel()
    if share < sparsity - SLACK - 1 / new_OI.shape[1]:
        said = f"left {share:.1%} zeros where {sparsity:.1%} were asked for"
        raise method.plugin.error(said)
    if pattern is not None:
        groups = zero_OI.reshape(-1, pattern.of).sum(1)
        if int(groups.min()) < pattern.zeros:
            raise method.plugin.error(f"left a group that is not {pattern}")


@torch.no_grad()
def hold(module: nn.Module, zeros: Mapping[str, Tensor]) -> None:
    """Take the gradient of every weight that is to stay zero, before the optimizer looks.

    Without a gradient its moments stay zero, so AdamW's step is zero; so is its weight decay, of
    zero. The norm of the gradient then counts living weights only.
    """
    for name, p in module.named_parameters():
        if name in zeros and p.grad is not None:
            own(p.grad).masked_fill_(own(zeros[name]), 0.0)


def require_held(module: nn.Module, zeros: Mapping[str, Tensor], world: World = ALONE) -> None:
    """Raises RunError naming a weight that should have stayed zero and did not, in any process."""
    held = ((name, p) for name, p in module.named_parameters() if name in zeros)
    lost = next((n for n, p in held if bool(own(p.detach())[own(zeros[n])].any())), "")
    found = world.each(lambda: lost) if zeros else []
    if lost := next(filter(None, found), ""):
        raise RunError("a weight that was made zero is not zero any more", where=lost)


def count(module: nn.Module, params: Sequence[str], world: World = ALONE) -> int:
    """Zeros in these weights, whose rows may be shared out over the processes."""
    held = dict(module.named_parameters())
    return sum(counts([held[name] for name in params], world))


def counts(weights: Sequence[Tensor], world: World = ALONE) -> list[int]:
    """Zeros in each weight. Collective where they are sharded."""
    here = [int((own(p.detach()) == 0).sum()) for p in weights]
    shared = any(is_sharded(p) for p in weights)
    return [int(n) for n in world.sums(here, shard_group(weights))] if shared else here

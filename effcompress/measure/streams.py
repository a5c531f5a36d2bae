"""Runs source and pruned model side by side, layer by layer: moments of what the pruned model's
projections into the residual stream read, and of what they would have to add for its stream to be
the source model's.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from effcompress.errors import RunError
from effcompress.measure.blockwise import Block, blockwise
from effcompress.measure.hooks import addition, first_of, stream_in
from effcompress.types import AxisMap

PARTS = ("attention_block", "mlp_block")
"""The blocks of a layer, in the order in which they add to the stream."""


@dataclass(frozen=True)
class Moments:
    """Means over tokens, in fp64: of a linear layer's inputs (``gram`` ``[I, I]``, ``mean``
    ``[I]``) and of the outputs that it should have (``cross`` ``[O, I]``, ``target_mean`` ``[O]``).
    """

    gram: Tensor
    cross: Tensor
    mean: Tensor
    target_mean: Tensor


Refit = Callable[[str, Moments], None]
"""Gets the name of a weight and its moments; changes the weight."""


@torch.no_grad()
def follow(
    large: nn.Module,
    small: nn.Module,
    axes: AxisMap,
    parent: AxisMap,
    ids_NT: Tensor,
    channels: Tensor | None,
    refit: Refit,
    positions_NT: Tensor | None = None,
) -> Iterator[str]:
    """Calls ``refit`` for every projection into the small model's stream, front to back, with the
    moments of what it reads in the model as it is by then. Yields the path of every layer that is
    done.

    ``axes`` is the small model's map, ``parent`` the large one's; ``channels`` are the large one's
    hidden channels that the small one has (None: all). Where layers are gone, the layer in front of
    the gap gets the stream behind the gap as its goal. Raises RunError where a norm lies between a
    projection and the stream.
    """
    family = axes.family
    if family.traced or not family.sublayers:
        raise RunError("the parts of a block are not known here", where=family.name)
    behind = blockwise(large, family.layer, ids_NT, positions_NT)
    ahead = blockwise(small, family.layer, ids_NT, positions_NT)
    kept = [parent.depth.layers.index(i) for i in axes.depth.layers]
    for _ in range(kept[0]):
        next(behind)
    for j, block in enumerate(ahead):
        until = kept[j + 1] if j + 1 < len(kept) else len(parent.depth.layers)
        goals = _goals(large, axes, behind, until - kept[j], channels)
        there = [p for p in PARTS if f"{p}.{axes.depth.layers[j]}" not in axes.depth.absent]
        for part in there:
            param = _writer(small, axes, block, part)
            if param is None:
                continue
            last = part == there[-1]
            goal = goals["mlp_block" if last else part]
            refit(param, _moments(small, axes, block, part, param, goal))
        yield block.path


def _goals(
    large: nn.Module, axes: AxisMap, behind: Iterator[Block], blocks: int, channels: Tensor | None
) -> dict[str, list[Tensor]]:
    """The large model's stream behind the attention of its next block, and behind the last of its
    next ``blocks``, for every sequence.
    """
    found: dict[str, list[Tensor]] = {}
    for k in range(blocks):
        block = next(behind)
        if 0 < k < blocks - 1:
            continue
        with _stream(large, axes, block) as seen:
            block.run()
        for part in PARTS if k == 0 else PARTS[1:]:
            here = seen[part]
            found[part] = here if channels is None else [x[..., channels] for x in here]
    return found


@contextmanager
def _stream(module: nn.Module, axes: AxisMap, block: Block) -> Iterator[dict[str, list[Tensor]]]:
    """The stream ``before`` a block, behind its attention (``attention_block``) and behind the
    whole of it (``mlp_block``), sequence by sequence.
    """
    layer = module.get_submodule(block.path)
    seen: dict[str, list[Tensor]] = {name: [] for name in ("before", *PARTS)}
    added: dict[str, Tensor] = {}

    attention = axes.family.sublayers["attention_block"]

    def remember(path: str, _module: nn.Module, args: Any, out: Any) -> None:
        added["attention"] = axes.residual_scale * addition(attention, path, args, out)

    def compare(_module: nn.Module, args: Any, named: Mapping[str, Any], out: Any) -> None:
        before = stream_in(args, named)
        more = added.pop("attention", None)
        middle = before if more is None else before + more.reshape(before.shape)
        for name, x in zip(seen, (before, middle, first_of(out)), strict=True):
            seen[name].append(x[0])

    with ExitStack() as hooks:
        hooks.enter_context(layer.register_forward_hook(compare, with_kwargs=True))
        # Of these modules the one that runs last counts.
        for path in attention.within(layer):
            inside = layer.get_submodule(path)
            hooks.enter_context(inside.register_forward_hook(partial(remember, path)))
        yield seen


def _writer(module: nn.Module, axes: AxisMap, block: Block, part: str) -> str | None:
    """The weight by which a part of a block adds to the stream; None where experts do."""
    layer, sublayer = module.get_submodule(block.path), axes.family.sublayers[part]
    there = [path for path in sublayer.within(layer) if path not in sublayer.through]
    inside = tuple(f"{block.path}.{path}." for path in there)
    sides = [side for side in axes.by_axis["hidden"] if side.param.startswith(inside)]
    if any(len(axes.shapes[side.param]) > 2 for side in sides):
        return None
    found = [
        side.param
        for side in sides
        if side.param in block.linears and side.dim == 1 - block.linears[side.param]
    ]
    if not found:
        return None
    if len(found) > 1 or not _runs_last(module, axes, block, part):
        raise RunError(
            "what this part adds to the stream is not the output of one linear layer",
            where=f"{block.path}.{there[0]}",
            fix="Take prune.refit out.",
        )
    return found[0]


def _runs_last(module: nn.Module, axes: AxisMap, block: Block, part: str) -> bool:
    """Whether the part itself runs last of its modules: no norm behind it."""
    layer, sublayer = module.get_submodule(block.path), axes.family.sublayers[part]
    order: list[str] = []
    with ExitStack() as hooks:
        for path in sublayer.within(layer):
            inside = layer.get_submodule(path)
            note = inside.register_forward_hook(lambda *_, p=path: order.append(p))
            hooks.enter_context(note)
        block.once()
    return order[-1] in sublayer.silenced


def _moments(
    module: nn.Module, axes: AxisMap, block: Block, part: str, param: str, goal: list[Tensor]
) -> Moments:
    """One pass of all sequences through a block, as it is now."""
    linear = module.get_submodule(param.removesuffix(".weight"))
    read: list[Tensor] = []
    bias = getattr(linear, "bias", None)
    sums: list[Tensor] = []
    with (
        linear.register_forward_pre_hook(lambda _m, args: read.append(args[0])),
        _stream(module, axes, block) as seen,
    ):
        block.run()
    from_ = seen["before"] if part == "attention_block" else seen["attention_block"]
    tokens = 0
    for x, here, there in zip(read, from_, goal, strict=True):
        x_TI = x.reshape(-1, x.shape[-1]).double()
        more_TO = (there.double() - here.double()) / axes.residual_scale
        if bias is not None:
            more_TO = more_TO - bias.detach().double()
        parts = [x_TI.T @ x_TI, more_TO.T @ x_TI, x_TI.sum(0), more_TO.sum(0)]
        sums = [a + b for a, b in zip(sums, parts, strict=True)] if sums else parts
        tokens += len(x_TI)
    return Moments(*(value / tokens for value in sums))

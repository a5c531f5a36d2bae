"""Runs source and pruned model side by side, layer by layer: moments of what the pruned model's
projections into the residual stream read, and of what they would have to add for its stream to be
the source model's. Sequence by sequence; beside the moments of one projection, memory holds the
streams of both models.
"""

from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, final

import torch
from torch import Tensor, nn

from effcompress.distributed.world import ALONE, World
from effcompress.errors import RunError
from effcompress.measure.blockwise import Block, blockwise
from effcompress.measure.hooks import addition, stream_in
from effcompress.measure.moments import Parts, Sums
from effcompress.types import AxisMap

PARTS = ("attention_block", "mlp_block")
"""The blocks of a layer, in the order in which they add to the stream."""

Refit = Callable[[str, Parts], None]
"""Gets the name of a weight and its moments; changes the weight."""


@dataclass(frozen=True)
class Split:
    """``held_out``: the numbers of the sequences of this process whose moments are kept apart; None
    where none are on any process. ``world``: processes that read other sequences.
    """

    held_out: Collection[int] | None = None
    world: World = ALONE


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
    split: Split = Split(),
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
        there = [p for p in PARTS if f"{p}.{axes.depth.layers[j]}" not in axes.depth.absent]
        fits = [_Fit(small, axes, block, part, channels, split) for part in there]
        first = next(behind)
        # Of two parts, the first one's goal lies within the layer, so it exists only now.
        within = fits[0] if len(fits) == 2 and fits[0].param is not None else None
        with _stream(large, axes, first) as seen:
            for n in first.advancing():
                if within is not None:
                    within.add(n, seen["attention_block"])
        if within is not None:
            within.end(refit)
        for _ in range(1, until - kept[j]):
            first = next(behind)
            first.advance()
        if fits and fits[-1].param is not None:
            for n, there_1TD in enumerate(first.inputs):
                fits[-1].add(n, there_1TD[0])
            fits[-1].end(refit)
        yield block.path


@final
class _Fit:
    """Moments of the projection of one part of a block, if it has one (``param``)."""

    def __init__(
        self,
        module: nn.Module,
        axes: AxisMap,
        block: Block,
        part: str,
        channels: Tensor | None,
        split: Split,
    ) -> None:
        self.param = _writer(module, axes, block, part)
        self._module, self._axes, self._block = module, axes, block
        self._part, self._channels, self._split = part, channels, split
        self._sums: Sums | None = None

    def add(self, n: int, goal_TD: Tensor) -> None:
        """Runs a sequence through the block as it is now, as far as its projection; adds what that
        reads, and what is lacking there to ``goal_TD``, the large model's stream.
        """
        assert self.param is not None
        linear = self._module.get_submodule(self.param.removesuffix(".weight"))
        read: list[Tensor] = []

        def keep(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
            read.append(args[0])
            if self._part == "attention_block":  # nothing behind it is needed
                raise _Read

        with (
            linear.register_forward_pre_hook(keep),
            _stream(self._module, self._axes, self._block) as seen,
            suppress(_Read),
        ):
            self._block.once(n)
        here_TD = seen["before" if self._part == "attention_block" else "attention_block"]
        there_TD = goal_TD if self._channels is None else goal_TD[..., self._channels]
        more_TO = (there_TD.double() - here_TD.double()) / self._axes.residual_scale
        if (bias := getattr(linear, "bias", None)) is not None:
            more_TO = more_TO - bias.detach().double()
        x_TI, held = read[-1].reshape(-1, read[-1].shape[-1]), self._split.held_out
        if self._sums is None:
            of = more_TO.shape[-1], x_TI.shape[-1], x_TI.device
            self._sums = Sums(*of, split=held is not None)
        self._sums.add(x_TI, more_TO, held=held is not None and n in held)

    def end(self, refit: Refit) -> None:
        """Hands the moments on, and forgets them."""
        assert self.param is not None and self._sums is not None
        refit(self.param, self._sums.means(self._split.world))
        self._sums = None


class _Read(Exception):
    """Ends a pass through a layer behind the projection of its attention."""


@contextmanager
def _stream(module: nn.Module, axes: AxisMap, block: Block) -> Iterator[dict[str, Tensor]]:
    """The stream ``before`` a block, behind its attention (``attention_block``) and behind the
    whole of it (``mlp_block``), ``[T, D]`` of the sequence that went through it last.
    """
    layer = module.get_submodule(block.path)
    seen: dict[str, Tensor] = {}
    attention = axes.family.sublayers["attention_block"]

    def before(_module: nn.Module, args: Any, named: dict[str, Any]) -> None:
        seen["before"] = seen["attention_block"] = stream_in(args, named)[0]

    def remember(path: str, _module: nn.Module, args: Any, out: Any) -> None:
        # Of these modules the one that runs last counts.
        more = axes.residual_scale * addition(attention, path, args, out)
        seen["attention_block"] = seen["before"] + more.reshape(seen["before"].shape)

    with ExitStack() as hooks:
        hooks.enter_context(layer.register_forward_pre_hook(before, with_kwargs=True))
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

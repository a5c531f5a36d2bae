"""Runs source and pruned model side by side, layer by layer: moments of what the pruned model's
projections into the residual stream read, and of what they would have to add for its stream to be
the source model's. Sequence by sequence; beside the moments of one projection, memory holds the
streams of both models and what the projections of one layer read.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, final

import torch
from torch import Tensor, nn

from effcompress.distributed.repeated import by_all
from effcompress.distributed.rows import own
from effcompress.distributed.world import ALONE, World
from effcompress.errors import RunError
from effcompress.measure.blockwise import Block, blockwise
from effcompress.measure.hooks import addition, first_of, instead, stream_in
from effcompress.measure.moments import Parts, Sums
from effcompress.precision import Precision
from effcompress.types import AxisMap, Sublayer

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
    precision: Precision = "fp32",
) -> Iterator[str]:
    """Calls ``refit`` for every projection into the small model's stream, front to back, with the
    moments of what it reads in the model as it is by then. Yields the path of every layer that is
    done.

    ``axes`` is the small model's map, ``parent`` the large one's; ``channels`` are the large one's
    hidden channels that the small one has (None: all). Where layers are gone, the layer in front of
    the gap gets the stream behind the gap as its goal. ``precision``: of the passes; moments are in
    fp32 or more. Raises RunError where a norm lies between a
    projection and the stream.
    """
    family = axes.family
    if family.traced or not family.sublayers:
        raise RunError("the parts of a block are not known here", where=family.name)
    text = ids_NT, positions_NT, split.world, precision
    behind = blockwise(large, family.layer, *text)
    ahead = blockwise(small, family.layer, *text)
    kept = [parent.depth.layers.index(i) for i in axes.depth.layers]
    forms: Forms = {}
    for _ in range(kept[0]):
        next(behind)
    ends = [*kept[1:], len(parent.depth.layers)]
    for block, number, end in zip(ahead, kept, ends, strict=True):
        again = _Again(small, block)
        fits = _fits(small, axes, block, channels, split, forms, again)
        first = next(behind)
        _run(large, axes, first, fits[0] if len(fits) == 2 else None, refit)
        for _ in range(1, end - number):
            first = next(behind)
            first.advance()
        if fits and fits[-1].param is not None:
            for n, there_1TD in enumerate(first.inputs):
                fits[-1].add(n, there_1TD[0])
            fits[-1].end(refit)
        if number != kept[-1]:
            block.advance(again.replaying)
        yield block.path


def _run(large: nn.Module, axes: AxisMap, block: Block, within: _Fit | None, refit: Refit) -> None:
    """Runs the large model's layer. Of two parts, the goal of the first one (``within``) lies
    inside the layer, so it exists only now.
    """
    fitting = within is not None and within.param is not None
    with _stream(large, axes, block) as seen:
        for n in block.advancing():
            if within is not None and fitting:
                within.add(n, seen["attention_block"])
    if within is not None and fitting:
        within.end(refit)


def _fits(
    module: nn.Module,
    axes: AxisMap,
    block: Block,
    channels: Tensor | None,
    split: Split,
    forms: Forms,
    again: _Again,
) -> list[_Fit]:
    """Returns the fits of the parts that a block still has."""
    number = axes.depth.layers[block.number]
    there = [part for part in PARTS if f"{part}.{number}" not in axes.depth.absent]
    writers = {part: _writer(module, axes, block, part) for part in there}
    with by_all(split.world):  # one pass of one sequence, on each rank
        form = _form(module, axes, block, writers, forms)
    of = channels, split, again
    return [
        _Fit(module, axes, block, part, param, form.get(part), *of)
        for part, param in writers.items()
    ]


@dataclass(frozen=True)
class _Form:
    """How a part of a layer adds to the stream. ``ready``: whether the stream behind the attention
    is known once its projection reads. ``alone``: the path of the one module whose output is the
    projection's (None: there is none), which returns ``values`` values (0: a tensor, no tuple).
    """

    ready: bool
    alone: str | None = None
    values: int = 0


Forms = dict[tuple[tuple[str, type], ...], dict[str, _Form]]
"""Paths and classes of the modules of a layer -> the form of its parts that have a projection."""


@final
class _Again:
    """What the projections of a layer read, sequence by sequence, so that no part in front of them
    has to be run a second time: a module whose output is the projection's returns that at once.
    """

    def __init__(self, module: nn.Module, block: Block) -> None:
        self._layer = module.get_submodule(block.path)
        self._limit = sum(own(p).nbytes for p in module.parameters())
        self._count = len(block.inputs)
        self._parts: list[tuple[_Form, Callable[[Tensor], Tensor], dict[int, Tensor]]] = []

    def keeps(self, form: _Form, linear: nn.Module, x: Tensor) -> dict[int, Tensor] | None:
        """Returns where to put what a projection reads; None where its part cannot be replaced, or
        all sequences would take more memory than the weights of the model that this process has.
        """
        if form.alone is None or self._count * x.numel() * x.element_size() > self._limit:
            return None
        self._parts.append((form, linear.forward, {}))
        return self._parts[-1][-1]

    @contextmanager
    def replaying(self, n: int) -> Iterator[None]:
        """Inside, the parts that are kept return what they return for sequence ``n``."""
        with ExitStack() as stack:
            for form, project, read in self._parts:
                if n in read:
                    assert form.alone is not None
                    forward = partial(self._forward, form, project, read[n])
                    stack.enter_context(instead(self._layer.get_submodule(form.alone), forward))
            yield

    @staticmethod
    def _forward(
        form: _Form, project: Callable[[Tensor], Tensor], x: Tensor, *_args: Any, **_named: Any
    ) -> Any:
        out = project(x)
        return (out, *[None] * (form.values - 1)) if form.values else out


@final
class _Fit:
    """Moments of the projection of one part of a block, if it has one (``param``)."""

    def __init__(
        self,
        module: nn.Module,
        axes: AxisMap,
        block: Block,
        part: str,
        param: str | None,
        form: _Form | None,
        channels: Tensor | None,
        split: Split,
        again: _Again,
    ) -> None:
        self.param = param
        self._module, self._axes, self._block = module, axes, block
        self._part, self._form = part, form or _Form(ready=False)
        self._channels, self._split = channels, split
        self._sums: Sums | None = None
        self._again = again
        self._kept: dict[int, Tensor] | None = None

    def add(self, n: int, goal_TD: Tensor) -> None:
        """Runs a sequence through the block as it is now, as far as its projection; adds what that
        reads, and what is lacking there to ``goal_TD``, the large model's stream.
        """
        assert self.param is not None
        linear = self._module.get_submodule(self.param.removesuffix(".weight"))
        read: list[Tensor] = []

        def keep(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
            read.append(args[0])
            if self._form.ready:  # nothing behind it is needed
                raise _Read

        with (
            linear.register_forward_pre_hook(keep),
            _stream(self._module, self._axes, self._block) as seen,
            suppress(_Read),
            self._again.replaying(n),
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
            self._kept = self._again.keeps(self._form, linear, read[-1])
        if self._kept is not None:
            self._kept[n] = read[-1]
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
    if len(found) > 1:
        raise _no_writer(f"{block.path}.{there[0]}")
    return found[0] if found else None


def _no_writer(where: str) -> RunError:
    return RunError(
        "what this part adds to the stream is not the output of one linear layer",
        where=where,
        fix="Take prune.refit out.",
    )


def _form(
    module: nn.Module,
    axes: AxisMap,
    block: Block,
    writers: Mapping[str, str | None],
    forms: Forms,
) -> dict[str, _Form]:
    """How the parts of a layer add to the stream, seen in one pass of one sequence through the
    first layer of its kind. Raises RunError where a norm lies behind a projection.
    """
    layer = module.get_submodule(block.path)
    kind = tuple((path, type(each)) for path, each in layer.named_modules())
    kind += tuple((part, type(param)) for part, param in writers.items())
    if kind not in forms:
        parts = {part: axes.family.sublayers[part] for part in writers}
        seen = _Order(module, layer, parts, writers)
        with seen.hooks:
            block.once()
        found = {part: seen.form(part) for part in parts if writers[part] is not None}
        if None in found.values():
            (part, *_) = [part for part, form in found.items() if form is None]
            raise _no_writer(f"{block.path}.{seen.own(part)[0]}")
        forms[kind] = {part: form for part, form in found.items() if form is not None}
    return forms[kind]


@final
class _Order:
    """In which order the modules of a layer's parts run, and which of them return what the
    projection of their part does, in a pass under ``hooks``.
    """

    def __init__(
        self,
        module: nn.Module,
        layer: nn.Module,
        parts: Mapping[str, Sublayer],
        writers: Mapping[str, str | None],
    ) -> None:
        self._parts = parts
        self._order: list[tuple[str, str]] = []
        """Part and path of modules that have run; no path: its projection reads."""
        self._written: dict[str, Tensor] = {}
        self._alone: dict[tuple[str, str], int] = {}
        """Part and path of modules that return what its projection does -> how many values."""
        self.hooks = ExitStack()
        for part, sublayer in parts.items():
            if (param := writers[part]) is not None:
                linear = module.get_submodule(param.removesuffix(".weight"))
                reads, wrote = partial(self._reads, part), partial(self._wrote, part)
                self.hooks.enter_context(linear.register_forward_pre_hook(reads))
                self.hooks.enter_context(linear.register_forward_hook(wrote))
            for path in sublayer.within(layer):
                ran, inside = partial(self._ran, part, path), layer.get_submodule(path)
                self.hooks.enter_context(inside.register_forward_hook(ran))

    def own(self, part: str) -> list[str]:
        """Returns the modules of a part in the order in which they ran."""
        return [path for of, path in self._order if of == part and path]

    def form(self, part: str) -> _Form | None:
        """Returns how a part adds to the stream; None where a norm runs behind the projection."""
        own, silenced = self.own(part), self._parts[part].silenced
        if own[-1] not in silenced:
            return None
        behind = self._order[self._order.index((part, "")) :]
        ready = part == PARTS[0] or all(of != PARTS[0] for of, path in behind if path)
        sole = [path for path in own if path in silenced]
        values = self._alone.get((part, sole[0])) if len(sole) == 1 else None
        return _Form(ready) if values is None else _Form(ready, sole[0], values)

    def _reads(self, part: str, *_: Any) -> None:
        self._order.append((part, ""))

    def _wrote(self, part: str, _module: nn.Module, _args: Any, out: Tensor) -> None:
        self._written[part] = out.clone()  # some classes add to it in place

    def _ran(self, part: str, path: str, _module: nn.Module, _args: Any, out: Any) -> None:
        self._order.append((part, path))
        if part in self._written and torch.equal(first_of(out), self._written[part]):
            self._alone[part, path] = len(out) if isinstance(out, tuple) else 0

"""Runs all calibration sequences through one layer of the model after another. Each layer reads the
output of the layers in front of it as they are by then, with the changes made so far. Memory beside
the model: one residual stream per sequence, and what the caller keeps of one layer.

    for block in blockwise(module, family.layer, ids_NT):
        grams = Grams(module, block.linears, tokens, 1.0)
        with grams.listening():
            block.run()
        ...  # change the block's weights
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from effcompress.distributed.gather import gathered, gathered_in_turn
from effcompress.distributed.repeated import by_all
from effcompress.distributed.world import ALONE, World
from effcompress.errors import RunError
from effcompress.isolation import placed
from effcompress.measure.hooks import first_of, instead, linears, stream_in
from effcompress.precision import Precision, autocast


@dataclass(frozen=True)
class Layer:
    """A layer of the model: its number and path now, the weights of its linear layers (name -> the
    dimension that inputs run along), and its other weights of two or more dimensions (experts,
    routers), which have no single input.
    """

    number: int
    path: str
    linears: Mapping[str, int]
    others: tuple[str, ...]


def layers_of(module: nn.Module, pattern: str) -> list[Layer]:
    """Returns all layers in order. ``pattern`` is their path, with ``{i}`` for the number."""
    container = module.get_submodule(pattern.partition(".{i}")[0])
    found = []
    for number in range(len(list(container.children()))):
        path = pattern.replace("{i}", str(number))
        block = module.get_submodule(path)
        own = {f"{path}.{name}": dim for name, dim in linears(block).items()}
        named = [(f"{path}.{name}", p) for name, p in block.named_parameters()]
        others = tuple(name for name, p in named if p.dim() > 1 and name not in own)
        found.append(Layer(number, path, own, others))
    return found


Around = Callable[[int], AbstractContextManager[Any]]
"""Number of a sequence -> a context in which it runs."""


@final
class Block:
    """The layer whose turn it is, with its inputs for every sequence."""

    def __init__(
        self, layer: Layer, module: nn.Module, calls: list[_Call], inputs: list[Tensor]
    ) -> None:
        self.number, self.path, self.linears = layer.number, layer.path, layer.linears
        self._module, self._calls, self._inputs = module, calls, inputs
        self.handed_on = False

    @property
    def inputs(self) -> list[Tensor]:
        """The residual stream in front of it, ``[1, T, D]`` for every sequence."""
        return [*self._inputs]

    def arguments(self, names: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Yields for every sequence what the layer is called with beside the stream, by name;
        ``names``: those of its positional arguments.
        """
        for call in self._calls:
            yield {**dict(zip(names, call.args, strict=False)), **call.named}

    @torch.no_grad()
    def run(self) -> None:
        """Runs all sequences through it as it is now; hooks measure."""
        for call, x_1TD in zip(self._calls, self._inputs, strict=True):
            call(self._module, x_1TD)

    @torch.no_grad()
    def once(self, number: int = 0) -> None:
        """Runs one sequence through it, the first or another."""
        self._calls[number](self._module, self._inputs[number])

    @torch.no_grad()
    def readers(self) -> list[list[str]]:
        """Returns its linear layers in the order of computation, grouped by the tensor that they
        read (q, k and v; o; gate and up; down).
        """
        seen: dict[int, tuple[Tensor, list[str]]] = {}
        """Id of a tensor -> the tensor, kept so that no other gets its id, and who reads it."""

        def listen(param: str, _module: nn.Module, args: tuple[Tensor, ...]) -> None:
            seen.setdefault(id(args[0]), (args[0], []))[1].append(param)

        with ExitStack() as hooks:
            for param in self.linears:
                path = param.removeprefix(f"{self.path}.").removesuffix(".weight")
                linear = self._module.get_submodule(path)
                hooks.enter_context(linear.register_forward_pre_hook(partial(listen, param)))
            self.once()
        return [params for _, params in seen.values()]

    def hand_on(self, streams: Sequence[Tensor]) -> None:
        """Replaces its inputs, by the outputs that the next layer reads or by others."""
        self._inputs[:] = streams
        self.handed_on = True

    @torch.no_grad()
    def advance(self, around: Around = nullcontext) -> None:
        """Replaces its inputs by its outputs; each sequence runs inside ``around`` its number."""
        for _ in self.advancing(around):
            pass

    def advancing(self, around: Around = nullcontext) -> Iterator[int]:
        """Replaces its inputs by its outputs, sequence by sequence; yields the number of each one
        that is done. The next layer then reads these.
        """
        for n, call in enumerate(self._calls):
            with torch.no_grad(), around(n):
                self._inputs[n] = call(self._module, self._inputs[n])
            yield n
        self.handed_on = True


def blockwise(
    module: nn.Module,
    pattern: str,
    ids_NT: Tensor,
    positions_NT: Tensor | None = None,
    world: World = ALONE,
    precision: Precision = "fp32",
) -> Iterator[Block]:
    """Yields every layer in its turn. When the next is asked for, this one, as it then is, computes
    the next one's inputs, unless it was given them (``hand_on``). ``ids_NT``: sequences of one
    length, without padding; ``positions_NT``: those of the tokens in isolated documents, which give
    every sequence masks of its own. ``precision``: of the passes.

    Every layer is called as the model itself calls it: its arguments beside the residual stream
    (masks, which differ between the layers of some families, rotations, positions) are recorded in
    a pass of the model. Raises RunError if they depend on the text, or if a layer does not
    read exactly the output of the one before it: such a model cannot be run layer by layer.

    Of a sharded model (not of its FSDP2 wrapper), a layer is gathered while it has its turn, and
    changed weights are sharded again behind it. All ranks iterate alike; those of ``world`` read
    other sequences, each at least one.
    """
    layers = layers_of(module, pattern)
    container = module.get_submodule(pattern.partition(".{i}")[0])
    training = module.training
    module.eval()  # dropout would make every pass another one
    try:
        with gathered(module, apart=container):
            by_layer, inputs = _caught(module, layers, ids_NT, positions_NT, world, precision)
        for layer, calls in zip(layers, by_layer, strict=True):
            part = module.get_submodule(layer.path)
            with gathered(part):
                block = Block(layer, part, calls, inputs)
                yield block
                if layer is not layers[-1] and not block.handed_on:
                    block.advance()
    finally:
        module.train(training)


@dataclass(frozen=True)
class _Call:
    """The arguments of a layer beside the residual stream."""

    args: tuple[Any, ...]
    named: Mapping[str, Any]
    precision: Precision

    def __call__(self, block: nn.Module, x_1TD: Tensor) -> Tensor:
        """Returns the residual stream behind the layer."""
        # For each pass anew: between two of them the layer's weights may change, and its casts
        # with them.
        with autocast(x_1TD.device, self.precision):
            return first_of(block(x_1TD, *self.args, **self.named))


PROBE = 32
"""Tokens of the passes that only show how layers are called."""


class _Seen(Exception):
    """Ends a forward pass after the last layer that is needed."""


@torch.no_grad()
def _caught(
    module: nn.Module,
    layers: list[Layer],
    ids_NT: Tensor,
    positions_NT: Tensor | None,
    world: World,
    precision: Precision,
) -> tuple[list[list[_Call]], list[Tensor]]:
    """Returns the arguments of each layer for every sequence, and the first one's input,
    ``[1, T, D]``.

    A few tokens go through the layers themselves, to see that arguments do not depend on the text
    and that each layer reads what the one before it returns. Then nothing between the layers
    depends on what they compute, so that arguments are recorded in passes in which every layer
    returns its input: of one sequence for all, or, with positions, of every sequence. Of a sharded
    model, layers are gathered for the few tokens alone, so that ranks may have different numbers of
    sequences.
    """
    device = next(module.parameters()).device
    some_1T = ids_NT[:1, :PROBE].to(device)
    run = partial(_pass, module, precision)
    blocks = [module.get_submodule(layer.path) for layer in layers]
    with gathered_in_turn(blocks), by_all(world):
        one, other = (run(layers, ids_1T, {}) for ids_1T in (some_1T, some_1T.flip(1)))
    _require_same(layers, one.calls, other.calls)
    passes: list[_Pass] = []
    with _passing_on(blocks, one.returned):
        for n, ids_T in enumerate(ids_NT):
            at_1T = None if positions_NT is None else positions_NT[n : n + 1]
            through = layers if at_1T is not None or n == 0 else layers[:1]
            passes.append(run(through, ids_T[None].to(device), placed(module, at_1T)))
    if positions_NT is None:
        for each in passes:
            _require_same(layers[:1], passes[0].calls, each.calls)
    calls = [passes[0 if positions_NT is None else n].calls for n in range(len(passes))]
    return [list(own) for own in zip(*calls, strict=True)], [each.stream for each in passes]


@dataclass(frozen=True)
class _Pass:
    """What a forward pass shows of some layers: their arguments, the first one's input, and how
    many values each returns (0: a tensor, no tuple).
    """

    calls: list[_Call]
    stream: Tensor
    returned: list[int]


def _pass(
    module: nn.Module,
    precision: Precision,
    layers: list[Layer],
    ids_1T: Tensor,
    how: Mapping[str, Any],
) -> _Pass:
    """Runs one forward pass up to the last of ``layers``."""
    calls: list[_Call] = []
    stream: list[Tensor] = []
    returned: list[int] = []

    def before(_block: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        x, layer = stream_in(args, named), layers[len(calls)]
        if stream and not (x is stream[-1] or torch.equal(x, stream[-1])):
            raise RunError(
                "this layer does not read the output of the one before it; such a model cannot be "
                "run layer by layer",
                where=layer.path,
            )
        others = {name: value for name, value in named.items() if args or name != "hidden_states"}
        calls.append(_Call(args[1:], others, precision))
        if not stream:
            stream.append(x)
        if len(layers) == 1:
            raise _Seen

    def after(_block: nn.Module, _args: Any, out: Any) -> None:
        stream[1:] = [first_of(out)]
        returned.append(len(out) if isinstance(out, tuple) else 0)
        if len(calls) == len(layers):
            raise _Seen

    with ExitStack() as hooks:
        for layer in layers:
            block = module.get_submodule(layer.path)
            hooks.enter_context(block.register_forward_pre_hook(before, with_kwargs=True))
            hooks.enter_context(block.register_forward_hook(after))
        hooks.enter_context(autocast(ids_1T.device, precision))
        try:
            module(input_ids=ids_1T, use_cache=False, **how)
        except _Seen:
            return _Pass(calls, stream[0], returned)
    raise RunError("the model did not run all of its layers", where=layers[-1].path)


@contextmanager
def _passing_on(blocks: Sequence[nn.Module], returned: Sequence[int]) -> Iterator[None]:
    """Lets layers return what they read, in the form of ``returned``, without computing."""

    def forward(values: int, *args: Any, **named: Any) -> Any:
        x = stream_in(args, named)
        return (x, *[None] * (values - 1)) if values else x

    with ExitStack() as stack:
        for block, values in zip(blocks, returned, strict=False):
            stack.enter_context(instead(block, partial(forward, values)))
        yield


def _require_same(layers: Sequence[Layer], one: list[_Call], other: list[_Call]) -> None:
    """Raises RunError where two texts give a layer other arguments."""
    for layer, a, b in zip(layers, one, other, strict=False):
        if not _same((a.args, a.named), (b.args, b.named)):
            raise RunError(
                "this layer gets an argument that depends on the text, besides the residual "
                "stream; such a model cannot be run layer by layer",
                where=layer.path,
            )


def _same(one: Any, other: Any) -> bool:
    (leaves, form), (others, other_form) = tree_flatten(one), tree_flatten(other)
    return form == other_form and all(
        torch.equal(a, b) if isinstance(a, Tensor) and isinstance(b, Tensor) else bool(a == b)
        for a, b in zip(leaves, others, strict=True)
    )

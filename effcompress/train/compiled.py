"""Layers as compiled code while they are trained (``torch.compile``): the only door to it.

Layers differ in their sizes, and sizes change at every commit. So graphs are made for sizes that
are not known yet, those of weights among them: one serves layers of all widths, before and after a
cut.
Whatever saw a weight while a graph was made refers to it from then on, and nothing may refer to a
tensor that is shortened. So compiled code gets stand-ins: other tensors of the same memory.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.func import functional_call

from effcompress.recompute import recomputed

GRAPHS = 64
"""Compiled of one model; layers that fit none of them run uncompiled."""
_ATTEMPTS = 256
"""Where torch itself gives up on a class of layers, for all models of a process."""


@final
class CompiledLayers:
    """Compiled forward passes of a model's layers, and of their backward."""

    def __init__(self, cache: Path) -> None:
        """What was compiled is kept in the folder ``cache`` for other processes."""
        self._cache = cache
        self.graphs = 0
        """Made so far, and those that were one too many."""
        self._forwards: list[tuple[nn.Module, Callable[..., Any]]] = []

    @contextmanager
    def running(self, layers: Sequence[nn.Module]) -> Iterator[None]:
        """In here, these layers run as compiled code; outside they are as they were."""
        if [layer for layer, _ in self._forwards] != [*layers]:
            os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(self._cache))
            # Asked of stand-ins while a graph is made; nobody reads it.
            warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor that is not")
            self._forwards = [(layer, self._forward(layer)) for layer in layers]
        with ExitStack() as stack:
            for changed in _any_size():
                stack.enter_context(changed)
            for layer, forward in self._forwards:
                stack.enter_context(_instead(layer, forward))
            yield

    def forget(self) -> None:
        """Hold on to no layer; what is compiled serves those that come."""
        self._forwards = []

    def _forward(self, layer: nn.Module) -> Callable[..., Any]:
        compiled = torch.compile(layer.forward, backend=self._made, dynamic=True)
        holder = _Holder(layer, compiled)

        def forward(*args: Any, **kwargs: Any) -> Any:
            stand_ins = {name: _Same.apply(p) for name, p in holder.named_parameters()}
            return functional_call(holder, stand_ins, args, kwargs)

        return forward

    def _made(self, graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        from torch._dynamo import lookup_backend

        made = graph.forward
        if self.graphs < GRAPHS:
            made = lookup_backend("inductor")(graph, inputs)
        self.graphs += 1  # what torch gave up and began anew does not count
        return made


class _Holder(nn.Module):
    """A layer whose forward is another one."""

    def __init__(self, layer: nn.Module, forward: Callable[..., Any]) -> None:
        super().__init__()
        self.layer, self._run = layer, forward

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._run(*args, **kwargs)


class _Same(torch.autograd.Function):
    """The same memory as another tensor. A view will not do: it refers to what it is a view of."""

    @staticmethod
    def forward(ctx: Any, p: Tensor) -> Tensor:
        return p.data

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


@contextmanager
def _instead(layer: Any, forward: Callable[..., Any]) -> Iterator[None]:
    """``forward`` in place of the layer's own. Recomputing is on the outside of compiled code."""
    again = getattr(layer, "gradient_checkpointing", False)
    if again:
        layer.gradient_checkpointing = False
        forward = recomputed(forward)
    layer.forward = forward
    try:
        yield
    finally:
        del layer.forward
        if again:
            layer.gradient_checkpointing = True


def _any_size() -> list[Any]:
    """Settings under which a graph assumes nothing of sizes, not even that two are equal."""
    from torch._dynamo import config
    from torch.fx.experimental import _config

    sizes: Any = _config

    return [
        config.patch(
            force_parameter_static_shapes=False,
            force_nn_module_property_static_shapes=False,
            recompile_limit=_ATTEMPTS,
        ),
        sizes.patch(use_duck_shape=False),
    ]

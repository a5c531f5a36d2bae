"""Runs layers as compiled code while they are trained (the only user of ``torch.compile``).

Layers differ in size, and sizes change at every commit. Dynamo would specialise each graph on them
and reach its recompile limit after a few cuts. So graphs are compiled with dynamic shapes, those of
weights included: one graph serves layers of all widths, before and after a cut.

Guards and graphs keep references to the weights that were seen while compiling, and
``swap_tensors`` refuses a tensor that has other references. So compiled code is given stand-ins:
other tensors of the same memory.
"""

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
"""Graphs compiled per model; layers that fit none of them run uncompiled."""
_ATTEMPTS = 256
"""Dynamo's recompile limit per code object, for all models of a process (default 8)."""


@final
class CompiledLayers:
    """Compiled forward and backward passes of a model's layers."""

    def __init__(self, cache: Path) -> None:
        """``cache`` is the folder of Inductor's cache, which later processes read."""
        self._cache = cache
        self.graphs = 0
        """Graphs requested so far, those beyond ``GRAPHS`` included."""
        self._forwards: list[tuple[nn.Module, Callable[..., Any]]] = []

    @contextmanager
    def running(self, layers: Sequence[nn.Module]) -> Iterator[None]:
        """Replaces the layers' forward by compiled code inside; restores it afterwards."""
        if [layer for layer, _ in self._forwards] != [*layers]:
            os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(self._cache))
            # Dynamo reads .grad of the stand-ins, which are no leaves. The value is not used.
            warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor that is not")
            self._forwards = [(layer, self._forward(layer)) for layer in layers]
        with _any_size(), ExitStack() as stack:
            for layer, forward in self._forwards:
                stack.enter_context(_instead(layer, forward))
            yield

    def forget(self) -> None:
        """Drops references to layers before a cut; compiled graphs are kept and used again."""
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
        # After compiling: an attempt that Dynamo restarts does not count.
        self.graphs += 1
        return made


class _Holder(nn.Module):
    """A module with a layer's parameters and another forward."""

    def __init__(self, layer: nn.Module, forward: Callable[..., Any]) -> None:
        super().__init__()
        self.layer, self._run = layer, forward

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._run(*args, **kwargs)


class _Same(torch.autograd.Function):
    """Returns another tensor of the same memory. A view would keep a reference to its base."""

    @staticmethod
    def forward(ctx: Any, p: Tensor) -> Tensor:
        return p.data

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


@contextmanager
def _instead(layer: Any, forward: Callable[..., Any]) -> Iterator[None]:
    """Puts ``forward`` in place of the layer's own. Checkpointing wraps the compiled code: inside,
    Dynamo would trace the context functions and break the graph.
    """
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


@contextmanager
def _any_size() -> Iterator[None]:
    """Inside, graphs assume nothing of sizes. Duck shaping, the default, would assume that two
    sizes that are equal now stay equal.
    """
    from torch._dynamo import config
    from torch.fx.experimental import _config

    sizes: Any = _config
    static = ("force_parameter_static_shapes", "force_nn_module_property_static_shapes")
    changed = {**dict.fromkeys(static, False), "recompile_limit": _ATTEMPTS}
    with config.patch(changed), sizes.patch(use_duck_shape=False):
        yield

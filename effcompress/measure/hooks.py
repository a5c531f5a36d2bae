"""Hooks on modules that can be switched on for some passes and removed for good: what all
measurements of forward passes share.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from effcompress.recompute import recomputing
from effcompress.types import Sublayer


def inputs_of(module: nn.Module) -> int | None:
    """The dimension of a linear layer's weight that its inputs run along; None for other layers."""
    if isinstance(module, nn.Linear):
        return 1
    return 0 if type(module).__name__ == "Conv1D" else None


def linears(module: nn.Module, inside: str = "") -> dict[str, int]:
    """Weights of the linear layers whose paths begin with ``inside`` -> the dimension of their
    inputs.
    """
    found = ((path, inputs_of(child)) for path, child in module.named_modules())
    return {f"{p}.weight": dim for p, dim in found if dim is not None and p.startswith(inside)}


def first_of(out: Any) -> Any:
    """The first of what a module returns; attention returns more than one value."""
    return out[0] if isinstance(out, tuple) else out


def addition(part: Sublayer, path: str, args: Any, out: Any) -> Tensor:
    """What a block adds to the stream, as its module ``path``, called with ``args``, returns it."""
    first = first_of(out)
    return first - args[1] if part.outputs < 0 and path == part.silent else first


def stream_in(args: Any, named: Mapping[str, Any]) -> Tensor:
    """What a layer reads of the residual stream."""
    return args[0] if args else named["hidden_states"]


@contextmanager
def instead(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Puts ``forward`` in place of the module's own; hooks stay."""
    before = vars(module).get("forward")
    vars(module)["forward"] = forward
    try:
        yield
    finally:
        del vars(module)["forward"]
        if before is not None:
            vars(module)["forward"] = before


class Hooks:
    """Handles of hooks, and whether they measure at the moment."""

    def __init__(self) -> None:
        self._handles: list[Any] = []
        self._on = False

    @property
    def measuring(self) -> bool:
        """Whether hooks take values in. A block that is recomputed in the backward (activation
        checkpointing) runs its hooks twice; only the first run counts.
        """
        return self._on and not recomputing()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Measures the passes that run inside."""
        self._on = True
        try:
            yield
        finally:
            self._on = False
            self._reset()

    def close(self) -> None:
        """Removes the hooks."""
        for handle in self._handles:
            handle.remove()

    def _reset(self) -> None:
        """Forgets what was kept for the pass that has ended."""


class InputHooks(Hooks):
    """Pre-hooks on linear layers. Layers that read the same tensor (q, k and v; gate and up) share
    one measurement, kept under the name of the first of them.
    """

    def __init__(
        self, module: nn.Module, params: Iterable[str], take: Callable[[str, Tensor], None]
    ) -> None:
        """``params``: names of weights. ``take(owner, x)`` gets every distinct input, detached."""
        super().__init__()
        self.owner: dict[str, str] = {}
        """Weight -> the weight under whose name its inputs are kept."""
        self._last: tuple[Tensor, str] | None = None
        self._take = take
        for param in params:
            linear = module.get_submodule(param.removesuffix(".weight"))
            self._handles.append(linear.register_forward_pre_hook(partial(self._read, param)))

    def _read(self, param: str, _module: nn.Module, args: tuple[Tensor, ...]) -> None:
        if not self.measuring:
            return
        x = args[0]
        # Identity, not equality: transformers hands q, k and v the very same tensor object.
        if self._last is not None and self._last[0] is x:
            self.owner[param] = self._last[1]
            return
        self._last = (x, param)
        self.owner[param] = param
        self._take(param, x.detach())

    def _reset(self) -> None:
        self._last = None

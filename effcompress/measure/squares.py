"""Mean squares of what linear layers read: the diagonal of ``grams.py``, where that is enough."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, final

import torch
from torch import Tensor, nn


@final
class Squares:
    """Running mean of ``x^2`` over all tokens, ``[I]`` in fp64 per distinct input. Layers that read
    the same tensor (q, k and v; gate and up) share one.
    """

    def __init__(self, module: nn.Module, params: Iterable[str]) -> None:
        self.owner: dict[str, str] = {}
        """Weight -> the weight under whose name its inputs are kept."""
        self._sums: dict[str, Tensor] = {}
        self._tokens: dict[str, int] = {}
        self._listening = False
        self._last: tuple[Tensor, str] | None = None
        self._hooks = [
            module.get_submodule(param.removesuffix(".weight")).register_forward_pre_hook(
                self._hook(param)
            )
            for param in params
        ]

    def close(self) -> None:
        """Stop listening for good."""
        for hook in self._hooks:
            hook.remove()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take in what the layers read."""
        self._listening = True
        try:
            yield
        finally:
            self._listening, self._last = False, None

    def read(self, param: str) -> Tensor | None:
        """``[I]`` in fp32; None before anything was read."""
        owner = self.owner.get(param)
        return None if owner is None else (self._sums[owner] / self._tokens[owner]).float()

    def _hook(self, param: str) -> Any:
        def hook(_module: nn.Module, args: tuple[Any, ...]) -> None:
            if self._listening:
                self._take(param, args[0])

        return hook

    @torch.no_grad()
    def _take(self, param: str, x: Tensor) -> None:
        # The object itself is compared: the library hands q, k and v the very same tensor.
        if self._last is not None and self._last[0] is x:
            self.owner[param] = self._last[1]
            return
        self._last = (x, param)
        self.owner[param] = param
        x_TI = x.detach().flatten(0, -2)
        squares_I = x_TI.float().square().sum(0, dtype=torch.float64)
        self._sums[param] = self._sums[param] + squares_I if param in self._sums else squares_I
        self._tokens[param] = self._tokens.get(param, 0) + x_TI.shape[0]

"""Mean squares of what linear layers read: the diagonal of ``grams.py``, where that is enough."""

from __future__ import annotations

from collections.abc import Iterable
from typing import final

import torch
from torch import Tensor, nn

from effcompress.measure.hooks import InputHooks


@final
class Squares(InputHooks):
    """Mean of ``x^2`` over all tokens, ``[I]`` per distinct input; sums in fp64."""

    def __init__(self, module: nn.Module, params: Iterable[str]) -> None:
        super().__init__(module, params, self._add)
        self._sums: dict[str, Tensor] = {}
        self._tokens: dict[str, int] = {}

    def read(self, param: str) -> Tensor | None:
        """``[I]`` in fp32; None before the layer has read anything."""
        owner = self.owner.get(param)
        return None if owner is None else (self._sums[owner] / self._tokens[owner]).float()

    @torch.no_grad()
    def _add(self, owner: str, x: Tensor) -> None:
        x_TI = x.flatten(0, -2)
        squares_I = x_TI.float().square().sum(0, dtype=torch.float64)
        self._sums[owner] = self._sums[owner] + squares_I if owner in self._sums else squares_I
        self._tokens[owner] = self._tokens.get(owner, 0) + x_TI.shape[0]

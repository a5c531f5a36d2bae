"""Routers of a mixture of experts while some experts are masked: a router row of zeros would still
be chosen now and then, so the router runs over the living rows only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

_LIVE: dict[type[nn.Module], type[nn.Module]] = {}


def attend(router: nn.Module, alive_G: Tensor) -> None:
    """Let a router choose among the living experts, and no others."""
    module: Any = router
    stock = getattr(type(router), "stock", type(router))
    if bool(alive_G.all()):
        if type(router) is not stock:
            module.__class__ = stock
            del module.alive_A
        return
    module.__class__ = _LIVE.setdefault(stock, _live(stock))
    module.alive_A = alive_G.nonzero().flatten()


def _live(stock: type[nn.Module]) -> type[nn.Module]:
    return type(f"Live{stock.__name__}", (stock,), {"stock": stock, "forward": _forward(stock)})


def _forward(stock: type[nn.Module]) -> Callable[..., Any]:
    def forward(self: Any, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The stock router on the living rows; numbers of experts stay the physical ones."""
        live, alive_A = type(self), self.alive_A.to(self.weight.device)
        self.__class__ = stock
        try:
            rows = {"weight": self.weight[alive_A]}
            logits_TA, score_TK, index_TK = torch.func.functional_call(self, rows, (hidden,))
        finally:
            self.__class__ = live
        shape = (logits_TA.shape[0], self.weight.shape[0])
        logits_TE = logits_TA.new_full(shape, -torch.inf).index_copy(1, alive_A, logits_TA)
        return logits_TE, score_TK, alive_A[index_TK]

    return forward

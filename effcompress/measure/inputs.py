"""What linear layers read, one number per input channel: forward passes only, no gradients.

Layers that read the same tensor (q, k and v; gate and up) share one entry. Sums are kept in fp64.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor, nn


@dataclass
class _Sums:
    """Running sums over tokens and sequences, ``[I]`` each."""

    size: int
    device: torch.device
    tokens: int = 0
    sequences: int = 0
    total: Tensor = field(init=False)
    squares: Tensor = field(init=False)
    sequence_abs: Tensor = field(init=False)
    sequence_mean: Tensor = field(init=False)
    fluctuation: Tensor = field(init=False)

    def __post_init__(self) -> None:
        for name in ("total", "squares", "sequence_abs", "sequence_mean", "fluctuation"):
            zeros = torch.zeros(self.size, dtype=torch.float64, device=self.device)
            setattr(self, name, zeros)

    def add(self, x_TI: Tensor) -> None:
        """One sequence."""
        total, squares = x_TI.sum(0), x_TI.square().sum(0)
        self.total += total
        self.squares += squares
        self.sequence_abs += x_TI.abs().mean(0).square_()
        self._fluctuate(total / len(x_TI), total, squares, len(x_TI))
        self.tokens += len(x_TI)

    def _fluctuate(self, mean: Tensor, total: Tensor, squares: Tensor, tokens: int) -> None:
        """FLAP's recursion as published: sums over the tokens of a sequence of the squared distance
        from the running mean of sequences; the first sequence counts for nothing
        (arXiv:2312.11983; its code).
        """
        self.sequences += 1
        n = self.sequences
        self.sequence_mean += (mean - self.sequence_mean) / n
        if n > 1:
            around = self.sequence_mean
            distance = squares - 2.0 * around * total + tokens * around.square()
            self.fluctuation.mul_((n - 2) / (n - 1)).add_(distance / n)

    def read(self) -> dict[str, Tensor]:
        """Under the names that criteria ask for, in fp32."""
        mean, square = self.total / self.tokens, self.squares / self.tokens
        found = {
            "input_mean": mean,
            "input_norm": square.sqrt(),
            "input_variance": (square - mean.square()).clamp_(min=0.0),
            "input_abs": self.sequence_abs.sqrt(),
            "input_fluctuation": self.fluctuation,
        }
        return {name: value.float() for name, value in found.items()}


@final
class InputStats:
    """Listens to linear layers; ``params`` says which, and along which dimension they read."""

    def __init__(self, module: nn.Module, params: Mapping[str, int]) -> None:
        self.params = dict(params)
        self.owner: dict[str, str] = {}
        """Weight -> the weight under whose name its inputs are kept."""
        self._weights = dict(module.named_parameters())
        self._sums: dict[str, _Sums] = {}
        self._last: tuple[Tensor, str] | None = None
        self._listening = False
        self._hooks = [
            module.get_submodule(param.removesuffix(".weight")).register_forward_pre_hook(
                self._hook(param)
            )
            for param in self.params
        ]

    def close(self) -> None:
        """Stop listening for good."""
        for hook in self._hooks:
            hook.remove()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take in what is read; every row of a batch is a sequence."""
        self._listening = True
        try:
            yield
        finally:
            self._listening, self._last = False, None

    def read(self, param: str) -> dict[str, Tensor]:
        """``[I]`` each: ``input_mean``, ``input_norm``, ... (``effcompress/injectable.py``)."""
        return self._sums[self.owner[param]].read()

    def weight(self, param: str) -> Tensor:
        """The layer's weight as ``[O, I]``; a view."""
        weight = self._weights[param].detach()
        return weight if self.params[param] == 1 else weight.T

    def _hook(self, param: str) -> Any:
        def hook(_module: nn.Module, args: tuple[Any, ...]) -> None:
            if self._listening:
                self._take(param, args[0])

        return hook

    @torch.no_grad()
    def _take(self, param: str, x: Tensor) -> None:
        if self._last is not None and self._last[0] is x:
            self.owner[param] = self._last[1]
            return
        self._last = (x, param)
        self.owner[param] = param
        if param not in self._sums:
            self._sums[param] = _Sums(x.shape[-1], x.device)
        rows_BTI = x.detach().reshape(-1, *x.shape[-2:]) if x.dim() > 2 else x.detach()[None]
        for row_TI in rows_BTI:
            self._sums[param].add(row_TI.double())

"""How much a layer or a block turns the residual stream (block influence, arXiv:2403.03853)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from effcompress.distributed import ALONE, World
from effcompress.types import AxisMap


@final
class Influence:
    """Mean over tokens of ``1 - cos(stream before, stream after)`` of every layer, attention block
    and feed-forward block, in fp64.

    What a block adds to the stream is the output of that of its modules which runs last (a norm
    behind the block belongs to it). The stream is ``[B, T, hidden]``, before and after.
    """

    def __init__(self, module: nn.Module, axes: AxisMap, world: World = ALONE) -> None:
        """``world``: who hears other sequences; what is read is of all of them."""
        self._world = world
        self._totals: dict[str, Tensor] = {}
        self._tokens: dict[str, int] = {}
        self._listening = False
        self._added: dict[str, Tensor] = {}
        self._hooks: list[Any] = []
        family = axes.family
        for j, i in enumerate(axes.depth.layers):
            layer = module.get_submodule(family.layer.replace("{i}", str(j)))
            there = {
                kind: sublayer.modules
                for kind, sublayer in family.sublayers.items()
                if f"{kind}.{i}" not in axes.depth.absent
            }
            for kind, paths in there.items():
                for path in paths:
                    hook = self._remember(f"{kind}.{i}")
                    self._hooks.append(layer.get_submodule(path).register_forward_hook(hook))
            hook = self._compare(i, there)
            self._hooks.append(layer.register_forward_hook(hook, with_kwargs=True))

    def close(self) -> None:
        """Stop listening for good."""
        for hook in self._hooks:
            hook.remove()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take in the passes that happen now."""
        self._listening = True
        try:
            yield
        finally:
            self._listening = False
            self._added.clear()

    def read(self) -> dict[str, float]:
        """``layer.3``, ``attention_block.3``, ... -> its influence."""
        names = sorted(self._totals)
        totals = self._world.sums([float(self._totals[name]) for name in names])
        tokens = self._world.sums([self._tokens[name] for name in names])
        return {name: t / n for name, t, n in zip(names, totals, tokens, strict=True)}

    def _remember(self, name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: Any, out: Any) -> None:
            if self._listening:
                self._added[name] = _first(out)

        return hook

    def _compare(self, layer: int, there: Mapping[str, Any]) -> Callable[..., None]:
        def hook(_module: nn.Module, args: Any, kwargs: Mapping[str, Any], out: Any) -> None:
            if not self._listening:
                return
            before = args[0] if args else kwargs["hidden_states"]
            after = _first(out)
            self._take(f"layer.{layer}", before, after)
            for kind in there:
                # Some classes flatten batch and tokens within the block.
                added = self._added.pop(f"{kind}.{layer}").reshape(before.shape)
                if kind == "attention_block":
                    self._take(f"{kind}.{layer}", before, before + added)
                else:
                    self._take(f"{kind}.{layer}", after - added, after)

        return hook

    @torch.no_grad()
    def _take(self, name: str, before: Tensor, after: Tensor) -> None:
        cosine = functional.cosine_similarity(before.double(), after.double(), dim=-1)
        total = (1.0 - cosine).sum()
        self._totals[name] = self._totals[name] + total if name in self._totals else total
        self._tokens[name] = self._tokens.get(name, 0) + cosine.numel()


def _first(out: Any) -> Tensor:
    """What a module hands on; attention returns more than that."""
    return (out[0] if isinstance(out, tuple) else out).detach()

"""Statistics of forward passes over calibration text: of what linear layers read, one number per
input channel, and of the residual stream before and after layers and blocks, one number for each.

Which ones there are is up to plugins (``@statistic``); mean, root mean square and variance of the
inputs are the engine's own. All sums are in fp64.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, final

import torch
from torch import Tensor, nn

from effcompress.distributed.rows import whole
from effcompress.distributed.world import ALONE, World
from effcompress.injectable import MOMENTS
from effcompress.measure.hooks import Hooks, InputHooks, addition, first_of, stream_in
from effcompress.measure.routes import Call, Down, channels
from effcompress.registry import Bound, Plugin
from effcompress.types import AxisMap, Sublayer


@dataclass
class Streaming:
    """One statistic of one layer, sequence by sequence: a mean of values per token, or the
    statistic's own recursion where it takes ``state``.
    """

    statistic: Plugin
    total: Any = None
    """Sum over tokens, or the state."""
    tokens: int = 0

    def add(self, **given: Tensor) -> None:
        """One sequence. Raises PluginError when the statistic fails or returns another shape."""
        tokens, *width = next(iter(given.values())).shape
        if "x" not in given:
            width = []
        found = Bound(self.statistic)(**given, state=self.total)
        if "state" in self.statistic.needs:
            self._require(first_of(found), *width)
            self.total = found
        else:
            self._require(found, tokens, *width)
            summed = found.double().sum(0)
            self.total = summed if self.total is None else self.total + summed
        self.tokens += tokens

    def read(self) -> dict[str, Tensor]:
        """Its name -> the value so far, in fp64."""
        return {self.statistic.name: self.value()}

    def value(self) -> Tensor:
        """The value so far, in fp64."""
        if "state" not in self.statistic.needs:
            return self.total / self.tokens
        return first_of(self.total).double()

    def _require(self, found: object, *shape: int) -> None:
        self.statistic.require_shape(
            found,
            f"where {shape or (1,)} was expected",
            shape,
            shape or (1,),
            fix="Without `state` it returns one value per token, with it one per channel.",
        )


BLOCK = 2048
"""Tokens whose sums are in fp32 before they are added in fp64."""


@dataclass
class _Moments:
    """Sum of ``x`` over tokens and of its squared distance from the mean, ``[I]`` each in fp64.

    Those of a block of tokens are made in fp32, the distance from the block's own mean: unlike that
    of squares and a square of sums, no difference of large numbers is rounded. Blocks are added as
    in Chan, Golub and LeVeque (1979), eq. 2.1.
    """

    total: Tensor | float = 0.0
    spread: Tensor | float = 0.0
    tokens: int = 0

    def add(self, x: Tensor) -> None:
        """One sequence, ``[T, I]``."""
        for rows in x.split(BLOCK):
            wide = rows if rows.dtype == torch.float64 else rows.float()
            n, mean = len(wide), wide.mean(0)
            spread = (wide - mean).square_().sum(0).double()
            if self.tokens:
                apart = self.total / self.tokens - mean
                spread += apart.square() * (self.tokens * n / (self.tokens + n))
            self.total = self.total + n * mean.double()
            self.spread = self.spread + spread
            self.tokens += n

    def read(self) -> dict[str, Tensor]:
        """``input_mean``, ``input_norm`` (root of the mean square) and ``input_variance``."""
        mean = torch.as_tensor(self.total / self.tokens)
        variance = torch.as_tensor(self.spread / self.tokens)
        norm = (variance + mean.square()).sqrt()
        return {"input_mean": mean, "input_norm": norm, "input_variance": variance}


@final
class InputStatistics(InputHooks):
    """Statistics of what linear layers read; every row of a batch is a sequence. Of the projections
    of a mixture's experts, those of the tokens that are sent to each: every pass is one sequence.
    """

    def __init__(
        self,
        module: nn.Module,
        params: Mapping[str, int],
        needs: tuple[str, ...] | frozenset[str] = MOMENTS,
        statistics: Mapping[str, Plugin] | None = None,
        experts: Mapping[str, Down] | None = None,
    ) -> None:
        """``params``: weight -> the dimension that its inputs run along. ``needs``: which of the
        engine's own are wanted; ``statistics``: name -> plugin. ``experts``: weight of all experts
        of a layer -> where they read.
        """
        self.params = dict(params)
        self._module = module  # not its weights, which may be gathered for a while only
        self._moments = bool(MOMENTS.intersection(needs))
        self._statistics = list((statistics or {}).values())
        self._layers: dict[tuple[str, int | None], list[_Moments | Streaming]] = {}
        """Owner of an input, and the expert that reads it -> what is measured of it."""
        super().__init__(module, params, self._add)
        for param, down in (experts or {}).items():
            self.params[param], self.owner[param] = down.inputs, param
            of = module.get_submodule(param.rpartition(".")[0])
            hook = partial(self._add_experts, param, down)
            self._handles.append(of.register_forward_pre_hook(hook, with_kwargs=True))

    def parts(self, param: str) -> Sequence[int | None]:
        """The experts that tokens were sent to, or None for the one matrix of a linear layer."""
        owner = self.owner[param]
        return sorted(
            (e for p, e in self._layers if p == owner), key=lambda e: -1 if e is None else e
        )

    def read(self, param: str, part: int | None = None) -> dict[str, Tensor]:
        """``[I]`` each in fp32, by name."""
        measured = [kept.read() for kept in self._layers[self.owner[param], part]]
        return {name: value.float() for found in measured for name, value in found.items()}

    def shape(self, param: str) -> tuple[int, int]:
        """Outputs and inputs of the layer."""
        *_, rows, columns = self._module.get_parameter(param).shape
        return (rows, columns) if self._inputs_last(param) else (columns, rows)

    def weight(self, param: str, part: int | None = None) -> Tensor:
        """The layer's weight as ``[O, I]``: a view, or, of a sharded one, gathered by all ranks."""
        weight = whole(self._module.get_parameter(param).detach())
        weight = weight if part is None else weight[part]
        return weight if self._inputs_last(param) else weight.T

    def _inputs_last(self, param: str) -> bool:
        return self.params[param] == self._module.get_parameter(param).dim() - 1

    @torch.no_grad()
    def _add(self, owner: str, x: Tensor, part: int | None = None) -> None:
        if (owner, part) not in self._layers:
            streams = [Streaming(plugin) for plugin in self._statistics]
            self._layers[owner, part] = [*([_Moments()] if self._moments else []), *streams]
        for x_TI in x.reshape(-1, *x.shape[-2:]) if x.dim() > 2 else x[None]:
            wide_TI = x_TI.double() if self._statistics else x_TI
            for kept in self._layers[owner, part]:
                kept.add(x=x_TI if isinstance(kept, _Moments) else wide_TI)

    @torch.no_grad()
    def _add_experts(
        self, param: str, down: Down, experts: nn.Module, args: Any, named: Any
    ) -> None:
        if not self.measuring:
            return
        call = Call.of(experts, args, named)
        for expert, _, own in call.sent():
            self._add(param, channels(own, down), expert)
        if call.index_TK is None:
            count = len(down.weight(experts))
            sent_ET = (call.x != 0).any(-1).view(count, -1)
            read_ETI = channels(call, down).unflatten(0, (count, -1))
            for expert in sent_ET.any(1).nonzero().flatten().tolist():
                self._add(param, read_ETI[expert, sent_ET[expert]], expert)


@final
class LayerStatistics(Hooks):
    """Statistics of the residual stream before and after every layer, attention block and
    feed-forward block.

    What a block adds to the stream is the output of that of its modules which runs last (a norm
    behind the block belongs to it). The stream is ``[B, T, hidden]``, before and after.
    """

    def __init__(
        self,
        module: nn.Module,
        axes: AxisMap,
        statistics: Mapping[str, Plugin],
        world: World = ALONE,
    ) -> None:
        """``world``: processes that measure other sequences; ``read`` is of all of them. A
        statistic with ``state`` has to see every sequence in every process.
        """
        super().__init__()
        self._world, self._statistics = world, dict(statistics)
        self._streams: dict[str, dict[str, Streaming]] = {name: {} for name in statistics}
        self._added: dict[str, Tensor] = {}
        family, self._scale = axes.family, axes.residual_scale
        for j, i in enumerate(axes.depth.layers):
            layer = module.get_submodule(family.layer.replace("{i}", str(j)))
            there = {
                kind: sublayer
                for kind, sublayer in family.sublayers.items()
                if f"{kind}.{i}" not in axes.depth.absent
            }
            inside = dict(layer.named_modules())
            for kind, sublayer in there.items():
                for path in (p for p in sublayer.modules if p in inside):
                    hook = partial(self._remember, f"{kind}.{i}", sublayer, path)
                    self._handles.append(inside[path].register_forward_hook(hook))
            compare = partial(self._compare, i, there)
            self._handles.append(layer.register_forward_hook(compare, with_kwargs=True))

    def read(self) -> dict[str, dict[str, float]]:
        """Statistic -> ``layer.3``, ``attention_block.3``, ... -> its value."""
        return {name: self._over_all(name) for name in self._statistics}

    def _over_all(self, name: str) -> dict[str, float]:
        streams = self._streams[name]
        names = sorted(streams)
        if "state" in self._statistics[name].needs:
            return {n: float(streams[n].value()) for n in names}
        totals = self._world.sums([float(streams[n].total) for n in names])
        tokens = self._world.sums([streams[n].tokens for n in names])
        return {n: t / count for n, t, count in zip(names, totals, tokens, strict=True)}

    def _remember(
        self, name: str, part: Sublayer, path: str, _module: nn.Module, args: Any, out: Any
    ) -> None:
        """Of the modules of a block the last one counts, with what runs ``beside`` it."""
        if self.measuring:
            # A copy: some classes add the other block's output to it in place.
            added = addition(part, path, args, out).detach().clone()
            self._added[name] = self._added[name] + added if path in part.beside else added

    def _compare(
        self, layer: int, kinds: Iterable[str], _module: nn.Module, args: Any, named: Any, out: Any
    ) -> None:
        if not self.measuring:
            return
        before, after = stream_in(args, named), first_of(out).detach()
        self._take(f"layer.{layer}", before, after)
        for kind in kinds:
            # Some classes flatten batch and tokens within the block.
            added = self._scale * self._added.pop(f"{kind}.{layer}").reshape(before.shape)
            # Attention comes first in a layer: it starts from the layer's own input, and the
            # feed-forward block ends at its output.
            if kind == "attention_block":
                self._take(f"{kind}.{layer}", before, before + added)
            else:
                self._take(f"{kind}.{layer}", after - added, after)

    @torch.no_grad()
    def _take(self, name: str, before: Tensor, after: Tensor) -> None:
        for statistic, plugin in self._statistics.items():
            stream = self._streams[statistic].setdefault(name, Streaming(plugin))
            for before_TD, after_TD in zip(before.double(), after.double(), strict=True):
                stream.add(before=before_TD, after=after_TD)

    def _reset(self) -> None:
        self._added.clear()

"""Statistics of the experts of mixtures, from forward passes over calibration text: what an expert
returns for the tokens that its router sends to it, and the weights that the router gives it.

The outputs are those of the model's own module, which is called once more for each expert with the
tokens routed to it and a weight of 1: activations, biases and clamps are the model's, and no tensor
of tokens times experts is ever made.
"""

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, final

import torch
from torch import Tensor, nn

from effcompress.distributed.world import ALONE, World
from effcompress.measure.hooks import Hooks
from effcompress.measure.statistics import Streaming
from effcompress.registry import Plugin
from effcompress.types import AxisMap, axis_layer

OfExperts = Mapping[str, Mapping[str, Tensor]]
"""Axis (``expert.3``) -> statistic, or ``routed`` -> its values, ``[E]``."""


@final
class ExpertStatistics(Hooks):
    """Statistics of the experts of some layers, by physical number. Every pass is one sequence."""

    def __init__(
        self,
        module: nn.Module,
        axes: AxisMap,
        names: Iterable[str],
        statistics: Mapping[str, Plugin],
        world: World = ALONE,
        *,
        means: bool = False,
    ) -> None:
        """``names``: the axes (``expert.3``) to measure; others are not. ``world``: processes that
        measure other sequences; ``read`` is of all of them. A statistic with ``state`` has to see
        every sequence in every process. ``means``: whether the means of the outputs are wanted.
        """
        super().__init__()
        self._world, self._statistics = world, dict(statistics)
        self._streams: dict[str, dict[str, list[Streaming]]] = {}
        self._routed: dict[str, Tensor] = {}
        self._sums: dict[str, Tensor] = {}
        """Axis -> sum over tokens of what every expert returns, ``[E, hidden]`` in fp64; of those
        that ``means`` asks for.
        """
        for name in names:
            count, layer = axes.widths[name], axis_layer(name)
            assert layer is not None
            j = axes.depth.layers.index(layer)
            self._routed[name] = torch.zeros(count, dtype=torch.int64)
            if means:
                hidden = axes.widths["hidden"]
                self._sums[name] = torch.zeros(count, hidden, dtype=torch.float64)
            self._streams[name] = {
                statistic: [Streaming(plugin) for _ in range(count)]
                for statistic, plugin in self._statistics.items()
            }
            experts = module.get_submodule(axes.family.experts.replace("{i}", str(j)))
            hook = partial(self._take, name)
            self._handles.append(experts.register_forward_pre_hook(hook, with_kwargs=True))

    def read(self) -> dict[str, dict[str, Tensor]]:
        """Axis -> statistic -> ``[E]`` in fp32, 0 for experts that no token was sent to; ``routed``
        -> numbers of tokens.
        """
        return {
            name: {
                "routed": self._sent(name),
                **{n: self._over_all(s) for n, s in self._streams[name].items()},
            }
            for name in self._routed
        }

    def means(self) -> dict[str, Tensor]:
        """Axis -> mean over tokens of what every expert returns, ``[E, hidden]`` in fp32; 0 where
        no token was sent. Collective.
        """
        sums = self._world.total(self._sums)
        return {
            name: (sums[name] / self._sent(name).clamp(min=1.0)[:, None]).float()
            for name in self._routed
            if name in sums
        }

    def _sent(self, name: str) -> Tensor:
        return torch.tensor(self._world.sums(self._routed[name].tolist())).float()

    def _over_all(self, streams_E: list[Streaming]) -> Tensor:
        if "state" in streams_E[0].statistic.needs:
            return torch.tensor([float(s.value()) if s.tokens else 0.0 for s in streams_E])
        totals = self._world.sums([float(s.total) if s.tokens else 0.0 for s in streams_E])
        tokens = self._world.sums([s.tokens for s in streams_E])
        return torch.tensor([t / max(1, n) for t, n in zip(totals, tokens, strict=True)])

    @torch.no_grad()
    def _take(self, name: str, experts: Any, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        """Measures one call of a mixture: tokens ``[T, hidden]``, the numbers of their experts and
        the router's weights, ``[T, K]`` both.
        """
        if not self.measuring:
            return
        if len(args) + len(named) == 1:
            self._take_weighed(name, experts, *args, *named.values())
            return
        x_TD, index_TK, weight_TK = (*args, *named.values())
        place = getattr(experts, "place", None)  # where the router keeps the rows of those gone
        for route in index_TK.unique().tolist():
            expert = route if place is None else place[route]
            if expert < 0:
                continue
            token_N, slot_N = (index_TK == route).nonzero(as_tuple=True)
            self._routed[name][expert] += len(token_N)
            if not self._statistics and name not in self._sums:
                continue
            # forward, not a call: hooks of the module would measure this pass, too.
            ones_N1 = weight_TK.new_ones(len(token_N), 1)
            output_ND = experts.forward(x_TD[token_N], index_TK[token_N, slot_N, None], ones_N1)
            if name in self._sums:
                self._sums[name][expert] += output_ND.double().sum(0).cpu()
            gates_NK = weight_TK[token_N].double()
            gate_N = weight_TK[token_N, slot_N].double()
            for streams_E in self._streams[name].values():
                streams_E[expert].add(output=output_ND.double(), gate=gate_N, gates=gates_NK)

    def _take_weighed(self, name: str, experts: Any, x_ND: Tensor) -> None:
        """Measures one call of a mixture all of whose experts read all tokens, each multiplied by
        the router's weight: ``[experts * T, hidden]``. What an expert returns is added as it is, so
        the weights of outputs are 1.
        """
        count = len(self._routed[name])
        sent_ET = (x_ND != 0).any(-1).view(count, -1)
        output_ETD = experts.forward(x_ND).view(count, sent_ET.shape[1], -1)
        each = int(sent_ET.sum(0).max())
        for expert, sent_T in enumerate(sent_ET):
            output_ND = output_ETD[expert, sent_T].double()
            self._routed[name][expert] += len(output_ND)
            ones_N = output_ND.new_ones(len(output_ND))
            for streams_E in self._streams[name].values() if len(output_ND) else ():
                gates_NK = ones_N[:, None].expand(-1, each)
                streams_E[expert].add(output=output_ND, gate=ones_N, gates=gates_NK)

"""Mixtures by hand: where every token goes and what every expert returns for it, in fp64, from the
tensors of a model and its configuration alone.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import silu

from tests.contract.by_hand import LiveRouter


def router_of(mlp: Any) -> Any:
    return mlp.router if hasattr(mlp, "router") else mlp.gate


def returned(experts: Any, e: int, x_TD: Tensor) -> Tensor:
    """What expert ``e`` makes of tokens, before the router's weight."""
    if hasattr(experts, "down_proj_bias"):  # gpt-oss: clamped, gate and up side by side
        both = x_TD @ experts.gate_up_proj[e] + experts.gate_up_proj_bias[e]
        gate, up = both[:, 0::2].clamp(max=7.0), both[:, 1::2].clamp(-7.0, 7.0)
        inner = (up + 1.0) * gate * torch.sigmoid(1.702 * gate)
        return inner @ experts.down_proj[e] + experts.down_proj_bias[e]
    half = experts.gate_up_proj.shape[1] // 2
    gate, up = (x_TD @ w.T for w in experts.gate_up_proj[e].split(half))
    return (silu(gate) * up) @ experts.down_proj[e].T


@torch.no_grad()
def by_hand(mlp: Any, x_TD: Tensor, dead: list[int] | None = None) -> dict[str, Tensor]:
    """The five criteria, ``[E]``, of the tokens that a mixture reads. ``dead``: experts that the
    router never chooses.
    """
    _, gate_TK, index_TK = LiveRouter(router_of(mlp), dead or [])(x_TD)
    found = []
    for e in range(len(router_of(mlp).weight)):
        token, slot = (index_TK == e).nonzero(as_tuple=True)
        gate = gate_TK[token, slot]
        share = gate / gate_TK[token].sum(1)
        norm = returned(mlp.experts, e, x_TD[token]).square().sum(1).sqrt()
        n = max(1, len(token))
        sums = (share * norm, gate * norm, norm, norm.square())
        found.append([*(float(s.sum()) / n for s in sums), float(norm.sum()), len(token)])
    names = ("reap", "as the model weighs", "man", "msan", "ean", "frequency")
    return dict(zip(names, torch.tensor(found, dtype=torch.float64).T, strict=True))


Routing = list[tuple[Tensor, Tensor, Tensor]]
"""Of every sequence: the tokens ``[T, hidden]``, the numbers of their experts and the router's
weights, ``[T, K]``.
"""


def routings(pruned: Any) -> dict[str, Routing]:
    """Listens to every router: by the axis of its experts. Filled when the model runs."""
    said: dict[str, Routing] = {}

    def listen(name: str, _router: Any, args: Any, out: Any) -> None:
        x_TD = args[0].reshape(-1, args[0].shape[-1])
        if len(out) == 3:
            said.setdefault(name, []).append((x_TD, out[2], out[1]))
        else:  # Llama 4: weights of all experts, which multiply the inputs
            weight_TK, index_TK = out[0].topk(2, -1)
            said.setdefault(name, []).append((x_TD, index_TK, weight_TK))

    for s in pruned.sets:
        j = pruned.depth.layers.index(s.layer)
        router = pruned.module.get_submodule(pruned.family.router.replace("{i}", str(j)))
        router.register_forward_hook(partial(listen, s.name))
    return said


def _alone(experts: Any, e: int, x_TD: Tensor) -> Tensor:
    """What expert ``e`` makes of tokens."""
    if hasattr(experts, "expert_dim"):  # Llama 4: transposed, half of the columns are gates
        gate, up = (x_TD @ experts.gate_up_proj[e]).chunk(2, -1)
        return (silu(gate) * up) @ experts.down_proj[e]
    return returned(experts, e, x_TD)


@torch.no_grad()
def of_routing(experts: Any, said: Routing, count: int) -> dict[str, Tensor]:
    """The five criteria, ``[E]``, of tokens that went where the router said."""
    x_TD, index_TK, gate_TK = (torch.cat(parts) for parts in zip(*said, strict=True))
    weighed = hasattr(experts, "expert_dim")
    found = []
    for e in range(count):
        token, slot = (index_TK == e).nonzero(as_tuple=True)
        gate, inputs = gate_TK[token, slot], x_TD[token]
        share = gate / gate_TK[token].sum(1)
        if weighed:
            inputs, gate, share = inputs * gate[:, None], gate / gate, 0 * gate + 0.5
        norm = _alone(experts, e, inputs).square().sum(1).sqrt()
        n = max(1, len(token))
        sums = (share * norm, gate * norm, norm, norm.square())
        found.append([*(float(s.sum()) / n for s in sums), float(norm.sum()), len(token)])
    names = ("reap", "as the model weighs", "man", "msan", "ean", "frequency")
    return dict(zip(names, torch.tensor(found, dtype=torch.float64).T, strict=True))


@torch.no_grad()
def read(model: Any, ids_NT: Tensor) -> dict[int, Tensor]:
    """What the mixture of every layer reads, all tokens one behind the other."""
    seen: dict[int, list[Tensor]] = {}
    handles = [
        layer.mlp.register_forward_pre_hook(
            lambda _m, args, i=i: seen.setdefault(i, []).append(args[0].flatten(0, -2))
        )
        for i, layer in enumerate(model.model.layers)
        if hasattr(layer.mlp, "experts")
    ]
    for ids_T in ids_NT:
        model(input_ids=ids_T[None], use_cache=False)
    for handle in handles:
        handle.remove()
    return {i: torch.cat(parts) for i, parts in seen.items()}

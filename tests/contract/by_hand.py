"""Masking by hand: what a model is without some of its units, written down independently of the
engine. Weights are zeroed by module name, norms average over what is kept, routers never choose a
removed expert.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tests.conftest import PLAIN, ExactRMSNorm, with_exact_norms

Plan = dict[str, list[int]]
HEAD, HIDDEN = 8, 48


@dataclass(frozen=True)
class Names:
    """Where a family keeps what writes into the residual stream."""

    layers: str = "model.layers"
    attention: str = "self_attn"
    out: str = "self_attn.o_proj"
    down: str = "mlp.down_proj"
    embeddings: tuple[str, ...] = ("model.embed_tokens",)
    inputs: int = 1
    """Dimension of the inputs in a weight."""


LLAMA = Names()
NAMES = {
    "gpt_neox": Names(
        "gpt_neox.layers",
        "attention",
        "attention.dense",
        "mlp.dense_4h_to_h",
        ("gpt_neox.embed_in",),
    ),
    "opt": Names(
        "model.decoder.layers",
        "self_attn",
        "self_attn.out_proj",
        "fc2",
        ("model.decoder.embed_tokens", "model.decoder.embed_positions"),
    ),
    "gpt2": Names(
        "transformer.h",
        "attn",
        "attn.c_proj",
        "mlp.c_proj",
        ("transformer.wte", "transformer.wpe"),
        inputs=0,
    ),
}


class LiveNorm(nn.Module):
    """A norm over the channels that are kept; gain and epsilon corrected or not."""

    def __init__(self, norm: Any, dead: list[int], corrected: bool, centred: bool) -> None:
        super().__init__()
        live = torch.ones(norm.weight.numel(), dtype=torch.float64)
        live[dead] = 0
        self.register_buffer("live", live)
        exact = norm if centred else ExactRMSNorm(norm)
        epsilon = norm.eps if centred else getattr(exact, exact.attribute)
        ratio = len(live) / float(live.sum()) if corrected and not centred else 1.0
        gain = norm.weight.detach() + (0.0 if centred else exact.offset)
        self.gain, self.eps = gain * ratio**0.5, epsilon * ratio
        self.bias = norm.bias.detach() if centred else 0.0
        self.centred = centred

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        count = self.live.sum()
        if self.centred:
            x = x - (x * self.live).sum(-1, keepdim=True) / count
        mean = (x.square() * self.live).sum(-1, keepdim=True) / count
        return (self.gain * x * torch.rsqrt(mean + self.eps) + self.bias) * self.live


class LiveRouter(nn.Module):
    """A router to which the removed experts look infinitely bad."""

    def __init__(self, router: Any, dead: list[int]) -> None:
        super().__init__()
        self.weight, self.top_k, self.dead = router.weight, router.top_k, dead
        self.bias = getattr(router, "bias", None)
        self.normalised = getattr(router, "norm_topk_prob", True)
        self.selection = getattr(router, "e_score_correction_bias", None)
        self.groups = getattr(router, "num_group", 1), getattr(router, "topk_group", 1)
        self.scale = getattr(router, "routed_scaling_factor", 1.0)

    def forward(self, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        logits = hidden.reshape(-1, hidden.shape[-1]) @ self.weight.T
        logits = logits if self.bias is None else logits + self.bias
        logits[:, self.dead] = -torch.inf
        if self.selection is not None:
            return logits, *self._of_groups(logits)
        value, index = torch.softmax(logits, -1).topk(self.top_k, -1)
        return logits, value / value.sum(-1, keepdim=True) if self.normalised else value, index

    def _of_groups(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """DeepSeek's rule, token by token: the groups with the best two, then the best of those."""
        gates, (count, chosen) = torch.sigmoid(logits), self.groups
        better = gates + self.selection.to(gates)
        better[:, self.dead] = -torch.inf
        size, rows = better.shape[1] // count, []
        for row in better.tolist():
            groups = [range(g * size, (g + 1) * size) for g in range(count)]
            groups.sort(key=lambda g: -sum(sorted(row[e] for e in g)[-2:]))
            inside = [e for g in groups[:chosen] for e in g]
            rows.append(sorted(inside, key=lambda e: -row[e])[: self.top_k])
        index = torch.tensor(rows)
        value = gates.gather(1, index)
        value = value / value.sum(-1, keepdim=True) if self.normalised else value
        return value * self.scale, index


@torch.no_grad()
def reference(model: nn.Module, model_type: str, plan: Plan, corrected: bool = False) -> nn.Module:
    """A copy of the model without the units of the plan."""
    model = copy.deepcopy(model)
    names = NAMES.get(model_type, LLAMA)
    heads = model.config.num_attention_heads
    shared = heads // (getattr(model.config, "num_key_value_heads", None) or heads)
    for i, layer in enumerate(model.get_submodule(names.layers)):
        out = layer.get_submodule(names.out)
        for u in plan.get(f"attention.{i}", []):
            _columns(out, names, range(u * shared * HEAD, (u + 1) * shared * HEAD))
        for slot in plan.get(f"query.{i}", []):
            for kv in range(heads // shared):
                start = (kv * shared + slot) * HEAD
                _columns(out, names, range(start, start + HEAD))
        _feed_forward(layer, names, i, plan)
        if plan.get(f"layer.{i}") or plan.get(f"attention_block.{i}"):
            _mute(out)
    _live_heads(model, names, plan, shared)
    dead = plan.get("hidden", [])
    _without_channels(model, names, dead)

    def live(norm: nn.Module) -> nn.Module:
        if norm.weight.numel() != HIDDEN or isinstance(norm, LiveNorm):
            return norm if isinstance(norm, LiveNorm) else ExactRMSNorm(norm)
        return LiveNorm(norm, dead, corrected, centred=model_type in PLAIN)

    if model_type not in PLAIN:
        return with_exact_norms(model, live)
    return _exchange(model, nn.LayerNorm, live)


def _feed_forward(layer: Any, names: Names, i: int, plan: Plan) -> None:
    gone = plan.get(f"layer.{i}") or plan.get(f"mlp_block.{i}")
    experts = getattr(getattr(layer, "mlp", None), "experts", None)
    if experts is not None:
        _of_experts(layer.mlp, plan.get(f"expert_ffn.{i}", []), plan.get(f"expert.{i}", []), gone)
        return
    down = layer.get_submodule(names.down)
    _columns(down, names, plan.get(f"ffn.{i}", []))
    if gone:
        _mute(down)


def _of_experts(mlp: Any, channels: list[int], dead: list[int], gone: object) -> None:
    transposed = hasattr(mlp, "router")  # gpt-oss: [experts, inputs, outputs]
    dim, name = (1, "router") if transposed else (2, "gate")
    mlp.experts.down_proj.index_fill_(dim, torch.tensor(channels, dtype=torch.long), 0)
    setattr(mlp, name, LiveRouter(getattr(mlp, name), dead))
    if gone:
        written = [mlp.experts.down_proj, getattr(mlp.experts, "down_proj_bias", None)]
        shared = getattr(mlp, "shared_experts", None)
        written.append(None if shared is None else shared.down_proj.weight)
        for weight in written:
            if weight is not None:
                weight.zero_()


def _columns(module: Any, names: Names, positions: Any) -> None:
    for k in positions:
        module.weight.select(names.inputs, k).zero_()


def _mute(module: Any) -> None:
    module.weight.zero_()
    if module.bias is not None:
        module.bias.zero_()


def _live_heads(model: Any, names: Names, plan: Plan, shared: int) -> None:
    """Norms across heads average over the heads that are kept."""
    for i, layer in enumerate(model.get_submodule(names.layers)):
        attention = layer.get_submodule(names.attention)
        norm = getattr(attention, "q_norm", None)
        kv = plan.get(f"attention.{i}", [])
        if norm is None or norm.weight.numel() == HEAD:
            continue
        total = norm.weight.numel() // HEAD
        dead = [q for q in range(total) if q // shared in kv]
        dead += [q for q in range(total) if q % shared in plan.get(f"query.{i}", [])]
        attention.q_norm = LiveNorm(norm, _wide(dead), corrected=False, centred=False)
        attention.k_norm = LiveNorm(attention.k_norm, _wide(kv), corrected=False, centred=False)


def _wide(heads: list[int]) -> list[int]:
    return [h * HEAD + k for h in heads for k in range(HEAD)]


def _without_channels(model: Any, names: Names, dead: list[int]) -> None:
    """Nothing writes into the removed channels of the residual stream."""
    for path in names.embeddings:
        model.get_submodule(path).weight[:, dead] = 0
    for layer in model.get_submodule(names.layers):
        experts = getattr(getattr(layer, "mlp", None), "experts", None)
        if experts is not None:
            transposed = hasattr(experts, "down_proj_bias")
            experts.down_proj.index_fill_(
                2 if transposed else 1, torch.tensor(dead, dtype=torch.long), 0
            )
            if transposed:
                experts.down_proj_bias[:, dead] = 0
            if hasattr(layer.mlp, "shared_experts"):
                layer.mlp.shared_experts.down_proj.weight[dead] = 0
        writers = [names.out, *([] if experts is not None else [names.down])]
        for module in map(layer.get_submodule, writers):
            for k in dead:
                module.weight.select(1 - names.inputs, k).zero_()
                if module.bias is not None:
                    module.bias[k] = 0


def _exchange(
    model: nn.Module, kind: type[nn.Module], make: Callable[[nn.Module], nn.Module]
) -> nn.Module:
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is kind:
                setattr(parent, name, make(child))
    return model

"""Mixtures of experts: a layer's experts are 3-D parameters, with one row of the router each."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from effcompress.model.families import llama
from effcompress.model.families.llama import (
    ATTENTION,
    LAYER,
    attention,
    decoder,
    gated,
    linear,
    side,
)
from effcompress.types import EXPERT_ROW, Axis, Config, Fields, ModuleSizes, Sublayer, Widths

EXPERT, EXPERT_FFN, ROUTE = "expert.{i}", "expert_ffn.{i}", "route.{i}"
"""``route``: an expert as the router knows it. It is never cut: where experts that go are replaced
by constants (``novices`` in the configuration), the router keeps its rows.
"""
CUT, KEPT = "router_is_cut", "router_is_kept"
"""Flags: a layer is a mixture whose router loses rows with experts, or keeps them."""
FIXED = ("vocab", "head_dim", "route")
Sparse = Callable[[Config, int], bool]


def flags(sparse: Sparse = lambda _config, _layer: True) -> dict[str, Sparse]:
    """Flags of a family whose mixtures are the layers ``sparse``."""
    return {
        CUT: lambda config, layer: sparse(config, layer) and not config.get("novices"),
        KEPT: lambda config, layer: sparse(config, layer) and bool(config.get("novices")),
    }


def _rows(param: str) -> Iterator[Axis]:
    """What a router holds of every expert, along dimension 0."""
    yield Axis(param, 0, EXPERT, when=CUT)
    yield Axis(param, 0, ROUTE, when=KEPT)


def _novices() -> Iterator[Axis]:
    """Constants in place of experts that are gone, a row for every expert of the parent."""
    yield Axis(LAYER + "mlp.experts.novices", 0, ROUTE, when=KEPT)
    yield Axis(LAYER + "mlp.experts.novices", 1, "hidden", when=KEPT)


def _unless_kept(value: Callable[[Config], int]) -> Callable[[Config], int]:
    """1 where the router keeps its rows: then no number of experts is too small for it."""
    return lambda config: 1 if config.get("novices") else value(config)


def _mixture(when: str = "") -> tuple[Axis, ...]:
    """Axes of router and experts. One tensor ``[experts, rows, columns]`` holds all experts of a
    layer, so channel k of ``expert_ffn`` is removed from all of them.
    """
    gate_up, down = LAYER + "mlp.experts.gate_up_proj", LAYER + "mlp.experts.down_proj"
    rows = ((0, EXPERT), (1, EXPERT_FFN), (1, EXPERT_FFN), (2, "hidden"))
    return (
        *_rows(LAYER + "mlp.gate.weight"),
        Axis(LAYER + "mlp.gate.weight", 1, "hidden", when=when),
        *_novices(),
        *(Axis(gate_up, dim, name, when=when) for dim, name in rows),
        *(Axis(down, i, x, when=when) for i, x in enumerate((EXPERT, "hidden", EXPERT_FFN))),
    )


def _attributes(config: Config, widths: Widths) -> ModuleSizes:
    found = llama.repeats(config, widths)
    if "expert" not in widths:
        return found
    hidden, experts = widths["hidden"], widths["expert"]
    sizes = {"num_experts": experts, "hidden_dim": hidden, "intermediate_dim": widths["expert_ffn"]}
    router = {"num_experts": widths.get("route", experts), "hidden_dim": hidden}
    return {**found, "mlp.gate": {**router}, "mlp.experts": {**sizes}}


def _pad(config: Config, widths: Widths) -> dict[str, int]:
    kinds = [kind for kind in ("hidden", "expert_ffn") if kind in widths]
    return {kind: -(-widths[kind] // EXPERT_ROW) * EXPERT_ROW for kind in kinds}


_TRAITS: dict[str, Any] = {
    "attributes": _attributes,
    "pad": _pad,
    "multiples": {"hidden": EXPERT_ROW, "expert_ffn": EXPERT_ROW},
    "router": LAYER + "mlp.gate",
    "experts": LAYER + "mlp.experts",
    # Top-k routing needs k experts at least.
    "floors": {"expert": _unless_kept(lambda c: c["num_experts_per_tok"])},
    # The router would still send tokens to an expert of zeros.
    "rigid": ("expert",),
    "fixed": FIXED,
}


def _resize_mixtral(config: Config, widths: Widths) -> Fields:
    return {
        **llama.resize(config, {**widths, "ffn": widths["expert_ffn"]}),
        "num_local_experts": widths["expert"],
    }


MIXTRAL = decoder(
    "mixtral",
    modules=(*attention("", ""), *_mixture()),
    units={
        **llama.UNITS,
        "expert": lambda c, _: c["num_local_experts"],
        "route": lambda c, _: c["num_local_experts"],
        "expert_ffn": lambda c, _: c["intermediate_size"],
    },
    flags=flags(),
    resize=_resize_mixtral,
    defaults={
        "mixtral": {"num_key_value_heads": 8, "num_local_experts": 8, "num_experts_per_tok": 2}
    },
    **_TRAITS,
)


def _sparse(config: Config, layer: int) -> bool:
    """Whether a layer of Qwen3-MoE is a mixture (others have a dense feed-forward)."""
    return layer not in (config.get("mlp_only_layers") or ()) and (
        (layer + 1) % (config.get("decoder_sparse_step") or 1) == 0
    )


def _resize_qwen3_moe(config: Config, widths: Widths) -> Fields:
    dense = widths.get("ffn", config["intermediate_size"])
    found = llama.resize(config, {**widths, "ffn": dense})
    if "expert" in widths:
        # The field's name differs between versions of transformers.
        named = "num_local_experts" if "num_local_experts" in config else "num_experts"
        found |= {"moe_intermediate_size": widths["expert_ffn"], named: widths["expert"]}
    return found


def _kept_qwen3_moe(config: Config, layers: tuple[int, ...]) -> Fields:
    # The class derives which layers are sparse from their index, which removal changes: the dense
    # ones are listed instead.
    return {
        "decoder_sparse_step": 1,
        "mlp_only_layers": [j for j, i in enumerate(layers) if not _sparse(config, i)],
    }


_DEFAULTS = {"num_key_value_heads": 4, "num_experts_per_tok": 8, "moe_intermediate_size": 768}
QWEN3_MOE = decoder(
    "qwen3_moe",
    modules=(*attention(), *gated(when="!sparse"), *_mixture(when="sparse")),
    more=llama.QK_NORM,
    fed_by=llama.FED,
    units={
        **llama.UNITS,
        "expert": lambda c, _: c.get("num_local_experts") or c["num_experts"],
        "route": lambda c, _: c.get("num_local_experts") or c["num_experts"],
        "expert_ffn": lambda c, _: c["moe_intermediate_size"],
    },
    flags={"sparse": _sparse, **flags(_sparse)},
    defaults={"qwen3_moe": _DEFAULTS},
    resize=_resize_qwen3_moe,
    depth_fields=_kept_qwen3_moe,
    **_TRAITS,
)


def _gpt_oss_experts() -> Iterator[Axis]:
    """Axes of experts with transposed weights, ``[experts, inputs, outputs]``, whose gate and up
    columns alternate: a channel owns two neighbours.
    """
    pair = (EXPERT_FFN, "pair")
    rows = {
        "gate_up_proj": (EXPERT, "hidden", pair),
        "gate_up_proj_bias": (EXPERT, pair),
        "down_proj": (EXPERT, EXPERT_FFN, "hidden"),
        "down_proj_bias": (EXPERT, "hidden"),
    }
    for param, names in rows.items():
        for dim, name in enumerate(names):
            yield side(LAYER + f"mlp.experts.{param}", dim, name)


def _gpt_oss_attributes(config: Config, widths: Widths) -> ModuleSizes:
    found = llama.repeats(config, widths)
    route = widths.get("route", widths["expert"])
    router = {"num_experts": route, "hidden_dim": widths["hidden"]}
    experts = {"num_experts": widths["expert"], "hidden_size": widths["hidden"]}
    experts["intermediate_size"] = widths["expert_ffn"]
    return {**found, "mlp.router": {**router}, "mlp.experts": {**experts}}


GPT_OSS = decoder(
    "gpt_oss",
    modules=(
        *attention(),
        # A learned logit of each query head, to which attention may go instead of to a token.
        Axis(LAYER + "self_attn.sinks", 0, ATTENTION + "/query.{i}"),
        *_rows(LAYER + "mlp.router.weight"),
        Axis(LAYER + "mlp.router.weight", 1, "hidden"),
        *_rows(LAYER + "mlp.router.bias"),
        *_gpt_oss_experts(),
        *_novices(),
    ),
    units=MIXTRAL.units,
    flags=flags(),
    positions_per_unit={**MIXTRAL.positions_per_unit, "pair": lambda _: 2},
    # The block returns the router's weights as well.
    sublayers={
        "attention_block": Sublayer("self_attn", 2, ("input_layernorm",)),
        "mlp_block": Sublayer("mlp", 2, ("post_attention_layernorm",)),
    },
    resize=_resize_mixtral,
    defaults={
        "gpt_oss": {
            **{"num_key_value_heads": 8, "head_dim": 64, "attention_bias": True},
            **{"num_local_experts": 128, "num_experts_per_tok": 4},
        }
    },
    **{**_TRAITS, "attributes": _gpt_oss_attributes, "router": LAYER + "mlp.router"},
    expert_inputs=1,
)


def _routed(config: Config, layer: int) -> bool:
    """Whether a layer of GLM-4.5 is a mixture: all but the first ones."""
    return layer >= config["first_k_dense_replace"]


def _least_grouped(config: Config) -> int:
    """Returns the experts that must stay: the groups chosen hold as many as a token is sent to, and
    every group the two by which groups are compared.
    """
    each = -(-config["num_experts_per_tok"] // config["topk_group"])
    return config["n_group"] * max(2, each)


def _resize_glm4_moe(config: Config, widths: Widths) -> Fields:
    found = llama.resize(config, {**widths, "ffn": widths.get("ffn", config["intermediate_size"])})
    if "expert" in widths:
        found |= {"moe_intermediate_size": widths["expert_ffn"]}
        found |= {"n_routed_experts": widths["expert"]}
    return found


def _pad_glm4_moe(config: Config, widths: Widths) -> dict[str, int]:
    # The class derives the width of the shared experts, which stay, from that of the others.
    return {**_pad(config, widths), "expert_ffn": config["moe_intermediate_size"]}


def _kept_glm4_moe(config: Config, layers: tuple[int, ...]) -> Fields:
    return {"first_k_dense_replace": sum(not _routed(config, i) for i in layers)}


_SHARED = LAYER + "mlp.shared_experts."
GLM4_MOE = decoder(
    "glm4_moe",
    modules=(
        *attention(o_bias=""),
        *gated(when="!routed"),
        *_mixture(when="routed"),
        # Every token goes through these: they are not chosen, and never cut.
        *linear(_SHARED + "gate_proj", "shared_ffn.{i}", "hidden", "routed"),
        *linear(_SHARED + "up_proj", "shared_ffn.{i}", "hidden", "routed"),
        *linear(_SHARED + "down_proj", "hidden", "shared_ffn.{i}", "routed"),
    ),
    more=tuple(replace(axis, when="use_qk_norm") for axis in llama.QK_NORM),
    fed_by=llama.FED,
    units={
        **llama.UNITS,
        "expert": lambda c, _: c["n_routed_experts"],
        "route": lambda c, _: c["n_routed_experts"],
        "expert_ffn": lambda c, _: c["moe_intermediate_size"],
        "shared_ffn": lambda c, _: c["moe_intermediate_size"] * c["n_shared_experts"],
    },
    derived={"shared_ffn": lambda c, w: w["expert_ffn"] * c["n_shared_experts"]},
    flags={"routed": _routed, **flags(_routed)},
    parts={"expert": _unless_kept(lambda c: c["n_group"])},
    defaults={
        "glm4_moe": {
            **{"num_key_value_heads": 8, "num_experts_per_tok": 8, "moe_intermediate_size": 1408},
            **{"first_k_dense_replace": 1, "n_routed_experts": 128, "n_shared_experts": 1},
            **{"n_group": 1, "topk_group": 1},
        }
    },
    resize=_resize_glm4_moe,
    depth_fields=_kept_glm4_moe,
    **{
        **_TRAITS,
        "floors": {"expert": _unless_kept(_least_grouped)},
        "pad": _pad_glm4_moe,
        "fixed": (*FIXED, "shared_ffn"),
    },
)
FAMILIES = (MIXTRAL, QWEN3_MOE, GPT_OSS, GLM4_MOE)

"""Multi-head latent attention: keys and values of all heads are made of one vector of low rank per
token, queries mostly of another. Both pass a norm of their own, and so do not lose channels here:
that norm would need another epsilon, and stock classes have it as a constant.

A head is its rows in the projections out of the two vectors, and its columns of the output. The
rotated part of the keys is one for all heads.
"""

import math
from collections.abc import Iterator
from typing import Any

from effcompress.model.families import llama
from effcompress.model.families.experts import DENSE, Groups, Mixture, after_first
from effcompress.model.families.llama import ATTENTION, LAYER, Name, decoder, gated, linear, side
from effcompress.model.families.shared import (
    BESIDE,
    FIRST,
    GROUPED,
    kept_after_first,
    kept_mixtures,
    listed_mixtures,
)
from effcompress.types import EXPERT_ROW, Axis, Config, Fields, ModuleSizes, Widths

QUERY, KEY_VALUE, VALUE = ((ATTENTION, part) for part in ("query", "key_value", "value"))
Q_RANK, KV_RANK = "q_rank", "kv_rank"


def latent_attention() -> Iterator[Axis]:
    """Axes of attention, with or without a vector of low rank for the queries (``q_lora_rank``)."""
    inside = LAYER + "self_attn."
    compressed: dict[str, tuple[Name, Name]] = {
        "q_a_proj": (Q_RANK, "hidden"),
        "q_b_proj": (QUERY, Q_RANK),
    }
    yield from linear(inside + "q_proj", QUERY, "hidden", "!q_lora_rank")
    for name, (out, into) in compressed.items():
        yield from linear(inside + name, out, into, "q_lora_rank")
    yield side(inside + "q_a_proj.bias", 0, Q_RANK, "bias_of_queries")
    yield side(inside + "q_a_layernorm.weight", 0, Q_RANK, "q_lora_rank")
    for out in (KV_RANK, "rotated"):
        yield side(inside + "kv_a_proj_with_mqa.weight", 0, out)
        yield side(inside + "kv_a_proj_with_mqa.bias", 0, out, "attention_bias")
    yield side(inside + "kv_a_proj_with_mqa.weight", 1, "hidden")
    yield side(inside + "kv_a_layernorm.weight", 0, KV_RANK)
    yield from linear(inside + "kv_b_proj", KEY_VALUE, KV_RANK)
    yield from llama.maybe_biased(inside + "o_proj", "hidden", VALUE, "attention_bias")


def _value(config: Config) -> int:
    return config.get("v_head_dim") or config["hidden_size"] // config["num_attention_heads"]


def _query(config: Config) -> int:
    return config["qk_nope_head_dim"] + config["qk_rope_head_dim"]


UNITS = {
    "attention": lambda c, _: c["num_attention_heads"],
    Q_RANK: lambda c, _: c["q_lora_rank"],
    KV_RANK: lambda c, _: c["kv_lora_rank"],
    "rotated": lambda c, _: c["qk_rope_head_dim"],
}


UNREACHED = {
    **dict.fromkeys(
        (Q_RANK, KV_RANK),
        "a norm over them would need another epsilon, which is a constant of the stock class",
    ),
    "rotated": "positions are rotated in all of it, once for all heads",
}


def _resize(_config: Config, widths: Widths) -> Fields:
    return {
        "hidden_size": widths["hidden"],
        "intermediate_size": widths["ffn"],
        "num_attention_heads": widths["attention"],
        "num_key_value_heads": widths["attention"],
    }


def _heads(_config: Config, widths: Widths) -> ModuleSizes:
    return {"self_attn": {"num_heads": widths["attention"]}}


def latent(traits: dict[str, Any]) -> dict[str, Any]:
    """Keywords of ``decoder`` for a model with latent attention, beside its other ``traits``."""
    attributes = traits["attributes"]
    return {
        **traits,
        "units": {**llama.UNITS, **traits.get("units", {}), **UNITS},
        "flags": {
            **traits.get("flags", {}),
            "bias_of_queries": lambda c, _: bool(c.get("attention_bias") and c.get("q_lora_rank")),
        },
        "positions_per_unit": {
            "one": lambda _: 1,
            "query": _query,
            "key_value": lambda c: c["qk_nope_head_dim"] + _value(c),
            "value": _value,
        },
        "attributes": lambda c, w: {**attributes(c, {**w, "query": 1}), **_heads(c, w)},
        "head_widths": lambda c: (_query(c), _value(c)),
        "latent": lambda c: c["kv_lora_rank"] + c["qk_rope_head_dim"],
        "fixed": (*traits["fixed"], Q_RANK, KV_RANK, "rotated"),
        "unreached": {**traits.get("unreached", {}), **UNREACHED},
    }


_LATENT = {"qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "kv_lora_rank": 512}
_V3 = Mixture(
    ("n_routed_experts", "num_local_experts"),
    sparse=after_first,
    groups=Groups(),
    shared=BESIDE,
    shared_count="n_shared_experts",
)
DEEPSEEK_V3 = decoder(
    "deepseek_v3",
    modules=(*latent_attention(), *gated(when=DENSE), *_V3.axes(), *_V3.beside_axes()),
    defaults={
        "deepseek_v3": {
            **_LATENT,
            **{"q_lora_rank": 1536, "v_head_dim": 128, FIRST: 3, "n_group": 8, "topk_group": 4},
            **{"n_routed_experts": 256, "n_shared_experts": 1, "num_experts_per_tok": 8},
            "moe_intermediate_size": 2048,
        }
    },
    depth_fields=kept_after_first,
    **latent(_V3.traits(_resize)),
)
_V2 = Mixture(
    ("n_routed_experts", "num_experts"),
    sparse=after_first,
    groups=Groups(best=1, there=lambda c: c.get("topk_method") == "group_limited_greedy"),
    shared=BESIDE,
    shared_count="n_shared_experts",
)
_V2_TRAITS = latent(_V2.traits(_resize))


def _pad_v2(config: Config, widths: Widths) -> dict[str, int]:
    step = math.lcm(widths["attention"], EXPERT_ROW)
    return {**_V2.pad(config, widths), "hidden": -(-widths["hidden"] // step) * step}


def _with_bias(when: str) -> Any:
    held = _V2_TRAITS["flags"][when]
    return lambda c, i: bool(c.get("mlp_bias")) and held(c, i)


DEEPSEEK_V2 = decoder(
    "deepseek_v2",
    modules=(
        *latent_attention(),
        *gated("bias_in_dense", DENSE),
        *_V2.axes(),
        *_V2.beside_axes("bias_in_shared"),
    ),
    required=(
        *("vocab_size", "hidden_size", "intermediate_size", *llama.COUNTS, "num_experts_per_tok"),
    ),
    defaults={
        "deepseek_v2": {
            **_LATENT,
            **{"q_lora_rank": 1536, "v_head_dim": 128, FIRST: 0, "topk_method": "greedy"},
            **{"n_routed_experts": 64, "n_shared_experts": 2, "moe_intermediate_size": 1407},
        }
    },
    whole_heads=lambda _: True,
    depth_fields=kept_after_first,
    **{
        **_V2_TRAITS,
        "flags": {
            **_V2_TRAITS["flags"],
            "bias_in_dense": lambda c, i: bool(c.get("mlp_bias")) and i < c[FIRST],
            "bias_in_shared": _with_bias("shared"),
        },
        "pad": _pad_v2,
    },
)
_LITE = Mixture(
    ("n_routed_experts", "num_local_experts"),
    sparse=listed_mixtures,
    groups=Groups(),
    shared=BESIDE,
    shared_count="n_shared_experts",
)
GLM4_MOE_LITE = decoder(
    "glm4_moe_lite",
    modules=(*latent_attention(), *gated(when=DENSE), *_LITE.axes(), *_LITE.beside_axes()),
    defaults={
        "glm4_moe_lite": {
            **{"qk_nope_head_dim": 192, "qk_rope_head_dim": 64, "kv_lora_rank": 512},
            **{"q_lora_rank": 768, "v_head_dim": 256, **GROUPED},
            **{"n_routed_experts": 64, "n_shared_experts": 1, "num_experts_per_tok": 4},
            "moe_intermediate_size": 1536,
        }
    },
    depth_fields=kept_mixtures,
    **latent(_LITE.traits(_resize)),
)


def _minicpm3_scale(config: Config) -> float:
    depth = config["num_hidden_layers"]
    return (config.get("scale_depth") or depth**0.5) / depth**0.5


def _minicpm3_kept(config: Config, layers: tuple[int, ...]) -> Fields:
    # The class divides by the root of the number of layers.
    return {"scale_depth": _minicpm3_scale(config) * len(layers) ** 0.5}


def _minicpm3_pad(_config: Config, widths: Widths) -> dict[str, int]:
    """Heads are added until they divide the hidden size, as the class wants it."""
    heads = range(widths["attention"], widths["hidden"] + 1)
    return {"attention": next(n for n in heads if widths["hidden"] % n == 0)}


MINICPM3 = decoder(
    "minicpm3",
    modules=(*latent_attention(), *gated("mlp_bias")),
    defaults={
        "minicpm3": {
            **{"qk_nope_head_dim": 64, "qk_rope_head_dim": 32, "kv_lora_rank": 256},
            **{"q_lora_rank": 768, "tie_word_embeddings": True, "scale_depth": 1.4},
        }
    },
    depth_fields=_minicpm3_kept,
    residual_scale=_minicpm3_scale,
    whole_heads=lambda _: True,
    **latent(
        {
            "attributes": llama.repeats,
            "resize": _resize,
            "pad": _minicpm3_pad,
            "fixed": ("vocab", "head_dim", "hidden"),
            "unreached": {
                "hidden": "the class divides what the output matrix reads by the ratio of the "
                "hidden size to a whole number"
            },
        }
    ),
)
FAMILIES = (DEEPSEEK_V3, DEEPSEEK_V2, GLM4_MOE_LITE, MINICPM3)

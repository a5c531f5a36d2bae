"""Mixtures beside whose routed experts every token goes through further ones: the shared experts.

Where the class derives their width from that of the routed ones they are never cut, because no
stock class could hold the result; where their width is a field, it is an axis kind, ``shared_ffn``.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from effcompress.model.families import llama
from effcompress.model.families.experts import (
    DENSE,
    EXPERT,
    EXPERT_FFN,
    GRANITE_MIXTURE,
    SHARED,
    SHARED_FFN,
    SPARSE,
    Groups,
    Mixture,
    after_first,
    dense_layers_listed,
    granite_blocks,
    granite_scale,
    kept_listed,
)
from effcompress.model.families.llama import FFN, LAYER, attention, decoder, gated, linear, side
from effcompress.types import Axis, Config, Fields, ModuleSizes, Sublayer, Widths

BESIDE = "mlp.shared_experts"
FIRST = "first_k_dense_replace"
GROUPED: dict[str, Any] = {"n_group": 1, "topk_group": 1}


def kept_after_first(config: Config, layers: tuple[int, ...]) -> Fields:
    """Fields of a model that keeps these layers, of which the first ones are dense."""
    return {
        **llama.listed_per_layer(config, layers),
        FIRST: sum(i < config[FIRST] for i in layers),
    }


_ROUTED = Mixture(
    ("n_routed_experts", "num_local_experts"),
    sparse=after_first,
    groups=Groups(),
    shared=BESIDE,
    shared_count="n_shared_experts",
)
"""Layers as in DeepSeek-V3: the first ones dense, shared experts as wide as so many of the rest."""
GLM4_MOE = decoder(
    "glm4_moe",
    modules=(
        *attention(o_bias=""),
        *gated(when=DENSE),
        *_ROUTED.axes(),
        *_ROUTED.beside_axes(),
    ),
    more=tuple(replace(axis, when="use_qk_norm") for axis in llama.QK_NORM),
    fed_by=llama.FED,
    defaults={
        "glm4_moe": {
            **{"num_key_value_heads": 8, "num_experts_per_tok": 8, "moe_intermediate_size": 1408},
            **{FIRST: 1, "n_routed_experts": 128, "n_shared_experts": 1, **GROUPED},
        }
    },
    depth_fields=kept_after_first,
    **_ROUTED.traits(),
)
DOTS1 = decoder(
    "dots1",
    modules=(*attention(), *gated(when=DENSE), *_ROUTED.axes(), *_ROUTED.beside_axes()),
    more=llama.QK_NORM,
    fed_by=llama.FED,
    # The class has no sizes of its own for these.
    required=(
        *("vocab_size", "hidden_size", "intermediate_size", *llama.COUNTS),
        *("n_routed_experts", "n_shared_experts", "num_experts_per_tok"),
    ),
    defaults={
        "dots1": {**{"num_key_value_heads": 32, "moe_intermediate_size": 1408, FIRST: 0, **GROUPED}}
    },
    depth_fields=kept_after_first,
    **_ROUTED.traits(),
)


def listed_mixtures(config: Config, layer: int) -> bool:
    """Whether a layer is a mixture, by the list of its sorts; all but the first ones without it."""
    listed = config.get("mlp_layer_types")
    return listed[layer] == "sparse" if listed else layer >= config.get(FIRST, 1)


def kept_mixtures(config: Config, layers: tuple[int, ...]) -> Fields:
    """Fields of a model that keeps these layers, whose sorts are listed."""
    sorts = ["sparse" if listed_mixtures(config, i) else "dense" for i in layers]
    return {**llama.listed_per_layer(config, layers), "mlp_layer_types": sorts}


_EXAONE = Mixture(
    ("num_experts", "num_local_experts"),
    sparse=listed_mixtures,
    groups=Groups(),
    shared=BESIDE,
    shared_count="num_shared_experts",
)
EXAONE_MOE = decoder(
    "exaone_moe",
    modules=(*attention("", ""), *gated(when=DENSE), *_EXAONE.axes(), *_EXAONE.beside_axes()),
    more=llama.QK_NORM,
    fed_by=llama.FED,
    defaults={
        "exaone_moe": {
            **{"num_key_value_heads": 32, "num_experts_per_tok": 8, "moe_intermediate_size": 1024},
            **{FIRST: 1, "num_experts": 64, "num_shared_experts": 1, **GROUPED},
        }
    },
    depth_fields=kept_mixtures,
    **_EXAONE.traits(),
)


def _ernie_sparse(config: Config, layer: int) -> bool:
    """Whether a layer is a mixture: every so many between a first and a last one."""
    last = config["moe_layer_end_index"]
    within = config["moe_layer_start_index"] <= layer and (last == -1 or layer <= last)
    return within and (layer + 1) % config["moe_layer_interval"] == 0


def _ernie_kept(config: Config, layers: tuple[int, ...]) -> Fields:
    sparse = [j for j, i in enumerate(layers) if _ernie_sparse(config, i)]
    ends = (sparse[0], sparse[-1]) if sparse else (len(layers), len(layers))
    return {"moe_layer_start_index": ends[0], "moe_layer_end_index": ends[1]}


def _ernie_no_depth(config: Config) -> str:
    said = "which layers are mixtures follows from their numbers (moe_layer_interval)"
    return said if config.get("moe_layer_interval", 1) > 1 else ""


_ERNIE = Mixture(
    ("moe_num_experts", "num_experts"),
    chosen="moe_k",
    sparse=_ernie_sparse,
    shared=BESIDE,
    shared_count="moe_num_shared_experts",
)
_ERNIE_TRAITS = _ERNIE.traits()
ERNIE4_5_MOE = decoder(
    "ernie4_5_moe",
    modules=(
        *attention("use_bias", "use_bias"),
        *gated("bias_in_dense", DENSE),
        *_ERNIE.axes(),
        *_ERNIE.beside_axes("bias_in_shared"),
        Axis("lm_head.bias", 0, "vocab", when="use_bias"),
        # A bias of the selection, here a parameter.
        *_ERNIE.rows("gate.moe_statics.e_score_correction_bias", 1),
        side(LAYER + "mlp.gate.moe_statics.e_score_correction_bias", 0, "one", SPARSE),
    ),
    defaults={
        "ernie4_5_moe": {
            **{"num_key_value_heads": 4, "tie_word_embeddings": True, "use_bias": False},
            **{"moe_k": 6, "moe_num_experts": 64, "moe_num_shared_experts": 2},
            **{"moe_intermediate_size": 1536, "moe_layer_start_index": 1},
            **{"moe_layer_end_index": -1, "moe_layer_interval": 1},
        }
    },
    untrained=(LAYER + "mlp.gate.moe_statics.e_score_correction_bias",),
    depth_fields=_ernie_kept,
    no_depth=_ernie_no_depth,
    **{
        **_ERNIE_TRAITS,
        "flags": {
            **_ERNIE_TRAITS["flags"],
            "bias_in_dense": lambda c, i: bool(c.get("use_bias")) and not _ernie_sparse(c, i),
            "bias_in_shared": lambda c, i: (
                bool(c.get("use_bias")) and _ERNIE_TRAITS["flags"]["shared"](c, i)
            ),
        },
    },
)
_QWEN2_MOE = Mixture(
    ("num_experts", "num_local_experts"),
    sparse=lambda config, layer: (
        dense_layers_listed(config, layer) and config.get("num_experts", 1) > 0
    ),
    shared="mlp.shared_expert",
    shared_width="shared_expert_intermediate_size",
)
QWEN2_MOE = decoder(
    "qwen2_moe",
    modules=(
        *attention("qkv_bias", ""),
        *gated(when=DENSE),
        *_QWEN2_MOE.axes(),
        *_QWEN2_MOE.beside_axes(),
        # How much of the shared expert is added, a number per token.
        *linear(LAYER + "mlp.shared_expert_gate", "one", "hidden", SPARSE),
    ),
    defaults={
        "qwen2_moe": {
            **{"num_key_value_heads": 16, "num_experts_per_tok": 4, "num_experts": 60},
            **{"moe_intermediate_size": 1408, "shared_expert_intermediate_size": 5632},
            "qkv_bias": True,
        }
    },
    depth_fields=kept_listed,
    **_QWEN2_MOE.traits(),
)
_GRANITE = replace(GRANITE_MIXTURE, shared="shared_mlp", shared_width="shared_intermediate_size")
_INPUT, _OUTPUT = LAYER + "shared_mlp.input_linear.weight", LAYER + "shared_mlp.output_linear"
GRANITE_SHARED = decoder(
    "granitemoeshared",
    modules=(
        *attention(),
        *_GRANITE.axes(),
        # Rows of all gates, then of all ups.
        *(side(_INPUT, d, x, SHARED) for d, x in ((0, SHARED_FFN), (0, SHARED_FFN), (1, "hidden"))),
        *linear(_OUTPUT, "hidden", SHARED_FFN, SHARED),
    ),
    sublayers=granite_blocks("shared_mlp"),
    residual_scale=granite_scale,
    defaults={
        "granitemoeshared": {
            **{"num_local_experts": 8, "num_experts_per_tok": 2, "shared_intermediate_size": 0}
        }
    },
    **_GRANITE.traits(),
)


def _llama4_sparse(config: Config, layer: int) -> bool:
    """Whether a layer is a mixture: those that are listed, or one in so many."""
    listed = config.get("moe_layers")
    if listed is not None:
        return layer in listed
    return (layer + 1) % config.get("interleave_moe_layer_step", 1) == 0


def _llama4_kept(config: Config, layers: tuple[int, ...]) -> Fields:
    sparse = [j for j, i in enumerate(layers) if _llama4_sparse(config, i)]
    return {**llama.listed_per_layer(config, layers), "moe_layers": sparse}


_LLAMA4 = Mixture(
    ("num_local_experts",),
    width="intermediate_size",
    sparse=_llama4_sparse,
    block="feed_forward",
    router="router",
    shared="feed_forward.shared_expert",
)
_LLAMA4_TRAITS = _LLAMA4.traits()


def _llama4_axes() -> Iterator[Axis]:
    """Axes of the feed-forward: experts with transposed weights, ``[experts, inputs, outputs]``,
    one that every token goes through and that is as wide as they are, or a dense one.
    """
    inside = LAYER + "feed_forward."
    rows = ((0, EXPERT), (1, "hidden"), (2, EXPERT_FFN), (2, EXPERT_FFN))
    yield from (Axis(inside + "experts.gate_up_proj", d, x, when=SPARSE) for d, x in rows)
    down = enumerate((EXPERT, EXPERT_FFN, "hidden"))
    yield from (Axis(inside + "experts.down_proj", d, x, when=SPARSE) for d, x in down)
    for name in ("gate_proj", "up_proj"):
        yield from linear(inside + name, FFN, "hidden", DENSE)
    yield from linear(inside + "down_proj", "hidden", FFN, DENSE)


def _llama4_resize(config: Config, widths: Widths) -> Fields:
    dense = {"intermediate_size_mlp": widths["ffn"]} if "ffn" in widths else {}
    return {**_LLAMA4_TRAITS["resize"](config, widths), **dense}


def _llama4_attributes(config: Config, widths: Widths) -> ModuleSizes:
    found = llama.repeats(config, widths)
    if "expert" not in widths:
        return found
    count, hidden = widths["expert"], widths["hidden"]
    mixture = {"num_experts": count, "hidden_dim": hidden}
    experts = {"num_experts": count, "hidden_size": hidden, "intermediate_size": 0}
    experts["intermediate_size"] = experts["expert_dim"] = widths["expert_ffn"]
    router = {"num_experts": count}
    return {
        **found,
        "feed_forward": {**mixture},
        "feed_forward.router": {**router},
        "feed_forward.experts": {**experts},
    }


def _llama4_pad(config: Config, _widths: Widths) -> dict[str, int]:
    return {"expert_ffn": config["intermediate_size"]}


_ATTENTION = LAYER + "self_attn."
LLAMA4 = decoder(
    "llama4_text",
    modules=(
        *attention(),
        *_LLAMA4.routed(),
        *_LLAMA4.beside_axes(),
        *_llama4_axes(),
    ),
    sublayers={
        "attention_block": Sublayer("self_attn", 2, ("input_layernorm",)),
        # A mixture also returns the router's logits.
        "mlp_block": Sublayer(
            "feed_forward",
            1,
            ("post_attention_layernorm",),
            outputs_more=lambda c, i: int(_llama4_sparse(c, i)),
        ),
    },
    # One norm without a gain for both, in layers that rotate.
    fed_by={_ATTENTION + "qk_norm": (_ATTENTION + "q_proj", _ATTENTION + "k_proj")},
    epsilon_attribute="eps",
    required=(
        *("vocab_size", "hidden_size", "intermediate_size", *llama.COUNTS),
        "intermediate_size_mlp",
    ),
    defaults={
        "llama4_text": {
            **{"num_key_value_heads": 8, "head_dim": 128, "interleave_moe_layer_step": 1},
            **{"num_local_experts": 16, "num_experts_per_tok": 1},
        }
    },
    depth_fields=_llama4_kept,
    expert_inputs=1,
    inputs_weighed=True,
    **{
        **_LLAMA4_TRAITS,
        "units": {**_LLAMA4_TRAITS["units"], "ffn": lambda c, _: c["intermediate_size_mlp"]},
        "resize": _llama4_resize,
        "attributes": _llama4_attributes,
        "pad": _llama4_pad,
        # No grouped kernels.
        "multiples": {},
    },
)
FAMILIES = (GLM4_MOE, DOTS1, EXAONE_MOE, ERNIE4_5_MOE, QWEN2_MOE, GRANITE_SHARED, LLAMA4)

"""Mixtures beside whose routed experts every token goes through further ones: the shared experts.

Where the class derives their width from that of the routed ones they are never cut, because no
stock class could hold the result; where their width is a field, it is an axis kind, ``shared_ffn``.
"""

from dataclasses import replace
from typing import Any

from effcompress.model.families import llama
from effcompress.model.families.experts import (
    DENSE,
    GRANITE_MIXTURE,
    SHARED,
    SHARED_FFN,
    SPARSE,
    Groups,
    Mixture,
    after_first,
    dense_layers_listed,
    granite_blocks,
    kept_listed,
)
from effcompress.model.families.llama import LAYER, attention, decoder, gated, linear, side
from effcompress.types import Axis, Config, Fields, Residual

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
    sparse=after_first(),
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
        # A bias of the selection, as a parameter that nothing trains.
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
    residual=lambda _: Residual(mlp=("block_sparse_moe",)),
    defaults={
        "granitemoeshared": {
            **{"num_local_experts": 8, "num_experts_per_tok": 2, "shared_intermediate_size": 0}
        }
    },
    **_GRANITE.traits(),
)
FAMILIES = (GLM4_MOE, DOTS1, EXAONE_MOE, ERNIE4_5_MOE, QWEN2_MOE, GRANITE_SHARED)

"""Further decoders of Llama's shape, each with a difference or two: other places of norms, fused or
ungated feed-forwards, multipliers, windows.
"""

from dataclasses import replace
from typing import Any

from effcompress.model.families import llama
from effcompress.model.families.llama import (
    ATTENTION,
    FFN,
    LAYER,
    QUERY,
    attention,
    decoder,
    fused_gated,
    head_dim,
    qk_norms,
    side,
    ungated,
)
from effcompress.types import Axis, Config, Widths


def _multiplier(config: Config) -> float:
    return float(config.get("residual_multiplier", 1.0))


_STATED = (*llama.LLAMA.required, "head_dim")
"""Required fields of classes that cannot be built without a stated width of heads."""
MINISTRAL = decoder(
    "ministral",
    qkv_bias="",
    o_bias="",
    required=_STATED,
    defaults={"ministral": {"num_key_value_heads": 8}},
)
MINISTRAL3 = decoder(
    "ministral3",
    qkv_bias="",
    o_bias="",
    defaults={"ministral3": {"num_key_value_heads": 8, "head_dim": 128}},
)
GRANITE = decoder("granite", mlp_bias="mlp_bias", residual_scale=_multiplier)
GRANITE_SWA = decoder(
    "granite_swa",
    mlp_bias="mlp_bias",
    more=(Axis(LAYER + "self_attn.sinks", 0, ATTENTION + "/query.{i}"),),
    residual_scale=_multiplier,
    defaults={"granite_swa": {"tie_word_embeddings": True, "num_key_value_heads": 4}},
)
SEED_OSS = decoder(
    "seed_oss",
    o_bias="attention_out_bias",
    mlp_bias="mlp_bias",
    defaults={"seed_oss": {"attention_bias": True, "num_key_value_heads": 8, "head_dim": 128}},
)
CWM = decoder(
    "cwm",
    qkv_bias="",
    o_bias="",
    mlp_bias="mlp_bias",
    defaults={"cwm": {"num_key_value_heads": 8, "head_dim": 128}},
    containers=("cwm", "ministral"),
    # CWM wants it, Ministral does not, but has no biases.
    whole_heads=lambda c: bool(c.get("mlp_bias")),
)
IQUEST_CODER = decoder(
    "iquestcoder",
    mlp_bias="mlp_bias",
    defaults={"iquestcoder": {"num_key_value_heads": 8, "head_dim": 128}},
    # The model is Llama's under another name; biases are refused by Mistral.
    containers=("iquestcoder", "mistral"),
    whole_heads=lambda c: bool(c.get("attention_bias") or c.get("mlp_bias")),
)


def _internlm3_biased(config: Config, _layer: int) -> bool:
    # Files of the authors say `qkv_bias` and `bias`, which must agree.
    return bool(config.get("qkv_bias", config.get("attention_bias", False)))


INTERNLM3 = replace(
    IQUEST_CODER,
    name="internlm3",
    model_types=("internlm3",),
    flags=dict.fromkeys(("attention_bias", "mlp_bias"), _internlm3_biased),
    defaults={"internlm3": {"num_key_value_heads": 2, "head_dim": 128}},
    containers=("internlm3", "mistral"),
    whole_heads=lambda c: _internlm3_biased(c, 0),
)
ERNIE4_5 = decoder(
    "ernie4_5",
    qkv_bias="use_bias",
    o_bias="use_bias",
    mlp_bias="use_bias",
    defaults={"ernie4_5": {"tie_word_embeddings": True, "num_key_value_heads": 2, "head_dim": 128}},
)
HYPERCLOVAX = decoder(
    "hyperclovax",
    mlp_bias="mlp_bias",
    attention_norms=("input_layernorm", "post_norm1"),
    mlp_norms=("post_attention_layernorm", "post_norm2"),
    behind="use_post_norm",
    residual_scale=_multiplier,
    whole_heads=lambda _: True,
    defaults={"hyperclovax": {"use_post_norm": True}},
)
HUNYUAN = decoder(
    "hunyuan_v1_dense",
    required=_STATED,
    more=qk_norms("query_layernorm", "key_layernorm"),
    fed_by={
        LAYER + "self_attn.query_layernorm": LAYER + "self_attn.q_proj",
        LAYER + "self_attn.key_layernorm": LAYER + "self_attn.k_proj",
    },
)
EXAONE4 = decoder(
    "exaone4",
    qkv_bias="",
    o_bias="",
    attention_norms=("post_attention_layernorm",),
    mlp_norms=("post_feedforward_layernorm",),
    behind=True,
    more=llama.QK_NORM,
    fed_by=llama.FED,
    defaults={"exaone4": {"num_key_value_heads": 32}},
)
_GLM: dict[str, Any] = {
    "modules": (
        *attention(o_bias=""),
        *fused_gated(),
    )
}
GLM = decoder(
    "glm",
    defaults={"glm": {"attention_bias": True, "num_key_value_heads": 2, "head_dim": 128}},
    **_GLM,
)
GLM4 = decoder(
    "glm4",
    attention_norms=("input_layernorm", "post_self_attn_layernorm"),
    mlp_norms=("post_attention_layernorm", "post_mlp_layernorm"),
    behind=True,
    defaults={"glm4": {"attention_bias": True, "num_key_value_heads": 2, "head_dim": 128}},
    **_GLM,
)
ARCEE = decoder(
    "arcee",
    modules=(*attention(), *ungated("mlp_bias")),
    whole_heads=lambda _: True,
)
_GEMMA: dict[str, Any] = {
    "gain_offset": 1.0,
    "scaled_embedding": "model.embed_tokens.weight",
    "epsilon_attribute": "eps",
}
GEMMA = decoder(
    "gemma",
    defaults={"gemma": {"tie_word_embeddings": True, "num_key_value_heads": 16, "head_dim": 256}},
    **_GEMMA,
)
VAULTGEMMA = decoder(
    "vaultgemma",
    mlp_norms=("pre_feedforward_layernorm",),
    whole_heads=lambda _: True,
    defaults={
        "vaultgemma": {"tie_word_embeddings": True, "num_key_value_heads": 4, "head_dim": 256}
    },
    **_GEMMA,
)


def _pad_square(config: Config, widths: Widths) -> dict[str, int]:
    """Pads until heads fill the hidden size, which the class's output projection reads."""
    each = widths["query"] * head_dim(config)
    heads = max(widths["attention"], -(-widths["hidden"] // each))
    return {"attention": heads, "hidden": heads * each}


HELIUM = decoder(
    "helium",
    o_bias="",
    mlp_bias="mlp_bias",
    pad=_pad_square,
    defaults={"helium": {"num_key_value_heads": 20, "head_dim": 128}},
)
_SUB_NORMS = {
    LAYER + "self_attn.attn_sub_norm": (LAYER + "self_attn.v_proj", QUERY),
    LAYER + "mlp.ffn_sub_norm": (LAYER + "mlp.up_proj", FFN),
}
"""Norm in front of a projection into the stream -> the layer that its inputs are linear in, and
what it averages over.
"""
BITNET = decoder(
    "bitnet",
    more=tuple(side(f"{norm}.weight", 0, over) for norm, (_, over) in _SUB_NORMS.items()),
    head_norms=tuple(f"{norm}.weight" for norm in _SUB_NORMS),
    fed_by={norm: linear for norm, (linear, _) in _SUB_NORMS.items()},
    pad=_pad_square,
    fixed=("vocab", "head_dim", "query"),
    unreached={
        "query": "a masked query still attends to all alike, and a norm averages over its output"
    },
    approximate=dict.fromkeys(
        ("attention", "ffn"),
        "the outputs of all heads, and of all channels, pass a norm: without some of them the "
        "others are scaled anew",
    ),
    defaults={"bitnet": {"num_key_value_heads": 5}},
)
NANOCHAT = decoder(
    "nanochat",
    modules=(*attention(), *ungated(up="fc1", down="fc2")),
    gains=False,
    fixed=("vocab", "head_dim", "hidden"),
    unreached={"hidden": "without gains, norms cannot undo that they average over fewer channels"},
)
FAMILIES = (
    *(MINISTRAL, MINISTRAL3, GRANITE, GRANITE_SWA, SEED_OSS, CWM, IQUEST_CODER, INTERNLM3),
    *(ERNIE4_5, HYPERCLOVAX, HUNYUAN, EXAONE4, GLM, GLM4, ARCEE),
    *(GEMMA, VAULTGEMMA, HELIUM, BITNET, NANOCHAT),
)

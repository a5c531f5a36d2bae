"""What llama.cpp computes of each model type, beside Llama's and Mistral's own way through
``write``: its name of the architecture, where its tensors differ from transformers', what its
header states, and which configurations it has no place for.

Each row was found by opening tiny models of the type in llama.cpp
(``tests/model/test_gguf_architectures.py``).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from gguf import MODEL_ARCH as ARCH
from gguf import MODEL_ARCH_NAMES
from gguf import MODEL_TENSOR as TENSOR

from effcompress.model.gguf import mixers
from effcompress.model.gguf import stated as keys
from effcompress.model.gguf.geometry import head_dim, heads_of, layers_of, rope_kind, rope_of
from effcompress.model.gguf.stated import Stated
from effcompress.types import Config

GELU_TANH = ("gelu_pytorch_tanh", "gelu_new", "gelu_fast")
SILU = ("silu", "swish")
_NEVER: Mapping[str, tuple[Any, ...]] = {"attention_bias": (False, None), "mlp_bias": (False, None)}


def _never(config: Config) -> str:
    del config
    return ""


@dataclass(frozen=True)
class Architecture:
    """How llama.cpp computes a model type."""

    arch: ARCH
    activations: tuple[str, ...] = SILU
    layer_norm: bool = False
    """Norms subtract the mean (LayerNorm); else RMSNorm."""
    pairs: bool = False
    """Rope rotates channels ``2 i`` with ``2 i + 1``; else ``i`` with ``i + head_dim / 2``, as
    transformers do.
    """
    only: Mapping[str, tuple[Any, ...]] = field(default_factory=dict[str, tuple[Any, ...]])
    """Fields of the configuration -> the values that llama.cpp computes."""
    gain: float = 0.0
    """Added to the weights of norms: transformers multiply by ``1 + weight``."""
    stated: Callable[[Config], Stated] = keys.nothing
    """Header fields that the type has beside the common ones."""
    heads: Callable[[Config], Stated] = keys.plain_heads
    """Header fields of heads and of what rope rotates of them."""
    why_not: Callable[[Config], str] = _never
    """Why a configuration has no place in llama.cpp, beyond ``only``; empty if it has."""
    why_not_sizes: Callable[[Config], str] = _never
    """Why its sizes have none."""
    kinds: tuple[str, ...] = ("sliding_attention", "full_attention")
    """Kinds of layers."""
    period: int = 0
    """All layers but each ``period``-th attend within the window; 0: llama.cpp has no windows, -1:
    the header says in which layers.
    """
    partial: bool = False
    """Rope may rotate a part of every head."""
    rotated_by_kind: bool = False
    """Layers with a window and without one rotate otherwise, so a period is needed even in texts
    shorter than the window.
    """
    local_base: float = 0.0
    """Rope's base in layers with a window, which no header states; 0: that of the others."""
    transposed: bool = False
    """Linear layers are stored inputs first."""
    fused: Literal["", "head", "group"] = ""
    """The fused matrix of queries, keys and values has those of a head together, or of a KV head
    and the query heads that share it.
    """
    inputs_first: bool = False
    """Experts are stored inputs first."""
    in_turns: bool = False
    """Channels of experts' gate and up projection are stored in turns."""
    changes: Mapping[TENSOR, mixers.Change] = field(default_factory=dict[TENSOR, mixers.Change])
    """How tensors of the type are stored beyond what is common."""
    divisors: Callable[[Config], list[float]] | None = None
    """Divisors of rope's frequencies, one per pair of channels; ``why_not`` then judges rope."""
    widths: bool = False
    """The header has the width of every layer's feed-forward block."""
    numbered: str = ""
    """What llama.cpp tells from the numbers of layers, which therefore cannot go."""
    latent: bool = False
    """Keys and values are made of one latent vector (MLA)."""
    square: bool = False
    """Heads must fill the hidden size: ``heads x head_dim == hidden``."""
    otherwise: "Architecture | None" = None
    """How llama.cpp computes the type where they do not."""
    rotates: bool = True
    """Rope; else a table of positions, or ALiBi."""
    no_rope: int = 0
    """Each ``no_rope``-th layer does not rotate."""
    shared_width: bool = False
    """The header has the width of experts in the place of that of dense layers."""
    own_output: bool = False
    """The output matrix must be in the file even where it is the embedding."""
    unties: bool = False
    """The class has an output matrix of its own, whatever ``tie_word_embeddings`` says."""
    rope_factors: bool = False
    """Llama 3's rope is computed, from a tensor of divisors."""
    yarn: bool = False
    """YaRN's rope is computed."""
    query_scale: Callable[[Config], float] | None = None
    """What llama.cpp multiplies products of queries and keys by, where transformers' factor is
    another one (``query_pre_attn_scalar``); the queries then carry the ratio.
    """
    scaled: TENSOR = TENSOR.ATTN_Q
    """The tensor that carries it."""

    @property
    def name(self) -> str:
        """llama.cpp's name."""
        return MODEL_ARCH_NAMES[self.arch]


def _gemma_scale(big: int) -> Callable[[Config], float]:
    """llama.cpp tells the largest Gemma by its ``big`` layers, and scales it otherwise."""

    def scale(config: Config) -> float:
        whole = int(config["hidden_size"]) / int(config["num_attention_heads"])
        return (whole if config["num_hidden_layers"] == big else head_dim(config)) ** -0.5

    return scale


LITE = (26, 27)
"""Numbers of layers by which llama.cpp tells models without a latent vector of the queries."""


def _alone(config: Config) -> str:
    """llama.cpp reads as many keys as queries."""
    heads, kv_heads = heads_of(config)
    if heads == kv_heads:
        return ""
    return (
        f"llama.cpp takes {config['model_type']} models whose heads have keys and values of their "
        f"own, and here {heads} share {kv_heads}"
    )


def _not_by_ramp(config: Config) -> str:
    """gpt-oss multiplies what rope makes by YaRN's own factor alone."""
    rope = rope_of(config)
    given = [key for key in ("attention_factor", "mscale", "mscale_all_dim") if rope.get(key)]
    if rope_kind(rope) != "yarn" or not given:
        return ""
    return f"llama.cpp has no {given[0]} of YaRN in {config['model_type']} models"


def _latent(config: Config) -> str:
    """What llama.cpp's one class of latent attention has no place for."""
    name, rope = config["model_type"], rope_of(config)
    if config.get("q_lora_rank") is None and layers_of(config) not in LITE:
        return (
            f"llama.cpp takes {name} models without a latent vector of the queries (q_lora_rank: "
            f"null) with {LITE[0]} or {LITE[1]} layers alone, and here it is {layers_of(config)}"
        )
    if rope_kind(rope) == "yarn":
        scale, of_all = (float(rope.get(key) or 0) for key in ("mscale", "mscale_all_dim"))
        if not scale or scale != of_all or rope.get("attention_factor"):
            return (
                f"llama.cpp computes YaRN of {name} models where mscale and mscale_all_dim are one "
                f"number, here they are {scale:g} and {of_all:g}"
            )
    return ""


def _routed_behind_dense(config: Config) -> str:
    kinds = [str(kind) for kind in config.get("mlp_layer_types") or []]
    if kinds != sorted(kinds):  # dense, then sparse
        return f"llama.cpp has dense layers of {config['model_type']} models in front alone"
    return _latent(config)


def _of_both_kinds(config: Config) -> str:
    """llama.cpp's memory of such models has a part for either kind, and an empty part ends it."""
    kinds = config.get("layer_types") or []
    full = kinds.count("full_attention") if kinds else len(config.get("full_attn_idxs") or [])
    if 0 < full < layers_of(config):
        return ""
    return f"llama.cpp opens {config['model_type']} models with layers of both kinds alone"


def _to_the_last(config: Config) -> str:
    last = layers_of(config) - 1
    end = int(config.get("moe_layer_end_index", last))
    if end in (-1, last):
        return ""
    return (
        f"llama.cpp has experts of {config['model_type']} models up to the last layer, {last}, and "
        f"here they end with layer {end}"
    )


_LLAMA = Architecture(ARCH.LLAMA, pairs=True, rope_factors=True)
_ALL_EXPERTS = {"mlp_only_layers": ([], (), None), "decoder_sparse_step": (1, None)}
_MLA: dict[str, Any] = {"yarn": True, "latent": True, "heads": keys.latent_heads}
_TIED = {"tie_word_embeddings": (True,)}
"""llama.cpp has no output matrix beside the embedding."""
_GEMMA = GELU_TANH
ARCHITECTURES: Mapping[str, Architecture] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": Architecture(
        ARCH.QWEN2, square=True, otherwise=_LLAMA, only={"mlp_bias": (False, None)}
    ),
    "qwen3": Architecture(ARCH.QWEN3, only=_NEVER),
    "gemma": Architecture(ARCH.GEMMA, _GEMMA, gain=1, only={**_NEVER, **_TIED}),
    "gemma2": Architecture(
        ARCH.GEMMA2,
        _GEMMA,
        gain=1,
        only={**_NEVER, **_TIED},
        stated=keys.gemma2,
        period=2,
        query_scale=_gemma_scale(46),
    ),
    "gemma3_text": Architecture(
        ARCH.GEMMA3,
        _GEMMA,
        gain=1,
        only={
            **_NEVER,
            "attn_logit_softcapping": (None,),
            "final_logit_softcapping": (None,),
            "use_bidirectional_attention": (False, None),
        },
        period=6,
        rotated_by_kind=True,
        local_base=1e4,
        query_scale=_gemma_scale(62),
        scaled=TENSOR.ATTN_Q_NORM,
    ),
    "phi3": Architecture(ARCH.PHI3, partial=True, square=True, otherwise=_LLAMA),
    "olmo2": Architecture(ARCH.OLMO2, square=True, only=_NEVER, own_output=True),
    "smollm3": Architecture(ARCH.SMOLLM3, pairs=True, only=_NEVER, rope_factors=True, no_rope=4),
    "mixtral": Architecture(ARCH.LLAMA, pairs=True, rope_factors=True, shared_width=True),
    "qwen3_moe": Architecture(
        ARCH.QWEN3MOE, only={**_NEVER, **_ALL_EXPERTS, "norm_topk_prob": (True,)}
    ),
    "qwen2_moe": Architecture(
        ARCH.QWEN2MOE,
        square=True,
        own_output=True,
        only={**_ALL_EXPERTS, "norm_topk_prob": (False,)},
        stated=keys.shared_ffn,
    ),
    "olmoe": Architecture(
        ARCH.OLMOE,
        square=True,
        own_output=True,
        only={**_NEVER, "clip_qkv": (None,), "norm_topk_prob": (False,)},
        why_not=_alone,
    ),
    "granite": Architecture(ARCH.GRANITE, pairs=True, rope_factors=True, stated=keys.granite),
    "gpt2": Architecture(
        ARCH.GPT2,
        GELU_TANH,
        layer_norm=True,
        transposed=True,
        rotates=False,
        only={"scale_attn_by_inverse_layer_idx": (False, None), "scale_attn_weights": (True, None)},
    ),
    "gpt_neox": Architecture(
        ARCH.GPTNEOX,
        ("gelu", *GELU_TANH),
        layer_norm=True,
        stated=keys.parallel("use_parallel_residual"),
        only={"attention_bias": (True, None)},
        own_output=True,
        fused="head",
        partial=True,
    ),
    "starcoder2": Architecture(
        ARCH.STARCODER2,
        GELU_TANH,
        square=True,
        layer_norm=True,
        only={"use_bias": (True, None)},
    ),
    "stablelm": Architecture(
        ARCH.STABLELM,
        square=True,
        layer_norm=True,
        partial=True,
        stated=keys.parallel("use_parallel_residual"),
        own_output=True,
    ),
    "phi": Architecture(
        ARCH.PHI2,
        GELU_TANH,
        square=True,
        layer_norm=True,
        partial=True,
        own_output=True,
        only={"qk_layernorm": (False, None)},
    ),
    "cohere": Architecture(
        ARCH.COMMAND_R,
        square=True,
        layer_norm=True,
        only={**_NEVER, **_TIED, "use_qk_norm": (False, None)},
        stated=keys.logit_scale,
    ),
    "cohere2": Architecture(
        ARCH.COHERE2,
        square=True,
        layer_norm=True,
        only={**_NEVER, **_TIED},
        stated=keys.logit_scale,
        period=4,
        rotated_by_kind=True,
    ),
    "arcee": Architecture(ARCH.ARCEE, ("relu2",), pairs=True, only=_NEVER, rope_factors=True),
    "ernie4_5": Architecture(ARCH.ERNIE4_5, only={"use_bias": (False, None)}),
    "seed_oss": Architecture(
        ARCH.SEED_OSS, only={"attention_out_bias": (False, None), "mlp_bias": (False, None)}
    ),
    "hunyuan_v1_dense": Architecture(ARCH.HUNYUAN_DENSE, only=_NEVER),
    "nemotron": Architecture(
        ARCH.NEMOTRON,
        ("relu2",),
        square=True,
        layer_norm=True,
        partial=True,
        gain=1,
        own_output=True,
    ),
    "olmo3": Architecture(ARCH.OLMO2, square=True, only=_NEVER, period=4, own_output=True),
    "glm4": Architecture(ARCH.GLM4, partial=True),
    "glm": Architecture(ARCH.CHATGLM, square=True, partial=True),
    "exaone4": Architecture(
        ARCH.EXAONE4, square=True, rope_factors=True, only={**_NEVER, "sliding_window": (None,)}
    ),
    "ministral": _LLAMA,
    "olmo": Architecture(
        ARCH.OLMO, square=True, layer_norm=True, pairs=True, only=_NEVER, stated=keys.clamp
    ),
    "granitemoe": Architecture(
        ARCH.GRANITE_MOE, pairs=True, rope_factors=True, stated=keys.granite
    ),
    "glm4_moe": Architecture(
        ARCH.GLM4_MOE,
        partial=True,
        only={"attention_bias": (True,)},
        stated=keys.glm4_moe,
    ),
    "gpt_bigcode": Architecture(
        ARCH.STARCODER,
        GELU_TANH,
        layer_norm=True,
        rotates=False,
        only={"multi_query": (True,), "scale_attn_weights": (True, None)},
    ),
    "falcon": Architecture(
        ARCH.FALCON,
        ("gelu", *GELU_TANH),
        layer_norm=True,
        fused="group",
        only={"alibi": (False,), "parallel_attn": (True,), "bias": (False,)},
    ),
    "bloom": Architecture(
        ARCH.BLOOM,
        GELU_TANH,
        layer_norm=True,
        rotates=False,
        fused="head",
        only={"apply_residual_connection_post_layernorm": (False, None)},
    ),
    "gpt_oss": Architecture(
        ARCH.GPT_OSS,
        yarn=True,
        own_output=True,
        inputs_first=True,
        in_turns=True,
        period=2,
        only={
            "attention_bias": (True, None),
            "swiglu_alpha": (1.702, None),
            "swiglu_limit": (7.0, None),
        },
        why_not=_not_by_ramp,
    ),
    "deepseek_v2": Architecture(
        ARCH.DEEPSEEK2,
        **_MLA,
        stated=keys.deepseek_v2,
        only={**_NEVER, "topk_method": ("greedy", None)},
        why_not=_latent,
    ),
    "deepseek_v3": Architecture(
        ARCH.DEEPSEEK2,
        **_MLA,
        stated=keys.deepseek_v3,
        only={**_NEVER, "rope_interleave": (True, None)},
        why_not=_latent,
    ),
    "glm4_moe_lite": Architecture(
        ARCH.DEEPSEEK2,
        **_MLA,
        stated=keys.deepseek_v3,
        only={**_NEVER, "rope_interleave": (True, None)},
        why_not=_routed_behind_dense,
    ),
    "dots1": Architecture(
        ARCH.DOTS1, own_output=True, only=_NEVER, stated=keys.routed, why_not=_alone
    ),
    "ernie4_5_moe": Architecture(
        ARCH.ERNIE4_5_MOE,
        only={"use_bias": (False, None), "moe_layer_interval": (1, None)},
        stated=keys.ernie4_5_moe,
        why_not=_to_the_last,
    ),
    "minimax_m2": Architecture(
        ARCH.MINIMAXM2, partial=True, own_output=True, shared_width=True, stated=keys.sigmoid
    ),
    "lfm2": Architecture(
        ARCH.LFM2,
        square=True,
        heads=keys.heads_or_none,
        stated=keys.convolution,
        kinds=("conv", "full_attention"),
        why_not=_of_both_kinds,
        only={"conv_bias": (False, None)},
    ),
    "lfm2_moe": Architecture(
        ARCH.LFM2MOE,
        square=True,
        heads=keys.heads_or_none,
        stated=keys.lfm2_moe,
        kinds=("conv", "full_attention"),
        why_not=_of_both_kinds,
        only={
            **_TIED,
            "conv_bias": (False, None),
            "use_expert_bias": (True, None),
            "norm_topk_prob": (True, None),
            "routed_scaling_factor": (1.0, None),
        },
    ),
    "falcon_h1": Architecture(
        ARCH.FALCON_H1,
        stated=mixers.falcon_h1,
        changes=mixers.FALCON_H1,
        own_output=True,
        why_not=mixers.no_falcon_h1,
        why_not_sizes=mixers.falcon_h1_sizes,
        only={
            **_NEVER,
            **{"mamba_conv_bias": (True, None), "mamba_proj_bias": (False, None)},
            "projectors_bias": (False, None),
        },
    ),
    "nemotron_h": Architecture(
        ARCH.NEMOTRON_H,
        heads=mixers.nemotron_heads,
        stated=mixers.nemotron_h,
        changes=mixers.NEMOTRON_H,
        rotates=False,
        widths=True,
        unties=True,
        why_not=mixers.no_nemotron_h,
        why_not_sizes=mixers.nemotron_h_sizes,
        only={
            **_NEVER,
            **{"use_bias": (False, None), "mamba_proj_bias": (False, None)},
            **{"use_conv_bias": (True, None), "sliding_window": (None,)},
            **{"mlp_hidden_act": ("relu2",), "mamba_hidden_act": ("silu",)},
        },
    ),
    "qwen3_next": Architecture(
        ARCH.QWEN3NEXT,
        gain=1,
        partial=True,
        stated=mixers.qwen3_next,
        changes=mixers.QWEN3_NEXT,
        kinds=("linear_attention", "full_attention"),
        numbered="full attention",
        why_not=mixers.no_qwen3_next,
        only={**_NEVER, **_ALL_EXPERTS, "norm_topk_prob": (True,)},
    ),
    "gemma4_text": Architecture(
        ARCH.GEMMA4,
        _GEMMA,
        heads=mixers.gemma4_heads,
        stated=mixers.gemma4,
        divisors=mixers.proportional,
        period=-1,
        partial=True,
        widths=True,
        why_not=mixers.no_gemma4,
        only={
            **_NEVER,
            "enable_moe_block": (False, None),
            "use_bidirectional_attention": (None, "vision"),
        },
    ),
    "llama4_text": Architecture(
        ARCH.LLAMA4,
        rope_factors=True,
        no_rope=4,
        inputs_first=True,
        stated=mixers.llama4,
        kinds=("chunked_attention", "full_attention"),
        why_not=mixers.no_llama4,
        only=_NEVER,
    ),
}
"""``model_type`` -> how llama.cpp computes it."""

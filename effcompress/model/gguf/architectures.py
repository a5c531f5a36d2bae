"""What llama.cpp computes of each model type, beside Llama's and Mistral's own way through
``write``: its name of the architecture, where its tensors differ from transformers', what its
header states, and which configurations it has no place for.

Each row was found by opening tiny models of the type in llama.cpp
(``tests/model/test_gguf_architectures.py``).
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from gguf import MODEL_ARCH as ARCH
from gguf import MODEL_ARCH_NAMES, ExpertGatingFuncType
from gguf import MODEL_TENSOR as TENSOR

from effcompress.model.gguf.geometry import head_dim
from effcompress.types import Config

Stated = Iterator[tuple[str, Any]]
"""What the header states: methods of ``GGUFWriter`` without ``add_``, and their value."""
GELU_TANH = ("gelu_pytorch_tanh", "gelu_new", "gelu_fast")
SILU = ("silu", "swish")
_NEVER: Mapping[str, tuple[Any, ...]] = {"attention_bias": (False, None), "mlp_bias": (False, None)}


def _nothing(config: Config) -> Stated:
    del config
    yield from ()


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
    stated: Callable[[Config], Stated] = _nothing
    """Header fields that the type has beside the common ones."""
    period: int = 0
    """All layers but each ``period``-th attend within the window; 0: llama.cpp has no windows."""
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
    fused: str = ""
    """``head``: the fused matrix of queries, keys and values has those of a head together."""
    square: bool = False
    """Heads must fill the hidden size: ``heads x head_dim == hidden``."""
    otherwise: "Architecture | None" = None
    """How llama.cpp computes the type where they do not."""
    positions: bool = False
    """A table of positions instead of rope."""
    no_rope: int = 0
    """Each ``no_rope``-th layer does not rotate."""
    shared_width: bool = False
    """The header has the width of experts in the place of that of dense layers."""
    own_output: bool = False
    """The output matrix must be in the file even where it is the embedding."""
    rope_factors: bool = False
    """Llama 3's rope is computed, from a tensor of divisors."""
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


def _gemma2(config: Config) -> Stated:
    for field_, key in (
        ("attn_logit_softcapping", "attn_logit_softcapping"),
        ("final_logit_softcapping", "final_logit_softcapping"),
    ):
        # Without the key llama.cpp caps at 50 and 30; at 2^24 fp32 does not notice the cap.
        yield key, float(config.get(field_) or 2.0**24)


def _granite(config: Config) -> Stated:
    yield "embedding_scale", float(config.get("embedding_multiplier") or 1.0)
    yield "residual_scale", float(config.get("residual_multiplier") or 1.0)
    yield "attention_scale", float(config.get("attention_multiplier") or 1.0)
    yield "logit_scale", float(config.get("logits_scaling") or 1.0)


def _parallel(field_: str) -> Callable[[Config], Stated]:
    def stated(config: Config) -> Stated:
        yield "parallel_residual", bool(config.get(field_))

    return stated


def _logit_scale(config: Config) -> Stated:
    yield "logit_scale", float(config.get("logit_scale") or 1.0)


def _clamp(config: Config) -> Stated:
    if limit := config.get("clip_qkv"):
        yield "clamp_kqv", float(limit)


def _glm4_moe(config: Config) -> Stated:
    yield "leading_dense_block_count", int(config["first_k_dense_replace"])
    yield "expert_shared_count", int(config["n_shared_experts"])
    yield "expert_weights_scale", float(config["routed_scaling_factor"])
    yield "expert_weights_norm", bool(config["norm_topk_prob"])
    yield "expert_gating_func", ExpertGatingFuncType.SIGMOID
    yield "nextn_predict_layers", 0


def _shared_ffn(config: Config) -> Stated:
    yield "expert_shared_feed_forward_length", int(config["shared_expert_intermediate_size"])


def _gemma_scale(big: int) -> Callable[[Config], float]:
    """llama.cpp tells the largest Gemma by its ``big`` layers, and scales it otherwise."""

    def scale(config: Config) -> float:
        whole = int(config["hidden_size"]) / int(config["num_attention_heads"])
        return (whole if config["num_hidden_layers"] == big else head_dim(config)) ** -0.5

    return scale


_LLAMA = Architecture(ARCH.LLAMA, pairs=True, rope_factors=True)
_ALL_EXPERTS = {"mlp_only_layers": ([], (), None), "decoder_sparse_step": (1, None)}
_GEMMA = GELU_TANH
ARCHITECTURES: Mapping[str, Architecture] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": Architecture(
        ARCH.QWEN2, square=True, otherwise=_LLAMA, only={"mlp_bias": (False, None)}
    ),
    "qwen3": Architecture(ARCH.QWEN3, only=_NEVER),
    "gemma": Architecture(ARCH.GEMMA, _GEMMA, gain=1, only=_NEVER),
    "gemma2": Architecture(
        ARCH.GEMMA2,
        _GEMMA,
        gain=1,
        only=_NEVER,
        stated=_gemma2,
        period=2,
        query_scale=_gemma_scale(46),
    ),
    "gemma3_text": Architecture(
        ARCH.GEMMA3,
        _GEMMA,
        gain=1,
        only={**_NEVER, "attn_logit_softcapping": (None,), "final_logit_softcapping": (None,)},
        period=6,
        rotated_by_kind=True,
        local_base=1e4,
        query_scale=_gemma_scale(62),
        scaled=TENSOR.ATTN_Q_NORM,
    ),
    "phi3": Architecture(ARCH.PHI3, partial=True, square=True, otherwise=_LLAMA),
    "olmo2": Architecture(ARCH.OLMO2, square=True, only=_NEVER),
    "smollm3": Architecture(ARCH.SMOLLM3, pairs=True, only=_NEVER, rope_factors=True, no_rope=4),
    "mixtral": Architecture(ARCH.LLAMA, pairs=True, rope_factors=True, shared_width=True),
    "qwen3_moe": Architecture(
        ARCH.QWEN3MOE, only={**_NEVER, **_ALL_EXPERTS, "norm_topk_prob": (True,)}
    ),
    "qwen2_moe": Architecture(
        ARCH.QWEN2MOE,
        square=True,
        only={**_ALL_EXPERTS, "norm_topk_prob": (False,)},
        stated=_shared_ffn,
    ),
    "olmoe": Architecture(
        ARCH.OLMOE, square=True, only={**_NEVER, "clip_qkv": (None,), "norm_topk_prob": (False,)}
    ),
    "granite": Architecture(ARCH.GRANITE, pairs=True, rope_factors=True, stated=_granite),
    "gpt2": Architecture(
        ARCH.GPT2,
        GELU_TANH,
        layer_norm=True,
        transposed=True,
        positions=True,
        only={"scale_attn_by_inverse_layer_idx": (False, None), "scale_attn_weights": (True, None)},
    ),
    "gpt_neox": Architecture(
        ARCH.GPTNEOX,
        ("gelu", *GELU_TANH),
        layer_norm=True,
        stated=_parallel("use_parallel_residual"),
        only={"attention_bias": (True, None)},
        own_output=True,
        fused="head",
        partial=True,
    ),
    "starcoder2": Architecture(ARCH.STARCODER2, GELU_TANH, square=True, layer_norm=True),
    "stablelm": Architecture(
        ARCH.STABLELM,
        square=True,
        layer_norm=True,
        partial=True,
        stated=_parallel("use_parallel_residual"),
        own_output=True,
    ),
    "phi": Architecture(
        ARCH.PHI2, GELU_TANH, square=True, layer_norm=True, partial=True, own_output=True
    ),
    "cohere": Architecture(
        ARCH.COMMAND_R,
        square=True,
        layer_norm=True,
        only={**_NEVER, "use_qk_norm": (False, None)},
        stated=_logit_scale,
    ),
    "cohere2": Architecture(
        ARCH.COHERE2,
        square=True,
        layer_norm=True,
        only=_NEVER,
        stated=_logit_scale,
        period=4,
        rotated_by_kind=True,
    ),
    "arcee": Architecture(ARCH.ARCEE, ("relu2",), pairs=True, only=_NEVER, rope_factors=True),
    "ernie4_5": Architecture(ARCH.ERNIE4_5),
    "seed_oss": Architecture(ARCH.SEED_OSS),
    "hunyuan_v1_dense": Architecture(ARCH.HUNYUAN_DENSE, only=_NEVER),
    "nemotron": Architecture(
        ARCH.NEMOTRON, ("relu2",), square=True, layer_norm=True, partial=True, gain=1
    ),
    "olmo3": Architecture(ARCH.OLMO2, square=True, only=_NEVER, period=4),
    "glm4": Architecture(ARCH.GLM4, partial=True),
    "glm": Architecture(ARCH.CHATGLM, square=True, partial=True),
    "exaone4": Architecture(
        ARCH.EXAONE4, square=True, rope_factors=True, only={**_NEVER, "sliding_window": (None,)}
    ),
    "ministral": _LLAMA,
    "olmo": Architecture(
        ARCH.OLMO, square=True, layer_norm=True, pairs=True, only=_NEVER, stated=_clamp
    ),
    "granitemoe": Architecture(ARCH.GRANITE_MOE, pairs=True, rope_factors=True, stated=_granite),
    "glm4_moe": Architecture(
        ARCH.GLM4_MOE,
        partial=True,
        only={"attention_bias": (True,), "n_group": (1, None), "topk_group": (1, None)},
        stated=_glm4_moe,
    ),
    "gpt_bigcode": Architecture(
        ARCH.STARCODER,
        GELU_TANH,
        layer_norm=True,
        positions=True,
        only={"multi_query": (True,), "scale_attn_weights": (True, None)},
    ),
}
"""``model_type`` -> how llama.cpp computes it."""

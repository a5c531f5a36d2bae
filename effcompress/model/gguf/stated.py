"""What the header of a type states of its heads, and beside the common fields: pairs of a method
of ``GGUFWriter`` without ``add_``, and its value. From configurations alone.
"""

from collections.abc import Callable, Iterator
from typing import Any

from gguf import ExpertGatingFuncType

from effcompress.model.gguf.geometry import (
    head_dim,
    heads_of,
    layers_of,
    rope_kind,
    rope_of,
    rotated_of,
)
from effcompress.types import Config

Stated = Iterator[tuple[str, Any]]
UNCAPPED = 2.0**24
"""A cap that fp32 does not notice: without the key llama.cpp caps products at 50, logits at 30."""


def nothing(config: Config) -> Stated:
    del config
    yield from ()


def plain_heads(config: Config) -> Stated:
    """Heads of one width, the same in every layer."""
    heads, kv_heads = heads_of(config)
    yield "head_count", heads
    yield "head_count_kv", kv_heads
    yield "key_length", head_dim(config)
    yield "value_length", head_dim(config)
    yield "rope_dimension_count", rotated_of(config)


def latent_heads(config: Config) -> Stated:
    """Multi-head latent attention. llama.cpp keeps the latent vector in its cache, as the one key
    and value that all heads share; what a head has of its own is stated as ``_mla``.
    """
    latent, rope = int(config["kv_lora_rank"]), int(config["qk_rope_head_dim"])
    yield "head_count", heads_of(config)[0]
    yield "head_count_kv", 1
    yield "key_length", latent + rope
    yield "value_length", latent
    yield "key_length_mla", int(config["qk_nope_head_dim"]) + rope
    yield "value_length_mla", int(config["v_head_dim"])
    yield "rope_dimension_count", rope
    yield "kv_lora_rank", latent
    if rank := config.get("q_lora_rank"):
        yield "q_lora_rank", int(rank)


def heads_or_none(config: Config) -> Stated:
    """Heads in layers with attention, none in layers of convolutions."""
    kv_heads, layers = heads_of(config)[1], layers_of(config)
    kinds = config.get("layer_types") or ["full_attention"] * layers
    for key, value in plain_heads(config):
        by_layer = [kv_heads if kind == "full_attention" else 0 for kind in kinds]
        yield key, by_layer if key == "head_count_kv" else value


def gemma2(config: Config) -> Stated:
    for field_, key in (
        ("attn_logit_softcapping", "attn_logit_softcapping"),
        ("final_logit_softcapping", "final_logit_softcapping"),
    ):
        yield key, float(config.get(field_) or UNCAPPED)


def granite(config: Config) -> Stated:
    yield "embedding_scale", float(config.get("embedding_multiplier") or 1.0)
    yield "residual_scale", float(config.get("residual_multiplier") or 1.0)
    yield "attention_scale", float(config.get("attention_multiplier") or 1.0)
    yield "logit_scale", float(config.get("logits_scaling") or 1.0)


def parallel(field_: str) -> Callable[[Config], Stated]:
    def stated(config: Config) -> Stated:
        yield "parallel_residual", bool(config.get(field_))

    return stated


def logit_scale(config: Config) -> Stated:
    yield "logit_scale", float(config.get("logit_scale") or 1.0)


def clamp(config: Config) -> Stated:
    if limit := config.get("clip_qkv"):
        yield "clamp_kqv", float(limit)


def convolution(config: Config) -> Stated:
    yield "shortconv_l_cache", int(config["conv_L_cache"])


def shared_ffn(config: Config) -> Stated:
    yield "expert_shared_feed_forward_length", int(config["shared_expert_intermediate_size"])


def sigmoid(config: Config) -> Stated:
    del config
    yield "expert_gating_func", ExpertGatingFuncType.SIGMOID


def routed(config: Config) -> Stated:
    """Routers of sigmoids with a bias for the choice, behind dense layers."""
    kinds = config.get("mlp_layer_types") or []
    dense = config.get("first_k_dense_replace", kinds.count("dense"))
    yield "leading_dense_block_count", int(dense or 0)
    yield "expert_shared_count", int(config["n_shared_experts"])
    yield "expert_weights_scale", float(config["routed_scaling_factor"])
    yield "expert_weights_norm", bool(config["norm_topk_prob"])
    yield from sigmoid(config)
    if (groups := int(config.get("n_group") or 1)) > 1:
        yield "expert_group_count", groups
        yield "expert_group_used_count", int(config["topk_group"])


def glm4_moe(config: Config) -> Stated:
    yield from routed(config)
    yield "nextn_predict_layers", 0


def deepseek_v2(config: Config) -> Stated:
    for key, value in routed({**config, "n_group": 1}):
        if key == "expert_gating_func":
            yield key, ExpertGatingFuncType.SOFTMAX
        else:
            # The class of transformers does not read `norm_topk_prob`.
            yield key, value if key != "expert_weights_norm" else False
    yield from _mscale(config)


def deepseek_v3(config: Config) -> Stated:
    yield from routed(config)
    yield from _mscale(config)


def _mscale(config: Config) -> Stated:
    rope = rope_of(config)
    if rope_kind(rope) == "yarn":
        # llama.cpp wants this one multiplier times 0.1, where YaRN's own formula has the 0.1.
        yield "rope_scaling_yarn_log_mul", 0.1 * float(rope.get("mscale_all_dim") or 0.0)


def ernie4_5_moe(config: Config) -> Stated:
    yield "leading_dense_block_count", int(config["moe_layer_start_index"])
    yield "interleave_moe_layer_step", int(config["moe_layer_interval"])
    if shared := int(config["moe_num_shared_experts"]):
        yield "expert_shared_count", shared
        wide = shared * int(config["moe_intermediate_size"])
        yield "expert_shared_feed_forward_length", wide


def lfm2_moe(config: Config) -> Stated:
    yield from convolution(config)
    yield from sigmoid(config)
    yield "leading_dense_block_count", int(config["num_dense_layers"])

"""State spaces, linear attention and layers of several kinds in llama.cpp: what headers state,
which configurations have no place, and how tensors are stored. Tensors are changed by their own
methods, so that the check of a configuration needs no torch.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from gguf import MODEL_TENSOR as TENSOR

from effcompress.model.gguf.geometry import (
    head_dim,
    heads_of,
    layers_of,
    rope_base,
    rope_kind,
    rope_of,
)
from effcompress.model.gguf.stated import UNCAPPED, Stated, plain_heads, shared_ffn
from effcompress.types import Config

Change = Callable[[Config, Any], Any]
"""A tensor of transformers -> that of the file."""
UNROTATED = 1e30
"""Divisor of the frequency of channels that do not rotate."""


def _decay(_config: Config, t: Any) -> Any:
    """What a state is multiplied by, from its logarithm."""
    return -t.float().exp()


def _column(_config: Config, t: Any) -> Any:
    return t.unsqueeze(1)


def _taps(_config: Config, t: Any) -> Any:
    return t.squeeze(1)


def _state(groups: str) -> Mapping[TENSOR, Change]:
    """Tensors of Mamba-2; ``groups``: the field that counts the groups of B and C."""
    return {
        TENSOR.SSM_A: lambda c, t: _decay(c, t).unsqueeze(1),
        TENSOR.SSM_D: _column,
        TENSOR.SSM_CONV1D: lambda c, t: _taps(c, t) if t.dim() == 3 else t,
        TENSOR.SSM_NORM: lambda c, t: t.unflatten(0, (int(c[groups]), -1)),
    }


def _space(*, kernel: int, inner: int, state: int, heads: int, groups: int) -> Stated:
    yield "ssm_conv_kernel", kernel
    yield "ssm_inner_size", inner
    yield "ssm_state_size", state
    yield "ssm_time_step_rank", heads
    yield "ssm_group_count", groups


# Falcon-H1


def falcon_h1(config: Config) -> Stated:
    yield from _space(
        kernel=int(config["mamba_d_conv"]),
        inner=int(config["mamba_n_heads"]) * int(config["mamba_d_head"]),
        state=int(config["mamba_d_state"]),
        heads=int(config["mamba_n_heads"]),
        groups=int(config["mamba_n_groups"]),
    )


def _times(field: str, index: int | None = None) -> Change:
    """Multiplies by a factor that llama.cpp has in the weights."""

    def change(config: Config, t: Any) -> Any:
        found = config[field]
        return t.float() * float(found if index is None else found[index])

    return change


def _by_part(config: Config, t: Any) -> Any:
    """Rows of gate, inputs, B, C and steps, each with a factor of its own."""
    inner = int(config["mamba_n_heads"]) * int(config["mamba_d_head"])
    state = int(config["mamba_n_groups"]) * int(config["mamba_d_state"])
    rows = (inner, inner, state, state, int(config["mamba_n_heads"]))
    each = zip(rows, config["ssm_multipliers"], strict=True)
    factors = [float(f) * float(config["ssm_in_multiplier"]) for n, f in each for _ in range(n)]
    return t.float() * t.new_tensor(factors).unsqueeze(1).float()


def _keys(config: Config, t: Any) -> Any:
    both = float(config["key_multiplier"]) * float(config["attention_in_multiplier"])
    return t.float() * both


FALCON_H1: Mapping[TENSOR, Change] = {
    **_state("mamba_n_groups"),
    TENSOR.TOKEN_EMBD: _times("embedding_multiplier"),
    TENSOR.OUTPUT: _times("lm_head_multiplier"),
    TENSOR.ATTN_Q: _times("attention_in_multiplier"),
    TENSOR.ATTN_K: _keys,
    TENSOR.ATTN_V: _times("attention_in_multiplier"),
    TENSOR.ATTN_OUT: _times("attention_out_multiplier"),
    TENSOR.FFN_GATE: _times("mlp_multipliers", 0),
    TENSOR.FFN_DOWN: _times("mlp_multipliers", 1),
    TENSOR.SSM_IN: _by_part,
    TENSOR.SSM_OUT: _times("ssm_out_multiplier"),
}


def uneven_state(config: Config, heads: str, width: str, state: str) -> str:
    """Why the sizes of a state space have no place; empty if they have."""
    inner, size = int(config[heads]) * int(config[width]), int(config[state])
    if inner % size == 0:
        return ""
    return (
        f"llama.cpp takes state spaces whose channels are a multiple of the state's, and here "
        f"{config[heads]} heads of {config[width]} make {inner}, which {size} does not divide"
    )


def falcon_h1_sizes(config: Config) -> str:
    return uneven_state(config, "mamba_n_heads", "mamba_d_head", "mamba_d_state")


def nemotron_h_sizes(config: Config) -> str:
    return uneven_state(config, "mamba_num_heads", "mamba_head_dim", "ssm_state_size")


def no_falcon_h1(config: Config) -> str:
    if config.get("mamba_rms_norm") and config.get("mamba_norm_before_gate", True):
        return (
            "llama.cpp normalises what a state space puts out behind its gate, and this model in "
            "front of it (mamba_norm_before_gate: true)"
        )
    least, most = (config.get("time_step_limit") or (0.0, math.inf))[:2]
    if float(least) > 0 or _finite(most):
        return "llama.cpp has no limits of the steps of a state space (time_step_limit)"
    return ""


def _finite(value: Any) -> bool:
    """transformers store infinity as a mapping."""
    return not isinstance(value, Mapping) and math.isfinite(float(value))


# Nemotron-H


def _kinds(config: Config) -> list[str]:
    return [str(kind) for kind in config.get("layers_block_type") or ()]


def nemotron_heads(config: Config) -> Stated:
    """Heads in layers of attention alone: of the others, llama.cpp takes those without channels of
    a feed-forward block for state spaces.
    """
    kv_heads, kinds = heads_of(config)[1], _kinds(config)
    for key, value in plain_heads(config):
        of_layers = [kv_heads if kind == "full_attention" else 0 for kind in kinds]
        yield key, of_layers if key == "head_count_kv" else value


def nemotron_h(config: Config) -> Stated:
    yield from _space(
        kernel=int(config["conv_kernel"]),
        inner=int(config["mamba_num_heads"]) * int(config["mamba_head_dim"]),
        state=int(config["ssm_state_size"]),
        heads=int(config["mamba_num_heads"]),
        groups=int(config["n_groups"]),
    )


NEMOTRON_H = _state("n_groups")


def no_nemotron_h(config: Config) -> str:
    kinds = _kinds(config)
    if "moe" in kinds:
        return "gguf files of nemotron_h models with experts are not written"
    if not {"linear_attention", "full_attention"} <= {*kinds}:
        return "llama.cpp opens nemotron_h models with state spaces and attention alone"
    return ""


# Qwen3-Next


def interval(config: Config) -> int:
    """The distance of layers of full attention; 0 where it varies or they are not each the last."""
    kinds = [kind == "full_attention" for kind in config.get("layer_types") or ()]
    if True not in kinds:
        return 0
    found = kinds.index(True) + 1
    return found if kinds == [(i + 1) % found == 0 for i in range(len(kinds))] else 0


def qwen3_next(config: Config) -> Stated:
    yield from shared_ffn(config)
    yield from _space(
        kernel=int(config["linear_conv_kernel_dim"]),
        inner=int(config["linear_num_value_heads"]) * int(config["linear_value_head_dim"]),
        state=int(config["linear_key_head_dim"]),
        heads=int(config["linear_num_value_heads"]),
        groups=int(config["linear_num_key_heads"]),
    )
    yield "full_attention_interval", interval(config)


QWEN3_NEXT: Mapping[TENSOR, Change] = {TENSOR.SSM_A: _decay, TENSOR.SSM_CONV1D: _taps}


def no_qwen3_next(config: Config) -> str:
    key, value = (int(config[f"linear_{of}_head_dim"]) for of in ("key", "value"))
    if key != value:
        return (
            f"llama.cpp has one width of keys and values of linear attention, here they are {key} "
            f"and {value}"
        )
    if config.get("layer_types") and interval(config) < 2:
        return (
            "llama.cpp tells layers of full attention of qwen3_next models by their numbers, each "
            "n-th of them, and here they are others: layers were removed, or it is built so"
        )
    return ""


def of_keys_and_gate(config: Config, t: Any) -> Iterator[tuple[str, Any]]:
    """Rows of queries, keys and values of all heads, and those of the gates: transformers have the
    four of one key head together.
    """
    keys, width = int(config["linear_num_key_heads"]), int(config["linear_key_head_dim"])
    each = int(config["linear_num_value_heads"]) // keys * int(config["linear_value_head_dim"])
    rows = t.unflatten(0, (keys, 2 * width + 2 * each))
    parts = rows.split([width, width, each, each], dim=1)
    query, key, value, gate = (part.flatten(0, 1) for part in parts)
    both = t.new_empty(len(query) + len(key) + len(value), t.shape[1])
    both[: len(query)], both[-len(value) :] = query, value
    both[len(query) : -len(value)] = key
    yield "attn_qkv", both
    yield "attn_gate", gate


# Gemma 4


def _layer_kinds(config: Config) -> list[str]:
    return [str(kind) for kind in config["layer_types"]]


def _of_layer(config: Config, layer: int, field: str) -> int:
    """A field of one layer alone, else that of all."""
    own: Mapping[Any, Any] = config.get("per_layer_config") or {}
    stated: Mapping[str, Any] = own.get(str(layer)) or own.get(layer) or {}
    return int(stated.get(field) or config[field])


def _global_head(config: Config) -> int:
    kinds = _layer_kinds(config)
    full = next((i for i, kind in enumerate(kinds) if kind == "full_attention"), 0)
    return _of_layer(config, full, "head_dim")


def gemma4_heads(config: Config) -> Stated:
    yield "head_count", heads_of(config)[0]
    kv_heads = [_of_layer(config, i, "num_key_value_heads") for i in range(layers_of(config))]
    yield "head_count_kv", kv_heads
    for key in ("key_length", "value_length", "rope_dimension_count"):
        yield key, _global_head(config)
        yield f"{key}_swa", head_dim(config)


def gemma4(config: Config) -> Stated:
    kinds = _layer_kinds(config)
    local = (config.get("rope_parameters") or {}).get("sliding_attention") or {}
    yield "sliding_window_pattern", [kind == "sliding_attention" for kind in kinds]
    yield "shared_kv_layers", int(config.get("num_kv_shared_layers") or 0)
    yield "embedding_length_per_layer_input", int(config.get("hidden_size_per_layer_input") or 0)
    yield "rope_freq_base_swa", float(local.get("rope_theta") or rope_base({}))
    yield "final_logit_softcapping", float(config.get("final_logit_softcapping") or UNCAPPED)


def proportional(config: Config) -> list[float]:
    """Divisors of the frequencies of layers with full attention, of which the first rotate."""
    width, rope = _global_head(config), rope_of(config)
    part = float(rope.get("partial_rotary_factor") or 1.0)
    rotated = int(part * width // 2)
    factor = float(rope.get("factor") or 1.0)
    return [factor] * rotated + [UNROTATED] * (width // 2 - rotated)


def no_gemma4(config: Config) -> str:
    full, kinds = rope_of(config), _layer_kinds(config)
    local = (config.get("rope_parameters") or {}).get("sliding_attention") or {}
    if rope_kind(full) not in ("proportional", "default") or rope_kind(local) != "default":
        return (
            f"rope of the kinds '{rope_kind(full)}' and '{rope_kind(local)}' is not written to "
            "gguf for gemma4 models"
        )
    if local.get("partial_rotary_factor", 1.0) != 1.0:
        return "llama.cpp rotates whole heads of layers with a window of gemma4 models"
    if {"sliding_attention", "full_attention"} != {*kinds}:
        return "llama.cpp opens gemma4 models with layers of both kinds alone"
    shared = int(config.get("num_kv_shared_layers") or 0)
    last = kinds[: len(kinds) - shared][-2:]
    if shared and last != ["sliding_attention", "full_attention"]:
        return (
            "llama.cpp takes the keys and values that layers share from the last two others, a "
            "layer with a window and one without, and here they are others"
        )
    rows, own = int(config["vocab_size"]), config.get("vocab_size_per_layer_input")
    if config.get("hidden_size_per_layer_input") and own not in (None, rows):
        return f"llama.cpp has one vocabulary of both embeddings, here they have {rows} and {own}"
    return ""


# Llama 4

CHUNK = 8192
"""Tokens of a chunk of attention, and of a step of the temperature: llama.cpp has no others."""
NO_NORMS = 128
"""Experts by which llama.cpp tells the model without norms of queries and keys."""


def llama4(config: Config) -> Stated:
    yield "interleave_moe_layer_step", int(config["interleave_moe_layer_step"])


def no_llama4(config: Config) -> str:
    layers, step = layers_of(config), int(config["interleave_moe_layer_step"])
    stated = config.get("moe_layers")
    if stated is not None and list(stated) != list(range(step - 1, layers, step)):
        return (
            f"llama.cpp has experts in each {step}th layer of llama4 models, and here they are in "
            "others: layers were removed, or it is built so"
        )
    normed, experts = bool(config.get("use_qk_norm", True)), int(config["num_local_experts"])
    if normed == (experts == NO_NORMS):
        has = "no norms" if experts == NO_NORMS else "norms"
        return (
            f"llama.cpp has {has} of queries and keys in llama4 models with {experts} experts, and "
            f"this one is built otherwise (use_qk_norm: {str(normed).lower()})"
        )
    if int(config["max_position_embeddings"]) < CHUNK:
        return ""
    for field, fine in (
        ("attention_chunk_size", CHUNK),
        ("floor_scale", CHUNK),
        ("attn_scale", 0.1),
        ("attn_temperature_tuning", True),
    ):
        if field in config and config[field] != fine:
            return (
                f"llama.cpp computes llama4 models only with {field}: {fine}, not {config[field]}"
            )
    return ""

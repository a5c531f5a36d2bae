"""Heads, rope, windows and norms as a configuration of a stock class states them."""

from collections.abc import Mapping
from typing import Any

from effcompress.model.classes import fields_of
from effcompress.types import Config

_WITHOUT_KV = ("falcon", "bloom", "gpt2", "gpt_neox")
"""Types whose heads share no keys and values, whatever a configuration says beside."""


def first(config: Config, *names: str) -> Any:
    """Returns the first field that has a value; None if none has."""
    return next((config[name] for name in names if config.get(name) is not None), None)


def layers_of(config: Config) -> int:
    """Number of layers."""
    stated = first(config, "num_hidden_layers", "n_layer")
    return int(stated) if stated is not None else len(config["layers_block_type"])


def heads_of(config: Config) -> tuple[int, int]:
    """Query heads and KV heads."""
    heads = int(first(config, "num_attention_heads", "n_head"))
    if config.get("new_decoder_architecture"):  # of Falcon, where it beats `multi_query`
        return heads, int(config.get("num_kv_heads") or heads)
    if config.get("multi_query"):
        return heads, 1
    if config["model_type"] in _WITHOUT_KV:
        return heads, heads
    return heads, int(config.get("num_key_value_heads") or heads)


def hidden_of(config: Config) -> int:
    """Channels of the residual stream."""
    return int(first(config, "hidden_size", "n_embd"))


def head_dim(config: Config) -> int:
    """Channels of a head."""
    return int(config.get("head_dim") or hidden_of(config) // heads_of(config)[0])


def rotated_of(config: Config) -> int:
    """Channels of a head that rope rotates: the first ones."""
    stated = (rope_of(config), config)
    names = ("partial_rotary_factor", "rotary_pct")
    part = next((c[n] for c in stated for n in names if c.get(n) is not None), 1.0)
    return int(head_dim(config) * float(part))


def epsilon_of(config: Config) -> float:
    """What all norms add to the variance."""
    names = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps")
    # OLMo's norms have no parameters, and this one epsilon.
    return float(first(config, *names) or 1e-5)


def rope_of(config: Config) -> Config:
    """The rope section, which older files call ``rope_scaling``; empty when there is none. Of
    layers with a window and without one, that of the latter.
    """
    found = config.get("rope_parameters") or config.get("rope_scaling") or {}
    return found.get("full_attention", found) if isinstance(found, Mapping) else {}


def local_rope(config: Config) -> tuple[str, float]:
    """Kind and base of rope in layers with a window, where they rotate otherwise than the rest."""
    stated = config.get("rope_parameters") or config.get("rope_scaling") or {}
    local = stated.get("sliding_attention") or {}
    base = local.get("rope_theta") or config.get("rope_local_base_freq") or 10000.0
    return rope_kind(local), float(base)


def rope_kind(rope: Config) -> str:
    """``default``, ``linear``, ``llama3``, ..."""
    return str(rope.get("rope_type") or rope.get("type") or "default")


def rope_base(config: Config) -> float:
    """Base of the rotary frequencies; 10000 where nothing states it."""
    stated = rope_of(config).get("rope_theta") or first(config, "rope_theta", "rotary_emb_base")
    return float(stated or 10000.0)


def windows_of(config: Config) -> list[bool]:
    """Whether each layer attends within a window shorter than the context."""
    layers, window = layers_of(config), config.get("sliding_window")
    if not window or int(window) >= _positions(config):
        return [False] * layers
    if kinds := config.get("layer_types"):
        return [kind == "sliding_attention" for kind in kinds]
    return [config.get("use_sliding_window") is not False] * layers


def _positions(config: Config) -> int:
    return int(first(config, "max_position_embeddings", "n_positions", "seq_length") or 2048)


def others(layers: int, period: int) -> list[bool]:
    """All layers but each ``period``-th."""
    return [(i + 1) % period != 0 for i in range(layers)]


def windows_fit(config: Config, period: int) -> bool:
    """Whether all layers but each ``period``-th attend within a window, and no others; -1: any."""
    found = windows_of(config)
    return bool(period) and any(found) and (period < 0 or found == others(len(found), period))


def window_ends(config: Config, period: int = 0) -> int:
    """Positions at which a window ends the context; 0 where none does."""
    stated = {**(fields_of(str(config["model_type"])) or {}), **config}
    context = context_of(stated, period)
    return context if context < _positions(stated) else 0


def context_of(config: Config, period: int = 0) -> int:
    """Positions that the header states: those within the window, unless llama.cpp has it in just
    these layers (``windows_fit``).
    """
    stated = {**(fields_of(str(config["model_type"])) or {}), **config}
    if not any(windows_of(stated)) or windows_fit(stated, period):
        return _positions(stated)
    return min(_positions(stated), int(stated["sliding_window"]))


def is_square(config: Config) -> bool:
    """Whether heads fill the hidden size."""
    return heads_of(config)[0] * head_dim(config) == hidden_of(config)


def is_dense(config: Config) -> bool:
    """Whether a type with experts has none in this configuration: all layers are dense ones."""
    if kinds := config.get("mlp_layer_types"):
        return "sparse" not in kinds
    if (routed := config.get("moe_layers")) is not None:
        return not routed
    starts = ("first_k_dense_replace", "num_dense_layers", "moe_layer_start_index")
    stated = first(config, *starts)
    return stated is not None and int(stated) >= layers_of(config)

"""A small random model of any architecture, for code that must look at the architecture itself.

Structure is kept (ties, biases, grouped or multi-query attention, norms), sizes are not: every size
is another number, so that none can be taken for another one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from torch import nn

from effcompress.errors import SourceError
from effcompress.model.silence import quietly

Size = Literal["given", "small", "other"]
"""As the configuration says; small; small in other numbers."""

NAMES: Mapping[str, tuple[str, ...]] = {
    "vocab_size": ("vocab_size",),
    "hidden_size": ("hidden_size", "n_embd", "d_model"),
    "intermediate_size": ("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size", "d_ff"),
    "num_hidden_layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    "num_attention_heads": (
        "num_attention_heads",
        "n_head",
        "n_heads",
        "num_heads",
        "attention_heads",
    ),
    "num_key_value_heads": ("num_key_value_heads", "num_kv_heads"),
    "head_dim": ("head_dim", "kv_channels"),
    "max_position_embeddings": ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx"),
    "rotary_dim": ("rotary_dim",),
    "sliding_window": ("sliding_window", "window_size"),
    "num_experts": ("num_experts", "num_local_experts", "n_routed_experts"),
    "num_experts_per_tok": ("num_experts_per_tok",),
    "moe_intermediate_size": ("moe_intermediate_size",),
    "shared_expert_intermediate_size": ("shared_expert_intermediate_size",),
}
"""Usual name of a size -> what configurations call it."""

# Three query heads per KV head: with two, torch-pruning never returns.
_SMALL = dict(zip(NAMES, (61, 96, 56, 2, 12, 4, 24, 128, 4, 64, 5, 2, 20, 28), strict=True))
_OTHER = dict(zip(NAMES, (67, 160, 72, 3, 10, 5, 40, 256, 8, 96, 7, 2, 36, 44), strict=True))


def build(config: Mapping[str, Any], size: Size) -> nn.Module:
    """A random model in fp32, eager attention, no cache; small unless ``size`` is ``given``.

    On the device of the context (``with torch.device("meta")`` for shapes alone).

    Raises:
        SourceError: transformers does not know the ``model_type``, or refuses the sizes.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    fields = dict(config)
    model_type = str(fields.pop("model_type", None))
    try:
        with quietly():
            built: Any = AutoConfig.for_model(model_type, **fields)
            if size != "given":  # the file may leave sizes out
                fields = shrink(built.to_dict(), size)
                built = AutoConfig.for_model(fields.pop("model_type"), **fields)
            built.use_cache = False
            module: Any = AutoModelForCausalLM.from_config(built, attn_implementation="eager")
    except Exception as error:  # every architecture has its own way to refuse
        line = next(iter(str(error).strip().splitlines()), type(error).__name__)
        said = line.partition(". ")[0]  # then follows what it does know, hundreds of names
        raise SourceError(
            f"transformers cannot build '{model_type}' ({size}): {said}", where="model"
        ) from error
    if getattr(module, "_can_set_experts_implementation", lambda: False)():
        module.set_experts_implementation("eager")  # grouped kernels know no fp64
    return module.float().eval()


def shrink(config: Mapping[str, Any], size: Size) -> dict[str, Any]:
    """The configuration of a small model of the same structure."""
    sizes = _OTHER if size == "other" else _SMALL
    heads, kv = _stated(config, "num_attention_heads"), _stated(config, "num_key_value_heads")
    if kv is not None and kv in (1, heads):  # multi-query and multi-head attention stay it
        sizes = {**sizes, "num_key_value_heads": 1 if kv == 1 else sizes["num_attention_heads"]}
    found = dict(config)
    for usual, names in NAMES.items():
        found.update({name: sizes[usual] for name in names if _is_size(config.get(name))})
    layers = _stated(config, "num_hidden_layers")
    for name, value in config.items():
        if isinstance(value, list) and len(value) == layers:  # one entry per layer
            found[name] = value[: sizes["num_hidden_layers"]]
    for name, value in config.items():
        if name.endswith("_token_id") and _is_size(value) and value >= sizes["vocab_size"]:
            found[name] = 1
    return {name: _halved(name, value) for name, value in found.items()}


def _halved(name: str, value: Any) -> Any:
    """Where a part of each head is rotated, half of it: other parts of a small head are odd."""
    if isinstance(value, Mapping):
        return {inner: _halved(inner, held) for inner, held in value.items()}
    partial = name == "partial_rotary_factor" and isinstance(value, float) and value < 1
    return 0.5 if partial else value


def _stated(config: Mapping[str, Any], usual: str) -> int | None:
    return next((config[n] for n in NAMES[usual] if _is_size(config.get(n))), None)


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0

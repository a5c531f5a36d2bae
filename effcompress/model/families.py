"""Architectures as data: which side of which parameter carries which axis.

The whole coupling of a model is one sentence: two sides with the same axis name shrink together.
A family lists its parameters once; sizes of a loaded model are read from its tensors
(``groups/axes.py``), and sizes of a model that is not loaded from its configuration, by the same
table, so that a recipe can be priced without importing torch.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from effcompress.errors import SourceError
from effcompress.types import Axis, Config, Family, Widths

LAYER = "model.layers.{i}."


def linear(
    module: str,
    out: tuple[str, str] | str,
    into: tuple[str, str] | str,
    bias: str = "",
) -> Iterator[Axis]:
    """Axes of a linear layer: ``out`` and ``into`` are an axis name, or (axis name, block)."""
    out_name, out_block = (out, "one") if isinstance(out, str) else out
    in_name, in_block = (into, "one") if isinstance(into, str) else into
    yield Axis(f"{module}.weight", 0, out_name, out_block)
    yield Axis(f"{module}.weight", 1, in_name, in_block)
    if bias:
        when = "" if bias == "always" else bias
        yield Axis(f"{module}.bias", 0, out_name, out_block, when=when)


def head_dim(config: Config) -> int:
    """Width of a head: stated, or hidden size over heads. Pruning never changes it."""
    return config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]


def kv_heads(config: Config) -> int:
    """KV heads; families without grouped queries have one per query head."""
    return config.get("num_key_value_heads") or config["num_attention_heads"]


def queries_per_kv(config: Config) -> int:
    """Query heads that share one KV head."""
    return config["num_attention_heads"] // kv_heads(config)


def _resize_llama(config: Config, widths: Widths) -> dict[str, Any]:
    kv = widths["attention"]
    return {
        "hidden_size": widths["hidden"],
        "intermediate_size": widths["ffn"],
        "num_attention_heads": kv * queries_per_kv(config),
        "num_key_value_heads": kv,
        # Never left to be derived: hidden size over heads is no longer the width of a head.
        "head_dim": head_dim(config),
    }


_ATTENTION, _FFN = "attention.{i}", "ffn.{i}"


def _separate(qkv_bias: str, mlp_bias: str) -> Iterator[Axis]:
    yield from linear(LAYER + "self_attn.q_proj", (_ATTENTION, "query"), "hidden", qkv_bias)
    yield from linear(LAYER + "self_attn.k_proj", (_ATTENTION, "head"), "hidden", qkv_bias)
    yield from linear(LAYER + "self_attn.v_proj", (_ATTENTION, "head"), "hidden", qkv_bias)
    yield from linear(LAYER + "mlp.gate_proj", _FFN, "hidden", mlp_bias)
    yield from linear(LAYER + "mlp.up_proj", _FFN, "hidden", mlp_bias)


def _decoder(
    name: str,
    model_types: tuple[str, ...],
    *,
    qkv_bias: str = "",
    o_bias: str = "",
    mlp_bias: str = "",
    projections: tuple[Axis, ...] = (),
    more: tuple[Axis, ...] = (),
    more_norms: tuple[str, ...] = (),
    containers: tuple[str, ...] = (),
    **traits: Any,
) -> Family:
    """A decoder of Llama's shape: norm, q/k/v/o, norm, gate/up/down. ``more`` adds what the family
    has beside; a bias is a configuration flag, ``always`` or nothing.
    """
    return Family(
        name=name,
        model_types=model_types,
        axes=(
            Axis("model.embed_tokens.weight", 0, "vocab"),
            Axis("model.embed_tokens.weight", 1, "hidden"),
            Axis(LAYER + "input_layernorm.weight", 0, "hidden"),
            *(projections or _separate(qkv_bias, mlp_bias)),
            *linear(LAYER + "self_attn.o_proj", "hidden", (_ATTENTION, "query"), o_bias),
            Axis(LAYER + "post_attention_layernorm.weight", 0, "hidden"),
            *linear(LAYER + "mlp.down_proj", "hidden", _FFN, mlp_bias),
            *more,
            *(Axis(norm, 0, "hidden") for norm in more_norms),
            Axis("model.norm.weight", 0, "hidden"),
            Axis("lm_head.weight", 0, "vocab", when="!tie_word_embeddings"),
            Axis("lm_head.weight", 1, "hidden", when="!tie_word_embeddings"),
        ),
        units={
            "vocab": lambda c: c["vocab_size"],
            "hidden": lambda c: c["hidden_size"],
            "attention": kv_heads,
            "ffn": lambda c: c["intermediate_size"],
            "head_dim": head_dim,
        },
        blocks={
            "one": lambda _: 1,
            "head": head_dim,
            "query": lambda c: queries_per_kv(c) * head_dim(c),
        },
        resize=_resize_llama,
        required=(
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
        ),
        norms=(
            LAYER + "input_layernorm.weight",
            LAYER + "post_attention_layernorm.weight",
            *more_norms,
            "model.norm.weight",
        ),
        containers=containers,
        **traits,
    )


LLAMA = _decoder(
    "llama",
    ("llama", "mistral"),
    qkv_bias="attention_bias",
    o_bias="attention_bias",
    mlp_bias="mlp_bias",
    containers=("llama", "mistral"),
)
QWEN2 = _decoder("qwen2", ("qwen2",), qkv_bias="always")
SMOLLM3 = _decoder(
    "smollm3",
    ("smollm3",),
    qkv_bias="attention_bias",
    o_bias="attention_bias",
    mlp_bias="mlp_bias",
)

_QK_NORM = (
    Axis(LAYER + "self_attn.q_norm.weight", 0, "head_dim"),
    Axis(LAYER + "self_attn.k_norm.weight", 0, "head_dim"),
)
"""Norms within each head, shared by all heads: no unit of ours owns any of it."""
QWEN3 = _decoder(
    "qwen3", ("qwen3",), qkv_bias="attention_bias", o_bias="attention_bias", more=_QK_NORM
)
_GEMMA: dict[str, Any] = {
    "qkv_bias": "attention_bias",
    "o_bias": "attention_bias",
    # The blocks are wrapped in norms on both sides.
    "more_norms": (
        LAYER + "pre_feedforward_layernorm.weight",
        LAYER + "post_feedforward_layernorm.weight",
    ),
    "gain_offset": 1.0,
    "scaled_embedding": "model.embed_tokens.weight",
    "epsilon_attribute": "eps",
}
GEMMA2 = _decoder("gemma2", ("gemma2",), **_GEMMA)
GEMMA3 = _decoder("gemma3", ("gemma3_text",), more=_QK_NORM, **_GEMMA)


def _adapt_phi3(attention: Any, config: Config, heads: int) -> None:
    # It slices q, k and v apart by counts: one of its own, one of a configuration that all layers
    # share. A copy lets layers differ.
    attention.num_key_value_heads = heads
    attention.config = copy.copy(attention.config)
    attention.config.num_key_value_heads = heads
    attention.config.num_attention_heads = heads * queries_per_kv(config)


PHI3 = _decoder(
    "phi3",
    ("phi3",),
    projections=(
        # One matrix each: all queries, then all keys, then all values; all gates, then all ups.
        Axis(LAYER + "self_attn.qkv_proj.weight", 0, _ATTENTION, "query"),
        Axis(LAYER + "self_attn.qkv_proj.weight", 0, _ATTENTION, "head"),
        Axis(LAYER + "self_attn.qkv_proj.weight", 0, _ATTENTION, "head"),
        Axis(LAYER + "self_attn.qkv_proj.weight", 1, "hidden"),
        Axis(LAYER + "mlp.gate_up_proj.weight", 0, _FFN),
        Axis(LAYER + "mlp.gate_up_proj.weight", 0, _FFN),
        Axis(LAYER + "mlp.gate_up_proj.weight", 1, "hidden"),
    ),
    adapt=_adapt_phi3,
)

FAMILIES = (LLAMA, QWEN2, QWEN3, SMOLLM3, GEMMA2, GEMMA3, PHI3)


def family_of(config: Config) -> Family:
    """The declared family of a configuration.

    Raises SourceError naming the ``model_type`` when no family declares it.
    """
    model_type = config.get("model_type")
    for family in FAMILIES:
        if model_type in family.model_types:
            return family
    known = sorted(t for f in FAMILIES for t in f.model_types)
    raise SourceError(
        f"architecture '{model_type}' is not declared",
        where="model",
        fix=f"Declared: {', '.join(known)}. A declaration is a list of axes in model/families.py.",
    )


def require_sane(family: Family, config: Config) -> None:
    """Raises SourceError naming the first field of a configuration that cannot be meant."""
    optional = [
        name for name in ("num_key_value_heads", "head_dim") if config.get(name) is not None
    ]
    for name in (*family.required, *optional):
        value = config.get(name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            said = "is missing" if name not in config else f"is {value!r}, not a number above 0"
            raise SourceError(f"{name} {said}", where="model.shape")
    heads, kv = config["num_attention_heads"], kv_heads(config)
    if heads % kv:
        raise SourceError(
            f"{heads} query heads cannot share {kv} KV heads evenly", where="model.shape"
        )
    if not config.get("head_dim") and config["hidden_size"] % heads:
        raise SourceError(
            f"hidden_size {config['hidden_size']} is no multiple of {heads} heads, and no head_dim "
            "is given",
            where="model.shape",
        )

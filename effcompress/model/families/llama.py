"""Decoders of Llama's shape: root-mean-square norms, q/k/v/o, gate/up/down."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from effcompress.model.families.sizes import (
    biased,
    head_dim,
    kv_heads,
    linear,
    per_layer,
    queries_per_kv,
)
from effcompress.types import Axis, Config, Family, Fields, ModuleSizes, Sublayer, Widths

Units = Callable[[Config, int], int]
"""Units of an axis in a layer, by the configuration."""
LAYER = "model.layers.{i}."
ATTENTION, FFN = "attention.{i}", "ffn.{i}"
QUERY = (ATTENTION + "/query.{i}", "head")
"""Query rows: KV heads, each with its query heads, each ``head_dim`` wide."""
HEAD = (ATTENTION, "head")
PER_UNIT = {"one": lambda _: 1, "head": head_dim}
REQUIRED = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
)
QK_NORM = (
    Axis(LAYER + "self_attn.q_norm.weight", 0, "head_dim"),
    Axis(LAYER + "self_attn.k_norm.weight", 0, "head_dim"),
)
"""Norms within a head, one gain for all heads: no mini-group owns a part of it."""
FED = {LAYER + f"self_attn.{x}_norm": LAYER + f"self_attn.{x}_proj" for x in "qk"}


def attention(qkv_bias: str, o_bias: str) -> Iterator[Axis]:
    """Axes of q, k, v and o. A bias is named by its configuration flag, ``always`` or empty."""
    for name, rows in (("q_proj", QUERY), ("k_proj", HEAD), ("v_proj", HEAD)):
        yield from _maybe(LAYER + f"self_attn.{name}", rows, "hidden", qkv_bias)
    yield from _maybe(LAYER + "self_attn.o_proj", "hidden", QUERY, o_bias)


def gated(bias: str, ffn: str = FFN, when: str = "") -> Iterator[Axis]:
    """Axes of gate, up and down."""
    for name in ("gate_proj", "up_proj"):
        yield from _when(_maybe(LAYER + f"mlp.{name}", ffn, "hidden", bias), when)
    yield from _when(_maybe(LAYER + "mlp.down_proj", "hidden", ffn, bias), when)


def _maybe(module: str, out: Any, into: Any, bias: str) -> Iterator[Axis]:
    if bias:
        return biased(module, out, into, "" if bias == "always" else bias)
    return linear(module, out, into)


def _when(axes: Iterator[Axis], when: str) -> Iterator[Axis]:
    for axis in axes:
        yield Axis(axis.param, axis.dim, axis.name, axis.positions_per_unit, when or axis.when)


def resize(config: Config, widths: Widths) -> Fields:
    """Configuration fields for these widths per kind, the same in all layers."""
    return {
        "hidden_size": widths["hidden"],
        "intermediate_size": widths["ffn"],
        # "query" counts the query heads of one KV head.
        "num_attention_heads": widths["attention"] * widths["query"],
        "num_key_value_heads": widths["attention"],
        # Stated, since classes derive it as hidden size / heads, which pruning makes wrong.
        "head_dim": head_dim(config),
    }


def pad(config: Config, widths: Widths) -> dict[str, int]:
    """Rounds the hidden size up to a multiple of the heads, which some classes require."""
    heads = widths["attention"] * widths["query"]
    return {"hidden": -(-widths["hidden"] // heads) * heads}


def repeats(config: Config, widths: Widths) -> ModuleSizes:
    """Sizes that modules keep: attention repeats each KV head for so many query heads."""
    return {"self_attn": {"num_key_value_groups": widths["query"]}}


def decoder(
    name: str,
    model_types: tuple[str, ...],
    *,
    qkv_bias: str = "",
    o_bias: str = "",
    mlp_bias: str = "",
    modules: tuple[Axis, ...] = (),
    more: tuple[Axis, ...] = (),
    before: tuple[str, str] = ("input_layernorm", "post_attention_layernorm"),
    after: tuple[str, str] | tuple[()] = (),
    **traits: Any,
) -> Family:
    """Declares a decoder. ``modules`` replaces the axes of attention and feed-forward, ``more``
    adds to them; ``before`` and ``after`` are the norms in front of and behind (attention,
    feed-forward).
    """
    norms = tuple(LAYER + norm + ".weight" for norm in (*before, *after) if norm)
    own = modules or (*attention(qkv_bias, o_bias), *gated(mlp_bias))
    around = tuple(zip(before, after or ("", ""), strict=True))
    parts = {"attention_block": ("self_attn", 2), "mlp_block": ("mlp", 1)}
    traits.setdefault("units", units())
    return Family(
        name=name,
        model_types=model_types,
        axes=_whole((*own, *more, *(Axis(norm, 0, "hidden") for norm in norms))),
        positions_per_unit=PER_UNIT,
        required=REQUIRED,
        norms=(*norms, *traits.pop("head_norms", ()), "model.norm.weight"),
        sublayers={
            kind: Sublayer(module, outputs, tuple(norm for norm in pair if norm))
            for (kind, (module, outputs)), pair in zip(parts.items(), around, strict=True)
        },
        **{
            "resize": resize,
            "attributes": repeats,
            "pad": pad,
            "depth_fields": per_layer("layer_types", "no_rope_layers"),
            **traits,
        },
    )


def _whole(layers: tuple[Axis, ...]) -> tuple[Axis, ...]:
    """Adds embedding, final norm and output matrix to the layers."""
    return (
        *linear("model.embed_tokens", "vocab", "hidden"),
        *layers,
        Axis("model.norm.weight", 0, "hidden"),
        *linear("lm_head", "vocab", "hidden", "!tie_word_embeddings"),
    )


def units(**more: Units) -> dict[str, Units]:
    """How many units each kind of axis has."""
    return {
        "vocab": lambda c, _: c["vocab_size"],
        "hidden": lambda c, _: c["hidden_size"],
        "attention": lambda c, _: kv_heads(c),
        "query": lambda c, _: queries_per_kv(c),
        "ffn": lambda c, _: c["intermediate_size"],
        "head_dim": lambda c, _: head_dim(c),
        **more,
    }


LLAMA = decoder(
    "llama",
    ("llama", "mistral"),
    qkv_bias="attention_bias",
    o_bias="attention_bias",
    mlp_bias="mlp_bias",
    defaults={"mistral": {"num_key_value_heads": 8}},
    containers=("llama", "mistral"),
)
QWEN2 = decoder(
    "qwen2", ("qwen2",), qkv_bias="always", defaults={"qwen2": {"num_key_value_heads": 32}}
)
SMOLLM3 = decoder(
    "smollm3",
    ("smollm3",),
    qkv_bias="attention_bias",
    o_bias="attention_bias",
    mlp_bias="mlp_bias",
    defaults={"smollm3": {"tie_word_embeddings": True, "num_key_value_heads": 4}},
)
QWEN3 = decoder(
    "qwen3",
    ("qwen3",),
    qkv_bias="attention_bias",
    o_bias="attention_bias",
    more=QK_NORM,
    fed_by=FED,
    defaults={"qwen3": {"num_key_value_heads": 32, "head_dim": 128}},
)
_GEMMA: dict[str, Any] = {
    "qkv_bias": "attention_bias",
    "o_bias": "attention_bias",
    # Norms in front of and behind each block (sandwich norm).
    "before": ("input_layernorm", "pre_feedforward_layernorm"),
    "after": ("post_attention_layernorm", "post_feedforward_layernorm"),
    "gain_offset": 1.0,
    "scaled_embedding": "model.embed_tokens.weight",
    "epsilon_attribute": "eps",
    "defaults": {
        model_type: {"tie_word_embeddings": True, "num_key_value_heads": 4, "head_dim": 256}
        for model_type in ("gemma2", "gemma3_text")
    },
}
GEMMA2 = decoder("gemma2", ("gemma2",), **_GEMMA)
GEMMA3 = decoder("gemma3", ("gemma3_text",), more=QK_NORM, fed_by=FED, **_GEMMA)
_ACROSS_HEADS = (
    "queries and keys pass a norm across all heads: without some of them the others are scaled anew"
)
OLMO2 = decoder(
    "olmo2",
    ("olmo2",),
    qkv_bias="attention_bias",
    o_bias="attention_bias",
    # Post-norm: norms behind the blocks, none in front.
    before=("", ""),
    after=("post_attention_layernorm", "post_feedforward_layernorm"),
    more=(
        Axis(LAYER + "self_attn.q_norm.weight", 0, *QUERY),
        Axis(LAYER + "self_attn.k_norm.weight", 0, *HEAD),
    ),
    head_norms=(LAYER + "self_attn.q_norm.weight", LAYER + "self_attn.k_norm.weight"),
    fed_by=FED,
    approximate={"attention": _ACROSS_HEADS, "query": _ACROSS_HEADS},
)


def _phi3_attributes(config: Config, widths: Widths) -> ModuleSizes:
    # The class splits qkv by head counts, some of them attributes, some read from a configuration
    # that all layers share: each layer gets a configuration of its own (``config.x``).
    kv, per_kv = widths["attention"], widths["query"]
    return {
        "self_attn": {
            "num_key_value_groups": per_kv,
            "num_key_value_heads": kv,
            "config.num_key_value_heads": kv,
            "config.num_attention_heads": kv * per_kv,
        }
    }


PHI3 = decoder(
    "phi3",
    ("phi3",),
    modules=(
        # Fused projections: rows of all queries, keys, values; rows of all gates, then all ups.
        Axis(LAYER + "self_attn.qkv_proj.weight", 0, *QUERY),
        Axis(LAYER + "self_attn.qkv_proj.weight", 0, *HEAD),
        Axis(LAYER + "self_attn.qkv_proj.weight", 0, *HEAD),
        Axis(LAYER + "self_attn.qkv_proj.weight", 1, "hidden"),
        *linear(LAYER + "self_attn.o_proj", "hidden", QUERY),
        Axis(LAYER + "mlp.gate_up_proj.weight", 0, FFN),
        Axis(LAYER + "mlp.gate_up_proj.weight", 0, FFN),
        Axis(LAYER + "mlp.gate_up_proj.weight", 1, "hidden"),
        *linear(LAYER + "mlp.down_proj", "hidden", FFN),
    ),
    attributes=_phi3_attributes,
)

"""What declarations are made of, and decoders of Llama's shape: root-mean-square norms, q/k/v/o,
gate/up/down.
"""

from collections.abc import Iterator
from typing import Any

from effcompress.types import Axis, Config, Family, Fields, ModuleSizes, Residual, Sublayer, Widths

LAYER = "model.layers.{i}."
ATTENTION, FFN = "attention.{i}", "ffn.{i}"
Name = tuple[str, str] | str
"""An axis, or (axis, key of ``Family.positions_per_unit``)."""
QUERY = (ATTENTION + "/query.{i}", "head")
"""Query rows: KV heads, each with its query heads, each ``head_dim`` wide."""
HEAD = (ATTENTION, "head")
COUNTS = ("num_hidden_layers", "num_attention_heads")
_Q_NORM, _K_NORM = LAYER + "self_attn.q_norm.weight", LAYER + "self_attn.k_norm.weight"
FED = {LAYER + f"self_attn.{x}_norm": LAYER + f"self_attn.{x}_proj" for x in "qk"}
ACROSS_HEADS: dict[str, Any] = {
    "more": (Axis(_Q_NORM, 0, *QUERY), Axis(_K_NORM, 0, *HEAD)),
    "head_norms": (_Q_NORM, _K_NORM),
    "fed_by": FED,
    "approximate": dict.fromkeys(
        ("attention", "query"),
        "queries and keys pass a norm across all heads: without some of them the others are scaled "
        "anew",
    ),
}
"""Traits of a decoder with a norm across all heads of queries, and one of keys."""


def qk_norms(query: str = "q_norm", key: str = "k_norm") -> tuple[Axis, ...]:
    """Norms within a head, one gain for all heads: no mini-group owns a part of it."""
    return tuple(Axis(f"{LAYER}self_attn.{norm}.weight", 0, "head_dim") for norm in (query, key))


QK_NORM = qk_norms()


def side(param: str, dim: int, name: Name, when: str = "") -> Axis:
    """One dimension of a parameter."""
    return Axis(param, dim, *([name] if isinstance(name, str) else name), when=when)


def linear(module: str, out: Name, into: Name, when: str = "") -> Iterator[Axis]:
    """Axes of a weight ``[out, into]``."""
    yield side(f"{module}.weight", 0, out, when)
    yield side(f"{module}.weight", 1, into, when)


def biased(module: str, out: Name, into: Name, when: str = "") -> Iterator[Axis]:
    """Axes of a linear layer with a bias: always, or ``when`` a configuration flag is set."""
    yield from linear(module, out, into)
    yield side(f"{module}.bias", 0, out, when)


def lm_head() -> Iterator[Axis]:
    """Axes of the output matrix, unless it is the embedding."""
    return linear("lm_head", "vocab", "hidden", "!tie_word_embeddings")


def attention(qkv_bias: str = "attention_bias", o_bias: str = "attention_bias") -> Iterator[Axis]:
    """Axes of q, k, v and o. A bias is named by its configuration flag, ``always`` or empty."""
    for name, rows in (("q_proj", QUERY), ("k_proj", HEAD), ("v_proj", HEAD)):
        yield from maybe_biased(LAYER + f"self_attn.{name}", rows, "hidden", qkv_bias)
    yield from maybe_biased(LAYER + "self_attn.o_proj", "hidden", QUERY, o_bias)


def gated(bias: str = "", when: str = "") -> Iterator[Axis]:
    """Axes of gate, up and down; a flag of biases must imply ``when``."""
    for name in ("gate_proj", "up_proj"):
        yield from maybe_biased(LAYER + f"mlp.{name}", FFN, "hidden", bias, when)
    yield from maybe_biased(LAYER + "mlp.down_proj", "hidden", FFN, bias, when)


def ungated(bias: str = "", up: str = "up_proj", down: str = "down_proj") -> Iterator[Axis]:
    """Axes of up and down without a gate."""
    yield from maybe_biased(LAYER + f"mlp.{up}", FFN, "hidden", bias)
    yield from maybe_biased(LAYER + f"mlp.{down}", "hidden", FFN, bias)


def fused_gated() -> Iterator[Axis]:
    """Axes of gate and up in one matrix, rows of all gates, then of all ups, and of down."""
    fused = LAYER + "mlp.gate_up_proj.weight"
    yield from (Axis(fused, dim, name) for dim, name in ((0, FFN), (0, FFN), (1, "hidden")))
    yield from linear(LAYER + "mlp.down_proj", "hidden", FFN)


def maybe_biased(module: str, out: Name, into: Name, bias: str, when: str = "") -> Iterator[Axis]:
    """Axes of a linear layer; its bias is named by its configuration flag, ``always`` or empty."""
    yield from linear(module, out, into, when)
    if bias:
        yield side(f"{module}.bias", 0, out, when if bias == "always" else bias)


def head_dim(config: Config) -> int:
    """Width of a head: ``head_dim``, or hidden size / heads. Pruning never changes it."""
    return config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]


def _kv_heads(config: Config) -> int:
    # Without grouped queries, one per query head.
    return config.get("num_key_value_heads") or config["num_attention_heads"]


UNITS = {
    "vocab": lambda c, _: c["vocab_size"],
    "hidden": lambda c, _: c["hidden_size"],
    "attention": lambda c, _: _kv_heads(c),
    "query": lambda c, _: c["num_attention_heads"] // _kv_heads(c),
    "ffn": lambda c, _: c["intermediate_size"],
    "head_dim": lambda c, _: head_dim(c),
}


def listed_per_layer(config: Config, layers: tuple[int, ...]) -> Fields:
    """Lists with a value for every layer, for those that stay."""
    listed = ("layer_types", "no_rope_layers", "layer_rope_theta")
    stated = (name for name in listed if config.get(name))
    return {name: [config[name][i] for i in layers] for name in stated}


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


def _pad(config: Config, widths: Widths) -> dict[str, int]:
    """Rounds the hidden size up to a multiple of the heads, which some classes require."""
    if "attention" not in widths:  # a hybrid without a layer of attention
        return {}
    heads = widths["attention"] * widths["query"]
    return {"hidden": -(-widths["hidden"] // heads) * heads}


def repeats(config: Config, widths: Widths) -> ModuleSizes:
    """Sizes that modules keep: attention repeats each KV head for so many query heads."""
    return {"self_attn": {"num_key_value_groups": widths["query"]}}


def decoder(
    *model_types: str,
    qkv_bias: str = "attention_bias",
    o_bias: str = "attention_bias",
    mlp_bias: str = "",
    modules: tuple[Axis, ...] = (),
    more: tuple[Axis, ...] = (),
    attention_norms: tuple[str, ...] = ("input_layernorm",),
    mlp_norms: tuple[str, ...] = ("post_attention_layernorm",),
    head_norms: tuple[str, ...] = (),
    behind: bool | str = False,
    gains: bool = True,
    **traits: Any,
) -> Family:
    """Declares a decoder. ``modules`` replaces the axes of attention and feed-forward, ``more``
    adds to them; ``attention_norms`` and ``mlp_norms`` are around each, in front first; the last
    ones are ``behind`` the blocks or not, or exist if a configuration flag is set. Without
    ``gains`` norms have no parameters.
    """
    around = zip(attention_norms, mlp_norms, strict=True)
    last = [norms[-1] if behind else "" for norms in (attention_norms, mlp_norms)]
    norms = [LAYER + norm + ".weight" for pair in around for norm in pair if gains]
    final = (traits.get("final_norm", "model.norm.weight"),) if gains else ()
    flag = behind if isinstance(behind, str) else ""
    optional = {LAYER + norm + ".weight" for norm in last if flag}
    held = (Axis(n, 0, "hidden", when=flag if n in optional else "") for n in (*norms, *final))
    own = modules or (*attention(qkv_bias, o_bias), *gated(mlp_bias))
    found = {
        "name": model_types[0],
        "axes": (
            *linear("model.embed_tokens", "vocab", "hidden"),
            *(*own, *more, *held),
            *lm_head(),
        ),
        "units": UNITS,
        "positions_per_unit": {"one": lambda _: 1, "head": head_dim},
        "required": ("vocab_size", "hidden_size", "intermediate_size", *COUNTS),
        "norms": (*norms, *head_norms, *final),
        "sublayers": {
            "attention_block": Sublayer("self_attn", 2, attention_norms, last[0]),
            "mlp_block": Sublayer("mlp", 1, mlp_norms, last[1]),
        },
        "resize": resize,
        "attributes": repeats,
        "pad": _pad,
        "norms_behind": lambda c: bool(c.get(flag, True)) if flag else bool(behind),
        "depth_fields": listed_per_layer,
    }
    return Family(model_types=model_types, **{**found, **traits})


LLAMA = decoder(
    *("llama", "mistral"),
    mlp_bias="mlp_bias",
    defaults={"mistral": {"num_key_value_heads": 8}},
    containers=("llama", "mistral"),
    # Llama wants it, Mistral does not, but has no biases.
    whole_heads=lambda c: bool(c.get("attention_bias") or c.get("mlp_bias")),
)
QWEN2 = decoder(
    "qwen2", qkv_bias="always", o_bias="", defaults={"qwen2": {"num_key_value_heads": 32}}
)
SMOLLM3 = decoder(
    "smollm3",
    mlp_bias="mlp_bias",
    defaults={"smollm3": {"tie_word_embeddings": True, "num_key_value_heads": 4}},
)
QWEN3 = decoder(
    "qwen3",
    more=QK_NORM,
    fed_by=FED,
    defaults={"qwen3": {"num_key_value_heads": 32, "head_dim": 128}},
)
_GEMMA: dict[str, Any] = {
    # Norms in front of and behind each block (sandwich norm).
    "attention_norms": ("input_layernorm", "post_attention_layernorm"),
    "mlp_norms": ("pre_feedforward_layernorm", "post_feedforward_layernorm"),
    "behind": True,
    "whole_heads": lambda _: True,
    "gain_offset": 1.0,
    "scaled_embedding": "model.embed_tokens.weight",
    "epsilon_attribute": "eps",
    "defaults": {
        model_type: {"tie_word_embeddings": True, "num_key_value_heads": 4, "head_dim": 256}
        for model_type in ("gemma2", "gemma3_text")
    },
}
GEMMA2 = decoder("gemma2", **_GEMMA)
GEMMA3 = decoder("gemma3_text", name="gemma3", more=QK_NORM, fed_by=FED, **_GEMMA)
OLMO2 = decoder(
    *("olmo2", "olmo3"),
    # Post-norm: norms behind the blocks, none in front.
    attention_norms=("post_attention_layernorm",),
    mlp_norms=("post_feedforward_layernorm",),
    behind=True,
    **ACROSS_HEADS,
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


_QKV = LAYER + "self_attn.qkv_proj.weight"
PHI3 = decoder(
    "phi3",
    modules=(
        # Fused projections: rows of all queries, keys, values.
        *(Axis(_QKV, 0, *rows) for rows in (QUERY, HEAD, HEAD)),
        Axis(_QKV, 1, "hidden"),
        *linear(LAYER + "self_attn.o_proj", "hidden", QUERY),
        *fused_gated(),
    ),
    attributes=_phi3_attributes,
    residual=lambda _: Residual(("self_attn", "resid_attn_dropout"), ("mlp", "resid_mlp_dropout")),
)
FAMILIES = (LLAMA, QWEN2, QWEN3, SMOLLM3, GEMMA2, GEMMA3, PHI3, OLMO2)

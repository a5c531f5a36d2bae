"""Families with LayerNorm whose queries, keys and values are one projection in layouts of their
own: Falcon, BLOOM, GPT-BigCode, CodeGen; and GPT-J, which CodeGen follows.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from effcompress.model.families import llama
from effcompress.model.families.layernorm import family, norm
from effcompress.model.families.llama import ATTENTION, COUNTS, FFN, HEAD, QUERY, Name, linear, side
from effcompress.types import Axis, Config, Family, Fields, ModuleSizes, Residual, Sublayer, Widths

_LAYER = "transformer.h.{i}"
_FINAL = "transformer.ln_f"
_ALIBI = (
    "how a head's scores fall with the distance (ALiBi) follows from the number of heads, which is "
    "one for all layers"
)
_GPT_FIELDS = {
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "max_position_embeddings": "n_positions",
    "intermediate_size": "n_inner",
}


def _fused(module: str, rows: tuple[Name, ...], into: Name, bias: str | None) -> Iterator[Axis]:
    """Axes of a projection whose ``rows`` are segments. ``bias``: the flag that it is there with,
    empty where it always is, None where there is none.
    """
    for name in rows:
        yield side(f"{module}.weight", 0, name)
        if bias is not None:
            yield side(f"{module}.bias", 0, name, bias)
    yield side(f"{module}.weight", 1, into)


def _norms(*paths: str) -> tuple[Axis, ...]:
    return tuple(axis for path in paths for axis in norm(path))


def _inner(config: Config, _layer: int) -> int:
    return config.get("n_inner") or 4 * config["n_embd"]


_ONE = ("input_layernorm", "input_layernorm")
_TWO = ("input_layernorm", "post_attention_layernorm")
_ROWS: Mapping[str, tuple[Name, ...]] = {
    "group": ((ATTENTION, "group"),),
    "shared": (QUERY, HEAD, HEAD),
    "head": ((ATTENTION, "qkv"),),
}
"""Layout of Falcon's queries, keys and values -> the rows of their projection. ``group`` (40B): a
KV head stands behind its queries, which stay; ``shared`` (7B): one KV head behind all queries;
``head``: every head has its own.
"""


def _falcon(layout: str, norms: tuple[str, str], *, alibi: bool) -> Family:
    """Falcon with norms in front of each block, or one in front of both; positions are rotations,
    or biases of the scores (``alibi``).
    """
    every = dict.fromkeys(norms)
    blocks = [(), ()] if len(every) == 1 else [norms[:1], norms[1:]]
    stay = dict.fromkeys(("attention", "query"), _ALIBI) if alibi else {}
    if layout == "group":
        stay["query"] = "in one matrix with the KV heads, each behind as many queries"
    units = {
        "ffn": lambda c, _: c.get("ffn_hidden_size") or 4 * c["hidden_size"],
        "attention": lambda c, _: _kv_heads(c),
        **({} if layout == "head" else {"query": lambda c, _: _per_kv(c)}),
    }
    return family(
        "falcon",
        {"hidden": "hidden_size"},
        _LAYER,
        (Sublayer("self_attention", 2, blocks[0]), Sublayer("mlp", 1, blocks[1])),
        f"{_FINAL}.weight",
        _falcon_axes(layout, *every),
        name=f"falcon_{layout}_{norms[1]}" + ("_alibi" if alibi else ""),
        heads="num_attention_heads",
        units=units,
        norms=(*(f"{_LAYER}.{name}.weight" for name in every), f"{_FINAL}.weight"),
        positions_per_unit={
            "one": lambda _: 1,
            "head": llama.head_dim,
            "qkv": lambda c: 3 * llama.head_dim(c),
            "group": lambda c: (_per_kv(c) + 2) * llama.head_dim(c),
        },
        fixed=("vocab", *stay),
        unreached=stay,
        required=("vocab_size", "hidden_size", *COUNTS),
        applies=lambda c: alibi is bool(c.get("alibi")) and (layout, norms) == _built(c),
        attributes=_falcon_attributes,
        outside=_falcon_outside if alibi else lambda _config, _widths: {},
        resize=_falcon_resize,
        pad=_falcon_pad,
        epsilon_field="layer_norm_epsilon",
        residual=lambda _: Residual(
            ("self_attention",), ("mlp",), parallel=norms != _TWO, alone=False
        ),
        defaults={"tie_word_embeddings": True, "multi_query": True, "parallel_attn": True},
        aliases={"intermediate_size": "ffn_hidden_size"},
    )


def _falcon_axes(layout: str, *norms: str) -> tuple[Axis, ...]:
    attention, mlp = f"{_LAYER}.self_attention", f"{_LAYER}.mlp"
    heads: Name = HEAD if layout == "head" else QUERY
    return (
        *linear("transformer.word_embeddings", "vocab", "hidden"),
        *_norms(*(f"{_LAYER}.{name}" for name in norms), _FINAL),
        *_fused(f"{attention}.query_key_value", _ROWS[layout], "hidden", "bias"),
        *llama.biased(f"{attention}.dense", "hidden", heads, "bias"),
        *llama.biased(f"{mlp}.dense_h_to_4h", FFN, "hidden", "bias"),
        *llama.biased(f"{mlp}.dense_4h_to_h", "hidden", FFN, "bias"),
    )


def _built(config: Config) -> tuple[str, tuple[str, str]]:
    """The layout and the norms that the class makes of a configuration."""
    if config.get("new_decoder_architecture"):
        two = config.get("num_ln_in_parallel_attn") in (None, 2)
        return "group", ("ln_attn", "ln_mlp") if two else _ONE
    layout = "shared" if config.get("multi_query", True) else "head"
    return layout, _ONE if config.get("parallel_attn", True) else _TWO


def _kv_heads(config: Config) -> int:
    heads = config["num_attention_heads"]
    if config.get("new_decoder_architecture"):
        return config.get("num_kv_heads") or heads
    return 1 if config.get("multi_query", True) else heads


def _per_kv(config: Config) -> int:
    return config["num_attention_heads"] // _kv_heads(config)


def _falcon_attributes(_config: Config, widths: Widths) -> ModuleSizes:
    kv = widths["attention"]
    return {"self_attention": {"num_heads": kv * widths.get("query", 1), "num_kv_heads": kv}}


def _falcon_outside(config: Config, _widths: Widths) -> ModuleSizes:
    # Biases are divided by the root of hidden size / heads, which stays that of the parent.
    return {"transformer": {"config.hidden_size": config["hidden_size"]}}


def _falcon_resize(_config: Config, widths: Widths) -> Fields:
    kv = widths["attention"]
    return {
        "hidden_size": widths["hidden"],
        "ffn_hidden_size": widths["ffn"],
        "num_attention_heads": kv * widths.get("query", 1),
        # Not read where one is shared.
        "num_kv_heads": kv,
    }


def _falcon_pad(config: Config, widths: Widths) -> dict[str, int]:
    """Pads heads until hidden size / heads is the width of a head again, if it divides."""
    kind = "query" if widths["attention"] == 1 and "query" in widths else "attention"
    each = llama.head_dim(config) * (widths.get("query", 1) if kind == "attention" else 1)
    fitting, rest = divmod(widths["hidden"], each)
    return {} if rest or fitting < widths[kind] else {kind: fitting}


FALCON = tuple(
    _falcon(layout, norms, alibi=alibi)
    for layout, norms in (
        ("group", ("ln_attn", "ln_mlp")),
        *((layout, _ONE) for layout in ("group", "shared", "head")),
        *((layout, _TWO) for layout in ("shared", "head")),
    )
    for alibi in (False, True)
)


def _bloom_no_depth(config: Config) -> str:
    said = "the residual stream itself is normalised in every layer"
    return said if config.get("apply_residual_connection_post_layernorm") else ""


BLOOM = family(
    "bloom",
    {"hidden": "hidden_size"},
    _LAYER,
    (
        # Both modules are given the stream, add to it, and return it.
        Sublayer("self_attention", -2, ("input_layernorm",)),
        Sublayer("mlp", -1, ("post_attention_layernorm",)),
    ),
    f"{_FINAL}.weight",
    (
        *linear("transformer.word_embeddings", "vocab", "hidden"),
        *_norms(
            "transformer.word_embeddings_layernorm",
            *(f"{_LAYER}.{name}" for name in _TWO),
            _FINAL,
        ),
        *_fused(
            f"{_LAYER}.self_attention.query_key_value", ((ATTENTION, "qkv"),), "hidden", bias=""
        ),
        *llama.biased(f"{_LAYER}.self_attention.dense", "hidden", HEAD),
        *llama.biased(f"{_LAYER}.mlp.dense_h_to_4h", FFN, "hidden"),
        *llama.biased(f"{_LAYER}.mlp.dense_4h_to_h", "hidden", FFN),
    ),
    heads="n_head",
    units={"attention": lambda c, _: c["n_head"], "ffn": lambda c, _: 4 * c["hidden_size"]},
    norms=(
        "transformer.word_embeddings_layernorm.weight",
        *(f"{_LAYER}.{name}.weight" for name in _TWO),
        f"{_FINAL}.weight",
    ),
    fixed=("vocab", "attention"),
    unreached={"attention": _ALIBI},
    derived={"ffn": lambda _, w: 4 * w["hidden"]},
    required=("vocab_size", "hidden_size", "n_layer", "n_head"),
    resize=lambda _, w: {"hidden_size": w["hidden"]},
    pad=lambda _, w: {"ffn": 4 * w["hidden"]},
    epsilon_field="layer_norm_epsilon",
    residual=lambda _: Residual(("self_attention",), ("mlp",), alone=False),
    no_depth=_bloom_no_depth,
    defaults={"tie_word_embeddings": True},
    aliases={"num_hidden_layers": "n_layer", "num_attention_heads": "n_head"},
)


def _bigcode(*, multi_query: bool) -> Family:
    """All queries share one KV head, or each has its own."""
    rows: tuple[Name, ...] = (QUERY, HEAD, HEAD) if multi_query else ((ATTENTION, "qkv"),)
    kind = "query" if multi_query else "attention"
    attention, mlp = f"{_LAYER}.attn", f"{_LAYER}.mlp"

    def attributes(config: Config, widths: Widths) -> ModuleSizes:
        heads = widths[kind]
        channels = heads * (config["n_embd"] // config["n_head"])
        sizes = {"num_heads": heads, "embed_dim": channels, "split_size": channels}
        if multi_query:
            return {"attn": {**sizes, "num_key_value_groups": heads}}
        return {"attn": {**sizes, "kv_heads": heads, "kv_dim": channels}}

    def resize(_config: Config, widths: Widths) -> Fields:
        sizes = {"n_embd": widths["hidden"], "n_inner": widths["ffn"], "n_head": widths[kind]}
        return {**sizes, "num_key_value_heads": 1 if multi_query else widths[kind]}

    def pad(config: Config, widths: Widths) -> dict[str, int]:
        fitting, rest = divmod(widths["hidden"], config["n_embd"] // config["n_head"])
        return {} if rest or fitting < widths[kind] else {kind: fitting}

    units: Mapping[str, Any] = {
        "attention": lambda c, _: 1 if multi_query else c["n_head"],
        "ffn": _inner,
        "positions": lambda c, _: c["n_positions"],
        **({"query": lambda c, _: c["n_head"]} if multi_query else {}),
    }
    return family(
        "gpt_bigcode",
        {"hidden": "n_embd"},
        _LAYER,
        (Sublayer("attn", 2, ("ln_1",)), Sublayer("mlp", 1, ("ln_2",))),
        f"{_FINAL}.weight",
        (
            *linear("transformer.wte", "vocab", "hidden"),
            *linear("transformer.wpe", "positions", "hidden"),
            *_norms(f"{_LAYER}.ln_1", f"{_LAYER}.ln_2", _FINAL),
            *_fused(f"{attention}.c_attn", rows, "hidden", bias=""),
            *llama.biased(f"{attention}.c_proj", "hidden", QUERY if multi_query else HEAD),
            *llama.biased(f"{mlp}.c_fc", FFN, "hidden"),
            *llama.biased(f"{mlp}.c_proj", "hidden", FFN),
        ),
        name="gpt_bigcode" if multi_query else "gpt_bigcode_by_head",
        heads="n_head",
        units=units,
        fixed=("vocab", "positions"),
        required=("vocab_size", "n_embd", "n_layer", "n_head", "n_positions"),
        applies=lambda c: multi_query is bool(c.get("multi_query", True)),
        attributes=attributes,
        resize=resize,
        pad=pad,
        epsilon_field="layer_norm_epsilon",
        residual=lambda _: Residual(("attn",), ("mlp",)),
        defaults={"tie_word_embeddings": True},
        aliases=_GPT_FIELDS,
    )


BIGCODE = (_bigcode(multi_query=True), _bigcode(multi_query=False))


def _parallel(model_type: str, attention: tuple[Axis, ...], heads: int, **traits: Any) -> Family:
    """GPT-J and CodeGen: both blocks read one norm; a unit of attention is so many heads."""

    def head(config: Config) -> int:
        return heads * (config["n_embd"] // config["n_head"])

    def pad(config: Config, widths: Widths) -> dict[str, int]:
        fitting, rest = divmod(widths["hidden"], head(config))
        return {} if rest or fitting < widths["attention"] else {"attention": fitting}

    return family(
        model_type,
        {"hidden": "n_embd"},
        _LAYER,
        (Sublayer("attn", 2, ()), Sublayer("mlp", 1, ())),
        f"{_FINAL}.weight",
        (
            *linear("transformer.wte", "vocab", "hidden"),
            *_norms(f"{_LAYER}.ln_1", _FINAL),
            *attention,
            *llama.biased(f"{_LAYER}.mlp.fc_in", FFN, "hidden"),
            *llama.biased(f"{_LAYER}.mlp.fc_out", "hidden", FFN),
            Axis("lm_head.bias", 0, "vocab"),
        ),
        heads="n_head",
        units={"attention": lambda c, _: c["n_head"] // heads, "ffn": _inner},
        norms=(f"{_LAYER}.ln_1.weight", f"{_FINAL}.weight"),
        positions_per_unit={
            "one": lambda _: 1,
            "head": head,
            "lane": lambda c: head(c) // heads,
        },
        head_widths=lambda c: (head(c), head(c)),
        fixed=("vocab",),
        required=("vocab_size", "n_embd", "n_layer", "n_head"),
        attributes=lambda _, w: {"attn": {"num_attention_heads": heads * w["attention"]}},
        resize=lambda _, w: {
            "n_embd": w["hidden"],
            "n_inner": w["ffn"],
            "n_head": heads * w["attention"],
        },
        pad=pad,
        epsilon_field="layer_norm_epsilon",
        residual=lambda _: Residual(("attn",), ("mlp",), parallel=True, alone=False),
        defaults={},
        aliases=_GPT_FIELDS,
        **traits,
    )


GPTJ = _parallel(
    "gptj",
    (
        *(a for x in "kvq" for a in linear(f"{_LAYER}.attn.{x}_proj", HEAD, "hidden")),
        *linear(f"{_LAYER}.attn.out_proj", "hidden", HEAD),
    ),
    heads=1,
)
_CORES = 4
"""CodeGen's rows are split over the cores that it was trained on: each has queries, values and keys
of a quarter of the heads. A unit is one head of each.
"""
_LANE = (ATTENTION, "lane")
CODEGEN = _parallel(
    "codegen",
    (
        *_fused(f"{_LAYER}.attn.qkv_proj", (_LANE,) * 3 * _CORES, "hidden", bias=None),
        side(f"{_LAYER}.attn.out_proj.weight", 0, "hidden"),
        *(side(f"{_LAYER}.attn.out_proj.weight", 1, _LANE) for _ in range(_CORES)),
    ),
    heads=_CORES,
)
FAMILIES = (*FALCON, BLOOM, *BIGCODE, GPTJ, CODEGEN)

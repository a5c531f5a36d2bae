"""Decoders whose layers are not alike: attention in some, a linear recurrence in others."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from effcompress.model.families import llama
from effcompress.model.families.experts import (
    DENSE,
    SPARSE,
    Mixture,
    dense_layers_listed,
    kept_listed,
)
from effcompress.model.families.llama import LAYER, attention, biased, decoder, gated, linear, side
from effcompress.types import (
    Axis,
    Config,
    Family,
    Fields,
    ModuleSizes,
    Residual,
    Sublayer,
    Widths,
)

LINEAR_HEAD = "linear_head.{i}"
"""A key head of linear attention, with the value heads that it has to itself."""
FULL, LINEAR = "full", "linear"
"""Flags: a layer has attention over all tokens, or linear attention."""
FIXED = ("vocab", "head_dim", "kernel", "one", "linear_value")
"""Kinds that are never cut; ``one`` is a dimension of one position."""


def where(axes: Iterable[Axis], when: str) -> Iterator[Axis]:
    """Yields these axes for the layers where ``when`` holds, too."""
    for axis in axes:
        yield replace(axis, when=f"{when} & {axis.when}" if axis.when else when)


def layer_types(config: Config) -> list[str]:
    """The kind of every layer; where the configuration states none, every fourth one is full."""
    if config.get("layer_types"):
        return config["layer_types"]
    every = config.get("full_attention_interval") or 4
    numbers = range(1, config["num_hidden_layers"] + 1)
    return ["linear_attention" if number % every else "full_attention" for number in numbers]


def _is(kind: str) -> Callable[[Config, int], bool]:
    return lambda config, layer: layer_types(config)[layer] == kind


def keeps_one(full: Callable[[Config, int], bool]) -> Callable[[Config], Iterator[str]]:
    """Returns what stays of the layers with attention to all tokens (``full``): the last one, since
    a cache counts tokens where there are keys and values.
    """

    def staying(config: Config) -> Iterator[str]:
        layers = [i for i in range(config["num_hidden_layers"]) if full(config, i)]
        for kind in ("layer", "mlp_block"):
            yield from (f"{kind}.{i}" for i in layers[-1:])

    return staying


def _gated_attention() -> Iterator[Axis]:
    """Axes of attention whose query rows are followed, head by head, by those of an output gate."""
    for axis in (*attention(), *llama.QK_NORM):
        both = axis.dim == 0 and ".q_proj." in axis.param
        yield replace(axis, positions_per_unit="gated_head") if both else axis


def convolution(module: str, rows: Iterable[llama.Name], bias: str = "") -> Iterator[Axis]:
    """Axes of a depthwise convolution ``[channels, 1, kernel]``."""
    for name in (rows := tuple(rows)):
        yield side(f"{module}.weight", 0, name)
    yield side(f"{module}.weight", 1, "one")
    yield side(f"{module}.weight", 2, "kernel")
    for name in rows if bias else ():
        yield side(f"{module}.bias", 0, name, bias)


def by_channel(channels: int) -> dict[str, Any]:
    """Sizes that the module of a depthwise convolution keeps."""
    return dict.fromkeys(("in_channels", "out_channels", "groups"), channels)


_DELTA = LAYER + "linear_attn."
_KEY, _VALUES = (LINEAR_HEAD, "linear_key"), (LINEAR_HEAD, "linear_values")
_PER_VALUE = (LINEAR_HEAD, "linear_ratio")


def _delta_net(*projections: Axis) -> Iterator[Axis]:
    """Axes of a gated delta rule with these projections of its input. Value heads follow their key
    head, so that the rows of a unit are neighbours.
    """
    yield from projections
    yield from convolution(_DELTA + "conv1d", (_KEY, _KEY, _VALUES))
    yield side(_DELTA + "A_log", 0, _PER_VALUE)
    yield side(_DELTA + "dt_bias", 0, _PER_VALUE)
    yield side(_DELTA + "norm.weight", 0, "linear_value")
    yield from linear(_DELTA + "out_proj", "hidden", _VALUES)


def _apart() -> Iterator[Axis]:
    """Axes of Qwen3.5's projections: all queries, all keys, all values."""
    qkv = _DELTA + "in_proj_qkv.weight"
    yield from (side(qkv, 0, rows) for rows in (_KEY, _KEY, _VALUES))
    yield side(qkv, 1, "hidden")
    yield from linear(_DELTA + "in_proj_z", _VALUES, "hidden")
    yield from linear(_DELTA + "in_proj_b", _PER_VALUE, "hidden")
    yield from linear(_DELTA + "in_proj_a", _PER_VALUE, "hidden")


def _together() -> Iterator[Axis]:
    """Axes of Qwen3-Next's: query, key, values and gates of a head one behind the other."""
    yield from linear(_DELTA + "in_proj_qkvz", (LINEAR_HEAD, "linear_qkvz"), "hidden")
    yield from linear(_DELTA + "in_proj_ba", (LINEAR_HEAD, "linear_ba"), "hidden")


def _ratio(config: Config) -> int:
    """Value heads of a key head."""
    return config["linear_num_value_heads"] // config["linear_num_key_heads"]


def _values(config: Config) -> int:
    return _ratio(config) * config["linear_value_head_dim"]


UNITS = {
    **llama.UNITS,
    "linear_head": lambda c, _: c["linear_num_key_heads"],
    "linear_value": lambda c, _: c["linear_value_head_dim"],
    "kernel": lambda c, _: c["linear_conv_kernel_dim"],
    "one": lambda _c, _i: 1,
}
PER_UNIT: dict[str, Callable[[Config], int]] = {
    "one": lambda _: 1,
    "head": llama.head_dim,
    "gated_head": lambda c: 2 * llama.head_dim(c),
    "linear_key": lambda c: c["linear_key_head_dim"],
    "linear_values": _values,
    "linear_ratio": _ratio,
    "linear_qkvz": lambda c: 2 * (c["linear_key_head_dim"] + _values(c)),
    "linear_ba": lambda c: 2 * _ratio(c),
}


def _whole(config: Config, widths: Widths) -> dict[str, int]:
    """The widths, with those of the configuration for kinds that no layer is left of."""
    kinds = ("attention", "query", "linear_head")
    absent = {kind: UNITS[kind](config, 0) for kind in kinds}
    return {"ffn": config.get("intermediate_size", 0), **absent, **widths}


def _resize(config: Config, widths: Widths) -> Fields:
    wide = _whole(config, widths)
    found = llama.resize(config, wide)
    if "intermediate_size" not in config:
        del found["intermediate_size"]
    return {
        **found,
        "linear_num_key_heads": wide["linear_head"],
        "linear_num_value_heads": wide["linear_head"] * _ratio(config),
    }


def _attributes(config: Config, widths: Widths) -> ModuleSizes:
    if "attention" in widths:
        return llama.repeats(config, widths)
    if "linear_head" not in widths:
        return {}
    heads, values = widths["linear_head"], _values(config)
    key = heads * config["linear_key_head_dim"]
    channels = 2 * key + heads * values
    sizes = {"num_k_heads": heads, "num_v_heads": heads * _ratio(config)}
    sizes |= {"key_dim": key, "value_dim": heads * values, "conv_dim": channels}
    return {"linear_attn": {**sizes}, "linear_attn.conv1d": by_channel(channels)}


def _kept(config: Config, layers: tuple[int, ...]) -> Fields:
    kinds = layer_types(config)
    return {"layer_types": [kinds[i] for i in layers]}


def _updates(config: Config) -> int:
    """Operations of a token that updates and reads the states of a key head."""
    # A state [keys, values] decays, is read by the key, gains an outer product, is read by the
    # query: one operation per entry, then three times two.
    return 7 * config["linear_key_head_dim"] * _values(config)


_LINEAR_DEFAULTS = {
    **{"linear_num_key_heads": 16, "linear_num_value_heads": 32, "linear_conv_kernel_dim": 4},
    **{"linear_key_head_dim": 128, "linear_value_head_dim": 128, "head_dim": 256},
}
_TRAITS: dict[str, Any] = {
    "units": UNITS,
    "positions_per_unit": PER_UNIT,
    "flags": {FULL: _is("full_attention"), LINEAR: _is("linear_attention")},
    "sublayers": {
        "attention_block": Sublayer(
            "self_attn", 2, ("input_layernorm",), instead=(("linear_attn", 1),)
        ),
        "mlp_block": Sublayer("mlp", 1, ("post_attention_layernorm",)),
    },
    "fixed": FIXED,
    "gain_offset": 1.0,
    "epsilon_attribute": "eps",
    # The gated norm behind linear attention reads a state that no weight scales.
    "scales_stream": True,
    "resize": _resize,
    "attributes": _attributes,
    "depth_fields": _kept,
    "recurrence": {"linear_head": _updates},
    "staying": keeps_one(_is("full_attention")),
}


def _qwen(*model_types: str, projections: Iterable[Axis], **traits: Any) -> Family:
    """Declares a decoder with gated attention in some layers and linear attention in the others."""
    mixers = (*where(_gated_attention(), FULL), *where(_delta_net(*projections), LINEAR))
    modules = (*mixers, *traits.pop("feed_forward", gated()))
    return decoder(*model_types, modules=modules, **{**_TRAITS, **traits})


QWEN3_5 = _qwen(
    "qwen3_5_text",
    name="qwen3_5",
    projections=_apart(),
    defaults={"qwen3_5_text": {"num_key_value_heads": 4, **_LINEAR_DEFAULTS}},
)


def _sparse_qwen(mixture: Mixture) -> dict[str, Any]:
    """Traits of a decoder with these mixers and, in some layers, mixtures."""
    traits = mixture.traits(_resize)
    experts = traits["attributes"]

    def attributes(config: Config, widths: Widths) -> ModuleSizes:
        found = {k: v for k, v in experts(config, widths).items() if k != "self_attn"}
        return {**found, **_attributes(config, widths)}

    return {
        **traits,
        "units": {**traits["units"], **UNITS},
        "flags": {**_TRAITS["flags"], **traits["flags"]},
        "fixed": tuple(dict.fromkeys((*FIXED, *traits["fixed"]))),
        "attributes": attributes,
        "feed_forward": (
            *gated(when=DENSE),
            *mixture.axes(),
            *mixture.beside_axes(),
            # How much of the shared expert is added, a number per token.
            *linear(LAYER + "mlp.shared_expert_gate", "one", "hidden", SPARSE),
        ),
    }


def _sparse(config: Config, layer: int) -> bool:
    return dense_layers_listed(config, layer) and config["num_experts"] > 0


_SHARED: dict[str, Any] = {
    "shared": "mlp.shared_expert",
    "shared_width": "shared_expert_intermediate_size",
}
_SHARED_DEFAULTS = {
    **{"num_key_value_heads": 2, "moe_intermediate_size": 512},
    "shared_expert_intermediate_size": 512,
}
QWEN3_NEXT = _qwen(
    "qwen3_next",
    projections=_together(),
    defaults={
        "qwen3_next": {
            **{**_LINEAR_DEFAULTS, **_SHARED_DEFAULTS},
            **{"num_experts_per_tok": 10, "num_experts": 512},
        }
    },
    depth_fields=lambda config, layers: {**kept_listed(config, layers), **_kept(config, layers)},
    **_sparse_qwen(Mixture(("num_experts",), sparse=_sparse, **_SHARED)),
)
QWEN3_5_MOE = _qwen(
    "qwen3_5_moe_text",
    name="qwen3_5_moe",
    projections=_apart(),
    required=("vocab_size", "hidden_size", *llama.COUNTS),
    defaults={
        "qwen3_5_moe_text": {
            **{**_LINEAR_DEFAULTS, **_SHARED_DEFAULTS},
            **{"num_experts_per_tok": 8, "num_experts": 256},
        }
    },
    **_sparse_qwen(Mixture(("num_experts",), **_SHARED)),
)


CHANNEL = "conv_channel.{i}"
_CONV = LAYER + "conv."


def _short_convolution() -> Iterator[Axis]:
    """Axes of a convolution between two gates: a channel has a row of each of three projections."""
    rows = (CHANNEL,) * 3
    for name in rows:
        yield side(_CONV + "in_proj.weight", 0, name)
        yield side(_CONV + "in_proj.bias", 0, name, "conv_bias")
    yield side(_CONV + "in_proj.weight", 1, "hidden")
    yield from convolution(_CONV + "conv", (CHANNEL,), "conv_bias")
    yield from biased(_CONV + "out_proj", "hidden", CHANNEL, "conv_bias")


def _renamed(axes: Iterable[Axis], names: Mapping[str, str]) -> Iterator[Axis]:
    """Yields the axes with other names of modules."""
    for axis in axes:
        module = axis.param.split(".")[-2]
        param = axis.param.replace(f".{module}.", f".{names.get(module, module)}.")
        yield replace(axis, param=param)


def _lfm2_attention() -> Iterator[Axis]:
    names = {"o_proj": "out_proj", "q_norm": "q_layernorm", "k_norm": "k_layernorm"}
    return _renamed((*attention("", ""), *llama.QK_NORM), names)


def _lfm2_feed_forward(when: str = "") -> Iterator[Axis]:
    for name in ("w1", "w3"):
        yield from linear(LAYER + f"feed_forward.{name}", llama.FFN, "hidden", when)
    yield from linear(LAYER + "feed_forward.w2", "hidden", llama.FFN, when)


def _lfm2_types(config: Config) -> list[str]:
    """The kind of every layer; the numbers of those with attention may be all that is stated."""
    layers = range(config["num_hidden_layers"])
    full = config.get("full_attn_idxs")
    drawn = ["full_attention" if full is None or i in full else "conv" for i in layers]
    return config.get("layer_types") or drawn


def _lfm2_ffn(config: Config, _layer: int = 0) -> int:
    """Width of the feed-forward, which the class derives from the one stated."""
    stated = config.get("block_ff_dim") or config["intermediate_size"]
    if not config["block_auto_adjust_ff_dim"]:
        return stated
    wide = int((config["block_ffn_dim_multiplier"] or 1) * int(2 * stated / 3))
    return -(-wide // config["block_multiple_of"]) * config["block_multiple_of"]


def _lfm2_resize(config: Config, widths: Widths) -> Fields:
    kinds = ("attention", "query", "ffn")
    wide = {**{kind: LFM2_UNITS[kind](config, 0) for kind in kinds}, **widths}
    derived = {name: wide["ffn"] for name in ("block_ff_dim",) if name in config}
    return {**llama.resize(config, wide), **derived, "block_auto_adjust_ff_dim": False}


def _lfm2_attributes(config: Config, widths: Widths) -> ModuleSizes:
    if "attention" in widths:
        return llama.repeats(config, widths)
    return {"conv.conv": by_channel(widths["conv_channel"])} if "conv_channel" in widths else {}


def _lfm2_pad(config: Config, widths: Widths) -> dict[str, int]:
    # The class has as many channels in a convolution as in the stream.
    widest = max(widths["hidden"], widths.get("conv_channel", 0))
    return {kind: widest for kind in ("hidden", "conv_channel") if kind in widths}


def _lfm2_kept(config: Config, layers: tuple[int, ...]) -> Fields:
    return {"layer_types": [_lfm2_types(config)[i] for i in layers]}


LFM2_UNITS = {
    **llama.UNITS,
    "ffn": _lfm2_ffn,
    "conv_channel": lambda c, _: c["hidden_size"],
    "kernel": lambda c, _: c["conv_L_cache"],
    "one": lambda _c, _i: 1,
}
_LFM2_DEFAULTS = {
    **{"num_key_value_heads": 8, "tie_word_embeddings": True, "conv_L_cache": 3},
    **{"block_auto_adjust_ff_dim": True, "block_ffn_dim_multiplier": 1.0, "block_multiple_of": 256},
}
_LFM2: dict[str, Any] = {
    "attention_norms": ("operator_norm",),
    "mlp_norms": ("ffn_norm",),
    "final_norm": "model.embedding_norm.weight",
    "units": LFM2_UNITS,
    "flags": {
        FULL: lambda c, i: _lfm2_types(c)[i] == "full_attention",
        LINEAR: lambda c, i: _lfm2_types(c)[i] == "conv",
    },
    "sublayers": {
        "attention_block": Sublayer("self_attn", 2, ("operator_norm",), instead=(("conv", 1),)),
        "mlp_block": Sublayer("feed_forward", 1, ("ffn_norm",)),
    },
    "staying": keeps_one(lambda c, i: _lfm2_types(c)[i] == "full_attention"),
    "fixed": FIXED,
    "fed_by": {LAYER + f"self_attn.{x}_layernorm": LAYER + f"self_attn.{x}_proj" for x in "qk"},
    "epsilon_field": "norm_eps",
    "residual": lambda _: Residual(mlp=("feed_forward",)),
    "attributes": _lfm2_attributes,
    "pad": _lfm2_pad,
    "derived": {"conv_channel": lambda _, widths: widths["hidden"]},
    "resize": _lfm2_resize,
    "depth_fields": _lfm2_kept,
}
_LFM2_MIXERS = (*where(_lfm2_attention(), FULL), *where(_short_convolution(), LINEAR))
LFM2 = decoder(
    "lfm2",
    modules=(*_LFM2_MIXERS, *_lfm2_feed_forward()),
    defaults={"lfm2": _LFM2_DEFAULTS},
    **_LFM2,
)


def _lfm2_dense(config: Config, layer: int) -> bool:
    return layer < config["num_dense_layers"]


_LFM2_MIXTURE = Mixture(
    ("num_experts",), block="feed_forward", sparse=lambda c, i: not _lfm2_dense(c, i)
)


def _lfm2_moe() -> dict[str, Any]:
    """Traits of LFM2 with mixtures behind the first layers."""
    traits = _LFM2_MIXTURE.traits(llama.resize)
    experts, resize = traits["attributes"], traits["resize"]
    units = {**LFM2_UNITS, "ffn": llama.UNITS["ffn"]}

    def attributes(config: Config, widths: Widths) -> ModuleSizes:
        found = {k: v for k, v in experts(config, widths).items() if k != "self_attn"}
        return {**found, **_lfm2_attributes(config, widths)}

    def pad(config: Config, widths: Widths) -> dict[str, int]:
        grown = _LFM2_MIXTURE.pad(config, {**widths, **_lfm2_pad(config, widths)})
        return {**grown, "conv_channel": grown["hidden"]}

    def sizes(config: Config, widths: Widths) -> Fields:
        kinds = {kind: units[kind](config, 0) for kind in ("attention", "query", "ffn")}
        return resize(config, {**kinds, **widths})

    def kept(config: Config, layers: tuple[int, ...]) -> Fields:
        dense = sum(_lfm2_dense(config, i) for i in layers)
        return {**_lfm2_kept(config, layers), "num_dense_layers": dense}

    return {
        **{**_LFM2, **traits},
        "units": {**traits["units"], **units},
        "flags": {**_LFM2["flags"], **traits["flags"]},
        "fixed": tuple(dict.fromkeys((*FIXED, *traits["fixed"]))),
        "derived": {**_LFM2["derived"], **traits["derived"]},
        "attributes": attributes,
        "pad": pad,
        "resize": sizes,
        "depth_fields": kept,
    }


LFM2_MOE = decoder(
    "lfm2_moe",
    modules=(
        *_LFM2_MIXERS,
        *_lfm2_feed_forward(DENSE),
        *_LFM2_MIXTURE.axes(),
    ),
    defaults={
        "lfm2_moe": {
            **{"num_key_value_heads": 8, "tie_word_embeddings": True, "conv_L_cache": 3},
            **{"num_dense_layers": 2, "num_experts": 32, "num_experts_per_tok": 4},
            "moe_intermediate_size": 1792,
        }
    },
    **_lfm2_moe(),
)
FAMILIES = (QWEN3_5, QWEN3_NEXT, QWEN3_5_MOE, LFM2, LFM2_MOE)

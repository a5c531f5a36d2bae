"""Decoders whose layers are not alike: attention in some, a linear recurrence in others."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

from effcompress.model.families import llama
from effcompress.model.families.llama import LAYER, attention, decoder, gated, linear, side
from effcompress.types import Axis, Config, Family, Fields, ModuleSizes, Sublayer, Widths

LINEAR_HEAD = "linear_head.{i}"
"""A key head of linear attention, with the value heads that it has to itself."""
FULL, LINEAR = "full", "linear"
"""Flags: a layer has attention over all tokens, or linear attention."""
FIXED = ("vocab", "head_dim", "kernel", "single", "linear_value")


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


def _gated_attention() -> Iterator[Axis]:
    """Axes of attention whose query rows are followed, head by head, by those of an output gate."""
    for axis in (*attention(), *llama.QK_NORM):
        both = axis.dim == 0 and ".q_proj." in axis.param
        yield replace(axis, positions_per_unit="gated_head") if both else axis


def _convolution(module: str, rows: Iterable[llama.Name], bias: str = "") -> Iterator[Axis]:
    """Axes of a depthwise convolution ``[channels, 1, kernel]``."""
    for name in (rows := tuple(rows)):
        yield side(f"{module}.weight", 0, name)
    yield side(f"{module}.weight", 1, "single")
    yield side(f"{module}.weight", 2, "kernel")
    for name in rows if bias else ():
        yield side(f"{module}.bias", 0, name, bias)


_DELTA = LAYER + "linear_attn."
_KEY, _VALUES = (LINEAR_HEAD, "linear_key"), (LINEAR_HEAD, "linear_values")
_PER_VALUE = (LINEAR_HEAD, "linear_ratio")


def _delta_net(*projections: Axis) -> Iterator[Axis]:
    """Axes of a gated delta rule with these projections of its input. Value heads follow their key
    head, so that the rows of a unit are neighbours.
    """
    yield from projections
    yield from _convolution(_DELTA + "conv1d", (_KEY, _KEY, _VALUES))
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
    "single": lambda _c, _i: 1,
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
    kinds = ("attention", "query", "ffn", "linear_head")
    return {**{kind: UNITS[kind](config, 0) for kind in kinds}, **widths}


def _resize(config: Config, widths: Widths) -> Fields:
    wide = _whole(config, widths)
    return {
        **llama.resize(config, wide),
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
    rows = dict.fromkeys(("in_channels", "out_channels", "groups"), channels)
    return {"linear_attn": {**sizes}, "linear_attn.conv1d": {**rows}}


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
            "self_attn", 2, ("input_layernorm",), more=(("linear_attn", 1),)
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
FAMILIES = (QWEN3_5,)

"""Decoders with state spaces (Mamba-2) in some layers and attention in others. What a state space
owns is never cut; its layer, its block and the stream that it reads are.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from effcompress.model.families import llama
from effcompress.model.families.experts import GRANITE_MIXTURE, granite_blocks
from effcompress.model.families.hybrids import convolution, where
from effcompress.model.families.llama import LAYER, attention, decoder, linear, maybe_biased, side
from effcompress.types import Axis, Config, Fields, ModuleSizes, Residual, Sublayer, Widths

INNER, HEADS, ROWS, CHANNELS = "ssm_inner", "ssm_head", "ssm_row", "ssm_channel"
"""Channels and heads of a state space, rows of its projection, channels of its convolution."""
FULL, STATE = "full", "state"
"""Flags: a layer has attention, or a state space."""
FIXED = ("vocab", "head_dim", "one", "kernel", INNER, HEADS, ROWS, CHANNELS)
_MAMBA = LAYER + "mamba."
_OTHER_NAMES = {"attention": "full_attention", "mamba": "linear_attention"}
"""Older names of kinds of layers."""


def _mamba() -> Iterator[Axis]:
    """Axes of a Mamba-2 mixer: one projection makes gates, inputs, B, C and the time steps."""
    yield from llama.biased(_MAMBA + "in_proj", ROWS, "hidden", "mamba_proj_bias")
    yield from convolution(_MAMBA + "conv1d", (CHANNELS,), "mamba_conv_bias")
    for name in ("A_log", "dt_bias", "D"):
        yield side(_MAMBA + name, 0, HEADS)
    yield side(_MAMBA + "norm.weight", 0, INNER)
    yield from llama.biased(_MAMBA + "out_proj", "hidden", INNER, "mamba_proj_bias")


def _inner(config: Config) -> int:
    return config["mamba_expand"] * config["hidden_size"]


def _channels(config: Config) -> int:
    return _inner(config) + 2 * config["mamba_n_groups"] * config["mamba_d_state"]


UNITS: dict[str, Callable[[Config, int], int]] = {
    **llama.UNITS,
    INNER: lambda c, _: _inner(c),
    HEADS: lambda c, _: c["mamba_n_heads"],
    CHANNELS: lambda c, _: _channels(c),
    ROWS: lambda c, _: _inner(c) + _channels(c) + c["mamba_n_heads"],
    "kernel": lambda c, _: c["mamba_d_conv"],
    "one": lambda _c, _i: 1,
}


def _resize(config: Config, widths: Widths) -> Fields:
    absent = {kind: UNITS[kind](config, 0) for kind in ("attention", "query", "ffn")}
    return llama.resize(config, {**absent, **widths})


def _attributes(config: Config, widths: Widths) -> ModuleSizes:
    return llama.repeats(config, widths) if "attention" in widths else {}


def _pad(config: Config, widths: Widths) -> dict[str, int]:
    # The class derives the width of a state space from that of the stream.
    return {"hidden": config["hidden_size"]} if INNER in widths else {}


_DEFAULTS = {
    **{"mamba_n_heads": 128, "mamba_n_groups": 1, "mamba_d_state": 256, "mamba_d_conv": 4},
    **{"mamba_expand": 2, "mamba_conv_bias": True},
}
_TRAITS: dict[str, Any] = {
    "fixed": FIXED,
    "derived": {INNER: lambda c, widths: c["mamba_expand"] * widths["hidden"]},
    "pad": _pad,
    # The gated norm of a state space reads what no weight scales.
    "scales_stream": True,
    # Of every channel a state decays, gains a product with an input, and is read.
    "recurrence": {INNER: lambda c: 5 * c["mamba_d_state"]},
}
_MIXERS = (*where(attention(), FULL), *where(_mamba(), STATE))


def _granite_types(config: Config) -> list[str]:
    stated = config.get("layer_types") or config.get("layers_block_type")
    kinds = stated or ["linear_attention"] * config["num_hidden_layers"]
    return [_OTHER_NAMES.get(kind, kind) for kind in kinds]


def _full_granite(config: Config, layer: int) -> bool:
    return _granite_types(config)[layer] == "full_attention"


_GRANITE = replace(
    GRANITE_MIXTURE,
    sparse=lambda config, _: config["num_local_experts"] > 0,
    shared="shared_mlp",
    shared_width="shared_intermediate_size",
)
_GRANITE_TRAITS = _GRANITE.traits(_resize)
_BLOCKS = granite_blocks("shared_mlp")


def _granite_attributes(config: Config, widths: Widths) -> ModuleSizes:
    found = _GRANITE_TRAITS["attributes"](config, widths)
    return {k: v for k, v in found.items() if k != "self_attn"} | _attributes(config, widths)


def _granite_resize(config: Config, widths: Widths) -> Fields:
    # Without experts the stated width is of no layer.
    return {"intermediate_size": config["intermediate_size"]} | _GRANITE_TRAITS["resize"](
        config, {"ffn": config["intermediate_size"], **widths}
    )


_SHARED = LAYER + "shared_mlp."
GRANITE_HYBRID = decoder(
    "granitemoehybrid",
    modules=(
        *_MIXERS,
        *_GRANITE.axes(),
        # Rows of all gates, then of all ups.
        *(side(_SHARED + "input_linear.weight", 0, "shared_ffn.{i}") for _ in range(2)),
        side(_SHARED + "input_linear.weight", 1, "hidden"),
        *linear(_SHARED + "output_linear", "hidden", "shared_ffn.{i}"),
    ),
    sublayers={
        "attention_block": replace(_BLOCKS["attention_block"], instead=(("mamba", 1),)),
        "mlp_block": _BLOCKS["mlp_block"],
    },
    residual=lambda _: Residual(mlp=("block_sparse_moe",)),
    residual_scale=lambda c: float(c.get("residual_multiplier") or 1),
    depth_fields=lambda c, layers: {"layer_types": [_granite_types(c)[i] for i in layers]},
    defaults={
        "granitemoehybrid": {
            **{"num_local_experts": 8, "num_experts_per_tok": 2, "shared_intermediate_size": 1024},
            **_DEFAULTS,
        }
    },
    **{
        **_GRANITE_TRAITS,
        **_TRAITS,
        "units": {**UNITS, **_GRANITE_TRAITS["units"]},
        "flags": {
            **_GRANITE_TRAITS["flags"],
            FULL: _full_granite,
            STATE: lambda c, i: not _full_granite(c, i),
        },
        "fixed": tuple(dict.fromkeys((*FIXED, *_GRANITE_TRAITS["fixed"]))),
        "pad": lambda c, w: {**_GRANITE_TRAITS["pad"](c, w), **_pad(c, w)},
        "resize": _granite_resize,
        "attributes": _granite_attributes,
    },
)


def _full_bamba(config: Config, layer: int) -> bool:
    return layer in (config.get("attn_layer_indices") or ())


def _bamba_kept(config: Config, layers: tuple[int, ...]) -> Fields:
    return {"attn_layer_indices": [j for j, i in enumerate(layers) if _full_bamba(config, i)]}


def _bamba_feed_forward() -> Iterator[Axis]:
    for name in ("gate_proj", "up_proj"):
        yield from maybe_biased(LAYER + f"feed_forward.{name}", llama.FFN, "hidden", "mlp_bias")
    yield from maybe_biased(LAYER + "feed_forward.down_proj", "hidden", llama.FFN, "mlp_bias")


BAMBA = decoder(
    "bamba",
    modules=(*_MIXERS, *_bamba_feed_forward()),
    mlp_norms=("pre_ff_layernorm",),
    final_norm="model.final_layernorm.weight",
    units=UNITS,
    flags={FULL: _full_bamba, STATE: lambda c, i: not _full_bamba(c, i)},
    sublayers={
        "attention_block": Sublayer("self_attn", 2, ("input_layernorm",), instead=(("mamba", 1),)),
        "mlp_block": Sublayer("feed_forward", 1, ("pre_ff_layernorm",)),
    },
    residual=lambda _: Residual(mlp=("feed_forward",)),
    resize=_resize,
    attributes=_attributes,
    depth_fields=_bamba_kept,
    defaults={"bamba": {"num_key_value_heads": 8, **_DEFAULTS}},
    **_TRAITS,
)
FAMILIES = (GRANITE_HYBRID, BAMBA)

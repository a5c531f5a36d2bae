"""Decoders of state spaces alone: Mamba-2, by groups and heads; Mamba, Falcon-Mamba, by channels.
Every layer is one norm and one mixer.
"""

from collections.abc import Iterator
from typing import Any

from effcompress.model.families.hybrids import by_channel, convolution
from effcompress.model.families.llama import biased, linear, side
from effcompress.model.families.ssm import StateSpace
from effcompress.types import Axis, Config, Family, Fields, ModuleSizes, Widths

LAYER = "backbone.layers.{i}."
CHANNEL = "ssm_channel.{i}"
"""A channel of a Mamba mixer: a convolution, a step, a state and a gate of its own."""
_SPACE = StateSpace(
    module="mixer",
    heads="num_heads",
    groups="n_groups",
    state="state_size",
    kernel="conv_kernel",
    width="head_dim",
    bias="use_bias",
    kernel_bias="use_conv_bias",
    expand="expand",
    layer=LAYER,
)


def _around() -> Iterator[Axis]:
    yield from linear("backbone.embeddings", "vocab", "hidden")
    yield side(LAYER + "norm.weight", 0, "hidden")
    yield side("backbone.norm_f.weight", 0, "hidden")
    yield from linear("lm_head", "vocab", "hidden", "!tie_word_embeddings")


def _inner(config: Config) -> int:
    return int(config["expand"] * config["hidden_size"])


def _rank(config: Config) -> int:
    stated = config["time_step_rank"]
    return -(-config["hidden_size"] // 16) if stated == "auto" else stated


_COMMON: dict[str, Any] = {
    "layer": "backbone.layers.{i}",
    "required": ("vocab_size", "hidden_size", "num_hidden_layers"),
    "final_norm": "backbone.norm_f.weight",
    "epsilon_field": "layer_norm_epsilon",
    "staying": lambda c: (f"layer.{c['num_hidden_layers'] - 1}",),
}
_UNITS = {"vocab": lambda c, _: c["vocab_size"], "hidden": lambda c, _: c["hidden_size"]}


def _resize(config: Config, widths: Widths) -> Fields:
    return {"hidden_size": widths["hidden"], **_SPACE.fields(config, widths)}


def _derived(config: Config, widths: Widths) -> int:
    """Heads of a group, as the class derives them from the hidden size; 0 where it cannot."""
    head = widths["ssm_group"] * _SPACE.head(config)
    heads, rest = divmod(int(config["expand"] * widths["hidden"]), head)
    return 0 if rest else heads


def _pad(config: Config, widths: Widths) -> dict[str, int]:
    if widths["ssm_head"] == _derived(config, widths):
        return {}
    wide = {kind: units(config, 0) for kind, units in _SPACE.units().items()}
    return {"hidden": config["hidden_size"], **{k: wide[k] for k in ("ssm_group", "ssm_head")}}


MAMBA2 = Family(
    name="mamba2",
    model_types=("mamba2",),
    axes=(*_around(), *_SPACE.axes()),
    units={**_UNITS, **_SPACE.units()},
    positions_per_unit=_SPACE.per_unit(),
    norms=(LAYER + "norm.weight", _SPACE.norm, "backbone.norm_f.weight"),
    fixed=("vocab", "kernel", "one"),
    resize=_resize,
    attributes=_SPACE.attributes,
    derived={"ssm_head": _derived},
    rigid=("ssm_head",),
    pad=_pad,
    defaults={
        "mamba2": {
            **{"num_heads": 128, "head_dim": 64, "state_size": 128, "n_groups": 8, "expand": 2},
            **{"conv_kernel": 4, "use_bias": False, "use_conv_bias": True},
        }
    },
    **_COMMON,
    **_SPACE.traits(),
)


def _channels() -> Iterator[Axis]:
    """Channels in a row: first those that are convolved, then their gates."""
    inside = LAYER + "mixer."
    for _ in range(2):
        yield side(inside + "in_proj.weight", 0, CHANNEL)
        yield side(inside + "in_proj.bias", 0, CHANNEL, "use_bias")
    yield side(inside + "in_proj.weight", 1, "hidden")
    yield from convolution(inside + "conv1d", (CHANNEL,), "use_conv_bias")
    yield from linear(inside + "x_proj", "made", CHANNEL)
    yield from linear(inside + "dt_proj", CHANNEL, "rank")
    yield side(inside + "dt_proj.bias", 0, CHANNEL)
    yield side(inside + "A_log", 0, CHANNEL)
    yield side(inside + "A_log", 1, "decays")
    yield side(inside + "D", 0, CHANNEL)
    yield from biased(inside + "out_proj", "hidden", CHANNEL, "use_bias")


def _mamba_attributes(config: Config, widths: Widths) -> ModuleSizes:
    del config
    channels = widths["ssm_channel"]
    return {"mixer": {"intermediate_size": channels}, "mixer.conv1d": by_channel(channels)}


def _mamba_resize(config: Config, widths: Widths) -> Fields:
    # The class derives the rank of the steps from the stream, unless it is stated.
    channels = widths.get("ssm_channel", _inner(config))
    fields = {"hidden_size": widths["hidden"], "time_step_rank": _rank(config)}
    return {**fields, "intermediate_size": channels}


def _mamba_pad(config: Config, widths: Widths) -> dict[str, int]:
    if widths["ssm_channel"] == int(config["expand"] * widths["hidden"]):
        return {}
    return {"hidden": config["hidden_size"], "ssm_channel": _inner(config)}


_DEFAULTS = {
    **{"state_size": 16, "expand": 2, "conv_kernel": 4, "time_step_rank": "auto"},
    **{"use_bias": False, "use_conv_bias": True, "tie_word_embeddings": True},
}
MAMBA = Family(
    name="mamba",
    model_types=("mamba", "falcon_mamba"),
    axes=(*_around(), *_channels()),
    units={
        **_UNITS,
        "ssm_channel": lambda c, _: _inner(c),
        "made": lambda c, _: _rank(c) + 2 * c["state_size"],
        "rank": lambda c, _: _rank(c),
        "decays": lambda c, _: c["state_size"],
        "kernel": lambda c, _: c["conv_kernel"],
        "one": lambda _c, _i: 1,
    },
    positions_per_unit={"one": lambda _: 1},
    norms=(LAYER + "norm.weight", "backbone.norm_f.weight"),
    fixed=("vocab", "kernel", "one", "made", "rank", "decays"),
    resize=_mamba_resize,
    attributes=_mamba_attributes,
    derived={"ssm_channel": lambda c, w: int(c["expand"] * w["hidden"])},
    pad=_mamba_pad,
    recurrence={"ssm_channel": lambda c: 5 * c["state_size"]},
    defaults={"mamba": _DEFAULTS, "falcon_mamba": _DEFAULTS},
    **_COMMON,
)
FAMILIES = (MAMBA2, MAMBA)

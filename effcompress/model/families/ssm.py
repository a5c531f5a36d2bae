"""Decoders with state spaces (Mamba-2) in some layers and attention in others."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from effcompress.model.families import llama
from effcompress.model.families.experts import GRANITE_MIXTURE, granite_blocks
from effcompress.model.families.hybrids import by_channel, convolution, keeps_one, where
from effcompress.model.families.llama import LAYER, attention, decoder, linear, maybe_biased, side
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

GROUP, HEAD = "ssm_group.{i}", "ssm_head.{i}"
"""A group of a state space, with its B, its C and its heads; a head out of each group."""
FULL, STATE = "full", "state"
"""Flags: a layer has attention, or a state space."""
FIXED = ("vocab", "head_dim", "one", "kernel")
_OTHER_NAMES = {"attention": "full_attention", "mamba": "linear_attention"}
"""Older names of kinds of layers."""


def modern(kinds: Iterable[str]) -> list[str]:
    """Returns kinds of layers by their present names."""
    return [_OTHER_NAMES.get(kind, kind) for kind in kinds]


@dataclass(frozen=True)
class StateSpace:
    """Where a layer has its Mamba-2 mixer, the configuration fields of its sizes, and the flags of
    the biases of its projections and its convolution.
    """

    module: str = "mamba"
    heads: str = "mamba_n_heads"
    groups: str = "mamba_n_groups"
    state: str = "mamba_d_state"
    kernel: str = "mamba_d_conv"
    width: str = "mamba_d_head"
    bias: str = "mamba_proj_bias"
    kernel_bias: str = "mamba_conv_bias"
    out_bias: str = ""
    """Flag of the bias of the last projection; empty: that of the first one."""
    inner: str = ""
    """Field of the width of all heads together; empty: it is derived from the stream's."""
    expand: str = "mamba_expand"
    layer: str = LAYER
    normed: bool = True
    """Whether a gated norm, which averages within each group, follows the recurrence."""

    @property
    def norm(self) -> str:
        """Gain of the gated norm."""
        return f"{self.layer}{self.module}.norm.weight"

    def head(self, config: Config) -> int:
        """Width of a head."""
        stated = config.get(self.width)
        if isinstance(stated, int):
            return stated
        inner = config.get(self.inner) or config[self.expand] * config["hidden_size"]
        return inner // config[self.heads]

    def axes(self) -> Iterator[Axis]:
        """One projection makes gates, inputs, B, C and the time steps. As in grouped attention, the
        heads of a group are neighbours.
        """
        inside = f"{self.layer}{self.module}."
        rows, states, steps = ((GROUP, HEAD), "ssm_dim"), (GROUP, "ssm_state"), (GROUP, HEAD)
        inner, step = ("/".join(rows[0]), rows[1]), "/".join(steps)
        for name in (inner, inner, states, states, step):
            yield side(inside + "in_proj.weight", 0, name)
            yield side(inside + "in_proj.bias", 0, name, self.bias)
        yield side(inside + "in_proj.weight", 1, "hidden")
        yield from convolution(inside + "conv1d", (inner, states, states), self.kernel_bias)
        for name in ("A_log", "dt_bias", "D"):
            yield side(inside + name, 0, step)
        if self.normed:
            yield side(self.norm, 0, inner)
        flag = self.out_bias or self.bias
        yield from llama.biased(inside + "out_proj", "hidden", inner, flag)

    def units(self) -> dict[str, Callable[[Config, int], int]]:
        """Units of the axis kinds."""
        return {
            "ssm_group": lambda c, _: c[self.groups],
            "ssm_head": lambda c, _: c[self.heads] // c[self.groups],
            "kernel": lambda c, _: c[self.kernel],
            "one": lambda _c, _i: 1,
        }

    def per_unit(self) -> dict[str, Callable[[Config], int]]:
        """Positions per unit."""
        return {"one": lambda _: 1, "ssm_dim": self.head, "ssm_state": lambda c: c[self.state]}

    def fields(self, config: Config, widths: Widths) -> Fields:
        """Configuration fields for these widths, or the present ones where no layer has any."""
        wide = {kind: units(config, 0) for kind, units in self.units().items()} | {**widths}
        groups, heads = wide["ssm_group"], wide["ssm_head"]
        found = {self.groups: groups, self.heads: groups * heads}
        return found | ({self.inner: groups * heads * self.head(config)} if self.inner else {})

    def attributes(self, config: Config, widths: Widths) -> ModuleSizes:
        """Sizes that the mixer keeps, in a layer that has one."""
        if "ssm_group" not in widths:
            return {}
        groups, heads = widths["ssm_group"], widths["ssm_head"]
        inner = groups * heads * self.head(config)
        channels = inner + 2 * groups * config[self.state]
        sizes = {"num_heads": groups * heads, "n_groups": groups}
        sizes |= {"intermediate_size": inner, "conv_dim": channels}
        conv = f"{self.module}.conv1d"
        found: ModuleSizes = {self.module: {**sizes}, conv: by_channel(channels)}
        if self.normed:
            found[f"{self.module}.norm"] = self._norm(groups, heads, config)
        return found

    def _norm(self, groups: int, heads: int, config: Config) -> dict[str, Any]:
        # Falcon-H1's norm counts groups, others' their channels.
        return {"n_groups": groups} if self.inner else {"group_size": heads * self.head(config)}

    def traits(self) -> dict[str, Any]:
        """Keywords of a family."""
        # Of every channel a state decays, gains a product with an input, and is read.
        updates = {"ssm_group/ssm_head": lambda c: 5 * self.head(c) * c[self.state]}
        if not self.normed:
            return {"recurrence": updates}
        why = "a norm averages over all heads of a group"
        return {
            "norm_parts": {self.norm: "ssm_group"},
            # The gated norm of a state space reads what no weight scales.
            "scales_stream": True,
            "recurrence": updates,
            "approximate": {"ssm_head": why},
        }


_SPACE = StateSpace()
UNITS: dict[str, Callable[[Config, int], int]] = {**llama.UNITS, **_SPACE.units()}
_PER_UNIT: dict[str, Callable[[Config], int]] = {"head": llama.head_dim, **_SPACE.per_unit()}


def _resize(config: Config, widths: Widths) -> Fields:
    absent = {kind: UNITS[kind](config, 0) for kind in ("attention", "query", "ffn")}
    found = llama.resize(config, {**absent, **widths})
    return {**found, **_SPACE.fields(config, widths), "mamba_d_head": _SPACE.head(config)}


def _attributes(config: Config, widths: Widths) -> ModuleSizes:
    if "attention" in widths:
        return llama.repeats(config, widths)
    return _SPACE.attributes(config, widths)


def _derived(config: Config, widths: Widths) -> int:
    """Heads of a group, as the class derives them from the hidden size; 0 where it cannot."""
    inner, head = config["mamba_expand"] * widths["hidden"], _SPACE.head(config)
    heads, rest = divmod(inner, widths["ssm_group"] * head)
    return 0 if rest else heads


def _pad(config: Config, widths: Widths) -> dict[str, int]:
    # The class derives the width of a state space from that of the stream.
    if "ssm_group" not in widths or widths["ssm_head"] == _derived(config, widths):
        return {}
    kinds = ("ssm_group", "ssm_head")
    return {"hidden": config["hidden_size"], **{kind: UNITS[kind](config, 0) for kind in kinds}}


_DEFAULTS = {
    **{"mamba_n_heads": 128, "mamba_n_groups": 1, "mamba_d_state": 256, "mamba_d_conv": 4},
    **{"mamba_expand": 2, "mamba_conv_bias": True},
}
_TRAITS: dict[str, Any] = {
    **_SPACE.traits(),
    "fixed": FIXED,
    "positions_per_unit": _PER_UNIT,
    "derived": {"ssm_head": _derived},
    "rigid": ("ssm_head",),
    "head_norms": (_SPACE.norm,),
    "pad": _pad,
}
_MIXERS = (*where(attention(), FULL), *where(_SPACE.axes(), STATE))


def _granite_types(config: Config) -> list[str]:
    stated: list[str] | None = config.get("layer_types") or config.get("layers_block_type")
    return modern(stated or ["linear_attention"] * config["num_hidden_layers"])


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
    staying=keeps_one(_full_granite),
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
        "rigid": (*_GRANITE_TRAITS["rigid"], *_TRAITS["rigid"]),
        "pad": lambda c, w: {**_GRANITE_TRAITS["pad"](c, w), **_pad(c, w)},
        "resize": _granite_resize,
        "attributes": _granite_attributes,
    },
)


def _full_bamba(config: Config, layer: int) -> bool:
    return layer in (config.get("attn_layer_indices") or ())


def _bamba_kept(config: Config, layers: tuple[int, ...]) -> Fields:
    return {"attn_layer_indices": [j for j, i in enumerate(layers) if _full_bamba(config, i)]}


def _feed_forward() -> Iterator[Axis]:
    for name in ("gate_proj", "up_proj"):
        yield from maybe_biased(LAYER + f"feed_forward.{name}", llama.FFN, "hidden", "mlp_bias")
    yield from maybe_biased(LAYER + "feed_forward.down_proj", "hidden", llama.FFN, "mlp_bias")


BAMBA = decoder(
    "bamba",
    modules=(*_MIXERS, *_feed_forward()),
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
    staying=keeps_one(_full_bamba),
    depth_fields=_bamba_kept,
    defaults={"bamba": {"num_key_value_heads": 8, **_DEFAULTS}},
    **_TRAITS,
)


def _multipliers(config: Config, space: StateSpace, widths: Widths) -> list[list[float]]:
    """What the class multiplies the rows of gates, inputs, B, C and time steps by, and how many
    rows each have.
    """
    groups, heads = widths["ssm_group"], widths["ssm_head"]
    inner, states = groups * heads * space.head(config), groups * config[space.state]
    rows = (inner, inner, states, states, groups * heads)
    factors = config.get("ssm_multipliers") or (1.0,) * len(rows)
    return [[float(factor), count] for factor, count in zip(factors, rows, strict=True)]


def _falcon(*, normed: bool) -> Family:
    """Declares Falcon-H1, in whose layers attention and a state space read the same norm; whether a
    gated norm follows the recurrence is a flag.
    """
    space = StateSpace(out_bias="projectors_bias", inner="mamba_d_ssm", normed=normed)

    def resized(config: Config, widths: Widths) -> Fields:
        found = {**llama.resize(config, widths), **space.fields(config, widths)}
        return {**found, "mamba_d_head": space.head(config)}

    def attributes(config: Config, widths: Widths) -> ModuleSizes:
        found = {**llama.repeats(config, widths), **space.attributes(config, widths)}
        own = found["mamba"] | {"mup_vector": _multipliers(config, space, widths)}
        own["groups_time_state_size"] = widths["ssm_group"] * config[space.state]
        return {**found, "mamba": own}

    behind: dict[str, Any] = {"head_norms": (space.norm,), "rigid": ("ssm_head",)} if normed else {}
    return decoder(
        "falcon_h1",
        name="falcon_h1" + "_normed" * normed,
        applies=lambda c: bool(c.get("mamba_rms_norm")) == normed,
        modules=(*attention(), *space.axes(), *_feed_forward()),
        mlp_norms=("pre_ff_layernorm",),
        final_norm="model.final_layernorm.weight",
        units={**llama.UNITS, **space.units()},
        positions_per_unit={"head": llama.head_dim, **space.per_unit()},
        fixed=FIXED,
        sublayers={"mlp_block": Sublayer("feed_forward", 1, ("pre_ff_layernorm",))},
        residual=lambda _: Residual(mlp=("feed_forward",)),
        more_than_blocks=lambda _: True,
        resize=resized,
        attributes=attributes,
        defaults={
            "falcon_h1": {**_DEFAULTS, "num_key_value_heads": 8, "mamba_d_ssm": 1024},
        },
        **space.traits(),
        **behind,
    )


FALCON_H1, FALCON_H1_NORMED = _falcon(normed=False), _falcon(normed=True)
FAMILIES = (GRANITE_HYBRID, BAMBA, FALCON_H1, FALCON_H1_NORMED)

"""Nemotron-H: every layer is one norm and one mixer: a state space (Mamba-2), attention, a
feed-forward block or a mixture of experts. Layers are counted by the list of their kinds.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from effcompress.model.families import llama
from effcompress.model.families.experts import (
    EXPERT,
    EXPERT_FFN,
    SHARED_FFN,
    SPARSE,
    Groups,
    Mixture,
)
from effcompress.model.families.hybrids import where
from effcompress.model.families.llama import FFN, LAYER, attention, linear, maybe_biased, side
from effcompress.model.families.ssm import FULL, STATE, StateSpace, modern
from effcompress.types import Axis, Config, Family, Fields, ModuleSizes, Widths

PLAIN = "feed_forward"
"""Flag: a layer is a feed-forward block."""
LATENT = "moe_latent_size"
"""Flag and field: experts read and write fewer channels than the stream has."""
_MIXER = LAYER + "mixer."
_LETTERS = {"M": "linear_attention", "*": "full_attention", "-": "mlp", "E": "moe"}
_SPACE = StateSpace(
    module="mixer",
    heads="mamba_num_heads",
    groups="n_groups",
    state="ssm_state_size",
    kernel="conv_kernel",
    width="mamba_head_dim",
    bias="use_bias",
    kernel_bias="use_conv_bias",
)


def layer_types(config: Config) -> list[str]:
    """The kind of every layer, from a list or from a string of letters."""
    stated = config.get("layers_block_type") or config.get("layer_types")
    if stated is None and config.get("hybrid_override_pattern"):
        stated = [_LETTERS[letter] for letter in config["hybrid_override_pattern"]]
    return modern(stated or ["linear_attention", "moe", "full_attention", "mlp"])


def _is(kind: str) -> Any:
    return lambda config, layer: layer_types(config)[layer] == kind


_MIXTURE = Mixture(
    ("n_routed_experts",),
    sparse=_is("moe"),
    block="mixer",
    groups=Groups(),
    shared="mixer.shared_experts",
    shared_width="moe_shared_expert_intermediate_size",
)


def _plain(module: str, channels: str, when: str) -> Iterator[Axis]:
    """Axes of a feed-forward block without a gate."""
    yield from where(maybe_biased(f"{module}up_proj", channels, "hidden", "mlp_bias"), when)
    yield from where(maybe_biased(f"{module}down_proj", "hidden", channels, "mlp_bias"), when)


def _experts() -> Iterator[Axis]:
    """Axes of router, experts without gates, and the projections to and from their channels."""
    yield from _MIXTURE.routed()
    inside = _MIXER + "experts."
    for stream, when in (("hidden", f"!{LATENT}"), ("moe_latent", LATENT)):
        up = enumerate((EXPERT, EXPERT_FFN, stream))
        down = enumerate((EXPERT, stream, EXPERT_FFN))
        found = [side(inside + "up_proj", dim, name) for dim, name in up]
        found += [side(inside + "down_proj", dim, name) for dim, name in down]
        yield from where(found, f"{SPARSE} & {when}")
    latent = [
        *maybe_biased(_MIXER + "fc1_latent_proj", "moe_latent", "hidden", "mlp_bias"),
        *maybe_biased(_MIXER + "fc2_latent_proj", "hidden", "moe_latent", "mlp_bias"),
    ]
    yield from where(latent, f"{SPARSE} & {LATENT}")


def _axes() -> Iterator[Axis]:
    yield from linear("model.embeddings", "vocab", "hidden")
    yield side(LAYER + "norm.weight", 0, "hidden")
    attends = (
        replace(a, param=a.param.replace(".self_attn.", ".mixer.")) for a in attention("", "")
    )
    yield from where(attends, FULL)
    yield from where(_SPACE.axes(), STATE)
    yield from _plain(_MIXER, FFN, PLAIN)
    yield from _experts()
    yield from _plain(_MIXER + "shared_experts.", SHARED_FFN, SPARSE)
    yield side("model.norm_f.weight", 0, "hidden")
    yield from linear("lm_head", "vocab", "hidden")


def _resize(config: Config, widths: Widths) -> Fields:
    absent = {kind: _UNITS[kind](config, 0) for kind in ("attention", "query", "ffn")}
    found = llama.resize(config, {**absent, **widths})
    return {**found, **_SPACE.fields(config, widths)}


_TRAITS = _MIXTURE.traits(_resize)
_UNITS = {
    **_TRAITS["units"],
    **_SPACE.units(),
    "moe_latent": lambda c, _: c[LATENT],
}


def _attributes(config: Config, widths: Widths) -> ModuleSizes:
    if "attention" in widths:
        return {"mixer": {"num_key_value_groups": widths["query"]}}
    if "expert" in widths:
        found = _TRAITS["attributes"](config, {"query": 1, **widths})
        return {path: sizes for path, sizes in found.items() if path.startswith("mixer.")}
    return _SPACE.attributes(config, widths)


def _staying(config: Config) -> Iterator[str]:
    """The last layer with attention, where a cache counts tokens; the last state space, whose state
    a cache asks for.
    """
    kinds = layer_types(config)
    for kind in ("full_attention", "linear_attention"):
        yield from [f"layer.{i}" for i, other in enumerate(kinds) if other == kind][-1:]


_DECLARED: dict[str, Any] = {
    **_TRAITS,
    **_SPACE.traits(),
    "name": "nemotron_h",
    "model_types": ("nemotron_h",),
    "axes": tuple(_axes()),
    "units": _UNITS,
    "positions_per_unit": {"head": llama.head_dim, **_SPACE.per_unit()},
    "required": ("vocab_size", "hidden_size", "num_attention_heads"),
    "norms": (LAYER + "norm.weight", _SPACE.norm, "model.norm_f.weight"),
    "counted": lambda c: len(layer_types(c)),
    "flags": {
        **_TRAITS["flags"],
        FULL: _is("full_attention"),
        STATE: _is("linear_attention"),
        PLAIN: _is("mlp"),
    },
    "fixed": (*_TRAITS["fixed"], "kernel", "moe_latent"),
    "rigid": (*_TRAITS["rigid"], "ssm_head"),
    "final_norm": "model.norm_f.weight",
    "epsilon_field": "layer_norm_epsilon",
    "resize": _TRAITS["resize"],
    "attributes": _attributes,
    "staying": _staying,
    "depth_fields": lambda c, layers: {"layers_block_type": [layer_types(c)[i] for i in layers]},
    "defaults": {
        "nemotron_h": {
            **{"num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128},
            **{"mamba_num_heads": 128, "mamba_head_dim": 64, "n_groups": 8, "conv_kernel": 4},
            **{"ssm_state_size": 128, "use_conv_bias": True, "intermediate_size": 21504},
            **{"n_routed_experts": 8, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1},
            **{"moe_intermediate_size": 7688, "moe_shared_expert_intermediate_size": 7688},
        }
    },
}
NEMOTRON_H = Family(**_DECLARED)
FAMILIES = (NEMOTRON_H,)

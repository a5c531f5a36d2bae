"""Mixtures of experts: a layer's experts are 3-D parameters, with one row of the router each."""

from typing import Any

from effcompress.model.families import llama
from effcompress.model.families.llama import LAYER, attention, decoder, gated, linear
from effcompress.types import EXPERT_ROW, Axis, Config, Fields, ModuleSizes, Widths

EXPERT, EXPERT_FFN = "expert.{i}", "expert_ffn.{i}"


def _mixture(when: str = "") -> tuple[Axis, ...]:
    """Axes of router and experts. One tensor ``[experts, rows, columns]`` holds all experts of a
    layer, so channel k of ``expert_ffn`` is removed from all of them.
    """
    gate_up, down = LAYER + "mlp.experts.gate_up_proj", LAYER + "mlp.experts.down_proj"
    rows = ((0, EXPERT), (1, EXPERT_FFN), (1, EXPERT_FFN), (2, "hidden"))
    return (
        *linear(LAYER + "mlp.gate", EXPERT, "hidden", when),
        *(Axis(gate_up, dim, name, when=when) for dim, name in rows),
        *(Axis(down, i, x, when=when) for i, x in enumerate((EXPERT, "hidden", EXPERT_FFN))),
    )


def _attributes(config: Config, widths: Widths) -> ModuleSizes:
    found = llama.repeats(config, widths)
    if "expert" not in widths:
        return found
    sizes = {"num_experts": widths["expert"], "hidden_dim": widths["hidden"]}
    experts = {**sizes, "intermediate_dim": widths["expert_ffn"]}
    return {**found, "mlp.gate": {**sizes}, "mlp.experts": {**experts}}


def _pad(config: Config, widths: Widths) -> dict[str, int]:
    kinds = [kind for kind in ("hidden", "expert_ffn") if kind in widths]
    return {kind: -(-widths[kind] // EXPERT_ROW) * EXPERT_ROW for kind in kinds}


_TRAITS: dict[str, Any] = {
    "attributes": _attributes,
    "pad": _pad,
    "multiples": {"hidden": EXPERT_ROW, "expert_ffn": EXPERT_ROW},
    "router": LAYER + "mlp.gate",
    "experts": LAYER + "mlp.experts",
    # Top-k routing needs at least k experts.
    "floors": {"expert": lambda c: c["num_experts_per_tok"]},
    # The router would still send tokens to an expert of zeros.
    "rigid": ("expert",),
}


def _resize_mixtral(config: Config, widths: Widths) -> Fields:
    return {
        **llama.resize(config, {**widths, "ffn": widths["expert_ffn"]}),
        "num_local_experts": widths["expert"],
    }


MIXTRAL = decoder(
    "mixtral",
    modules=(*attention("", ""), *_mixture()),
    units={
        **llama.UNITS,
        "expert": lambda c, _: c["num_local_experts"],
        "expert_ffn": lambda c, _: c["intermediate_size"],
    },
    resize=_resize_mixtral,
    defaults={
        "mixtral": {"num_key_value_heads": 8, "num_local_experts": 8, "num_experts_per_tok": 2}
    },
    **_TRAITS,
)


def _sparse(config: Config, layer: int) -> bool:
    """Whether a layer of Qwen3-MoE is a mixture (others have a dense feed-forward)."""
    return layer not in (config.get("mlp_only_layers") or ()) and (
        (layer + 1) % (config.get("decoder_sparse_step") or 1) == 0
    )


def _resize_qwen3_moe(config: Config, widths: Widths) -> Fields:
    dense = widths.get("ffn", config["intermediate_size"])
    found = llama.resize(config, {**widths, "ffn": dense})
    if "expert" in widths:
        # The field's name differs between versions of transformers.
        named = "num_local_experts" if "num_local_experts" in config else "num_experts"
        found |= {"moe_intermediate_size": widths["expert_ffn"], named: widths["expert"]}
    return found


def _kept_qwen3_moe(config: Config, layers: tuple[int, ...]) -> Fields:
    # The class derives which layers are sparse from their index, which removal changes: the dense
    # ones are listed instead.
    return {
        "decoder_sparse_step": 1,
        "mlp_only_layers": [j for j, i in enumerate(layers) if not _sparse(config, i)],
    }


_DEFAULTS = {"num_key_value_heads": 4, "num_experts_per_tok": 8, "moe_intermediate_size": 768}
QWEN3_MOE = decoder(
    "qwen3_moe",
    modules=(*attention(), *gated(when="!sparse"), *_mixture(when="sparse")),
    more=llama.QK_NORM,
    fed_by=llama.FED,
    units={
        **llama.UNITS,
        "expert": lambda c, _: c.get("num_local_experts") or c["num_experts"],
        "expert_ffn": lambda c, _: c["moe_intermediate_size"],
    },
    flags={"sparse": _sparse},
    defaults={"qwen3_moe": _DEFAULTS},
    resize=_resize_qwen3_moe,
    depth_fields=_kept_qwen3_moe,
    **_TRAITS,
)
FAMILIES = (MIXTRAL, QWEN3_MOE)

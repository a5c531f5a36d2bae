"""Gemma 3n: several copies of the residual stream (AltUp) of which a layer computes one, a low-rank
path beside attention (LAuReL), inputs of every layer from a second embedding.
"""

from collections.abc import Iterator
from typing import Any

from effcompress.model.families import llama
from effcompress.model.families.gemma import (
    PLE,
    SHARED,
    owner,
    per_layer_inputs,
    shares,
    without_owner,
)
from effcompress.model.families.hybrids import where
from effcompress.model.families.llama import LAYER, attention, gated, linear, lm_head, side
from effcompress.types import Axis, Config, Family, Fields, ModuleSizes, Sublayer, Widths

COPIES = 8
"""The most copies of the stream that are declared; models have 4."""
DENSE = "dense"
"""Flag: a layer's feed-forward uses all of its channels."""
_SPARSE = (
    "which channels of such a layer are active depends on mean and deviation over all of them "
    "(activation_sparsity_pattern)"
)
_HIDDEN = (
    "AltUp scales the copies of the stream by their mean squares over all hidden channels, with a "
    "floor, and by the number of channels"
)
_LAYER = "a layer mixes the copies of the stream (AltUp) whatever its blocks add"


def layer_types(config: Config) -> list[str]:
    """The kind of every layer; unless stated, every fifth has full attention."""
    count = config["num_hidden_layers"]
    drawn = ["sliding_attention" if (i + 1) % 5 else "full_attention" for i in range(count)]
    return config.get("layer_types") or drawn


def _sparsity(config: Config) -> list[float]:
    count = config["num_hidden_layers"]
    drawn = [0.95 if count > 10 and i < 10 else 0.0 for i in range(count)]
    return config.get("activation_sparsity_pattern") or drawn


def _dense(config: Config, layer: int) -> bool:
    return _sparsity(config)[layer] == 0


def _kv_layer(config: Config, layer: int) -> int:
    return owner(config, layer_types(config), layer)


def _ffn(config: Config, layer: int) -> int:
    stated = config["intermediate_size"]
    return stated[layer] if isinstance(stated, list) else stated


def _attention() -> Iterator[Axis]:
    """Axes of attention; layers that share keys and values have neither, nor their norm."""
    for axis in (*attention(), *llama.QK_NORM):
        name = axis.name.replace("attention.{i}", SHARED)
        own = any(f".{part}" in axis.param for part in ("k_proj", "v_proj", "k_norm"))
        yield from where(
            [Axis(axis.param, axis.dim, name, axis.positions_per_unit, axis.when)],
            "!shares" if own else "always",
        )


def _copies() -> Iterator[Axis]:
    """Axes of what makes copies of the stream and reads them, and of a layer's coefficients."""
    for k in range(COPIES - 1):
        for name in ("altup_projections", "altup_unembed_projections"):
            yield from linear(f"model.{name}.{k}", "hidden", "hidden", _copy(k))
    yield side(LAYER + "altup.correct_output_scale", 0, "hidden")
    yield from linear(LAYER + "altup.correction_coefs", "copy", "copy")
    yield from linear(LAYER + "altup.prediction_coefs", "copies", "copy")
    yield from linear(LAYER + "altup.modality_router", "copy", "hidden")
    yield side(LAYER + "altup.router_norm.weight", 0, "hidden")


def _copy(k: int) -> str:
    return f"copy_{k}"


def _axes() -> Iterator[Axis]:
    yield from linear("model.embed_tokens", "vocab", "hidden")
    yield from _attention()
    for axis in gated():
        yield from where([axis], DENSE)
        name = axis.name.replace("ffn", "sparse_ffn")
        yield from where([Axis(axis.param, axis.dim, name)], f"!{DENSE}")
    yield from linear(LAYER + "laurel.linear_left", "laurel_rank", "hidden")
    yield from linear(LAYER + "laurel.linear_right", "hidden", "laurel_rank")
    yield from per_layer_inputs()
    yield from _copies()
    for norm in (*_NORMS, "laurel.post_laurel_norm"):
        yield side(f"{LAYER}{norm}.weight", 0, "hidden")
    yield side("model.norm.weight", 0, "hidden")
    yield from lm_head()


_NORMS = (
    *("input_layernorm", "post_attention_layernorm"),
    *("pre_feedforward_layernorm", "post_feedforward_layernorm"),
)


def _resize(config: Config, widths: Widths) -> Fields:
    wide = {"ffn": 0, "sparse_ffn": 0, **widths}
    layers = range(config["num_hidden_layers"])
    each = [wide["ffn" if _dense(config, i) else "sparse_ffn"] for i in layers]
    return {**llama.resize(config, wide), "intermediate_size": each}


def _attributes(_config: Config, widths: Widths) -> ModuleSizes:
    return {"self_attn": {"num_key_value_groups": widths["query"]}} if "query" in widths else {}


def _mixing(config: Config) -> int:
    """Multiplications that mix the copies of the stream: each is predicted from all by a matrix
    that the layer computes, and the router reads the stream twice.
    """
    copies, hidden = config["altup_num_inputs"], config["hidden_size"]
    return copies**2 * hidden + copies * hidden


def _staying(config: Config) -> Iterator[str]:
    """The attention of layers whose keys and values others attend to."""
    layers = range(config["num_hidden_layers"])
    yield from (f"attention_block.{_kv_layer(config, i)}" for i in layers if shares(config, i))


_TRAITS: dict[str, Any] = {
    "units": {
        **llama.UNITS,
        "ffn": _ffn,
        "sparse_ffn": _ffn,
        "laurel_rank": lambda c, _: c["laurel_rank"],
        "copy": lambda c, _: c["altup_num_inputs"],
        "copies": lambda c, _: c["altup_num_inputs"] ** 2,
        "looked_up": lambda c, _: c["vocab_size_per_layer_input"],
        PLE: lambda c, _: c["hidden_size_per_layer_input"],
    },
    "positions_per_unit": {
        "one": lambda _: 1,
        "head": llama.head_dim,
        PLE: lambda c: c["hidden_size_per_layer_input"],
    },
    "flags": {
        DENSE: _dense,
        "shares": shares,
        "always": lambda _c, _i: True,
        PLE: lambda _c, _i: True,
        **{_copy(k): lambda c, _, k=k: c["altup_num_inputs"] > k + 1 for k in range(COPIES - 1)},
    },
    "unreached": {"hidden": _HIDDEN, "sparse_ffn": _SPARSE, "layer": _LAYER},
}
GEMMA3N = Family(
    name="gemma3n",
    model_types=("gemma3n_text",),
    axes=tuple(_axes()),
    required=("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"),
    fixed=(
        *("vocab", "looked_up", "head_dim", PLE, "laurel_rank", "copy", "copies"),
        *_TRAITS["unreached"],
    ),
    # What attention reads, LAuReL reads, too: the norm in front of them stays.
    sublayers={
        "attention_block": Sublayer(
            "self_attn", 2, ("post_attention_layernorm",), "post_attention_layernorm"
        ),
        "mlp_block": Sublayer("mlp", 1, _NORMS[2:], _NORMS[3]),
    },
    norms_behind=lambda _: True,
    more_than_blocks=lambda _: True,
    more_products=_mixing,
    epsilon_attribute="eps",
    whole_heads=lambda _: True,
    unusable=lambda c: without_owner(c, layer_types(c)),
    kv_layer=_kv_layer,
    staying=_staying,
    resize=_resize,
    attributes=_attributes,
    defaults={
        "gemma3n_text": {
            **{"tie_word_embeddings": True, "num_key_value_heads": 2, "head_dim": 256},
            **{"hidden_size_per_layer_input": 256, "vocab_size_per_layer_input": 262_144},
            **{"num_kv_shared_layers": 15, "laurel_rank": 64, "altup_num_inputs": 4},
            "intermediate_size": 16384,
        }
    },
    **_TRAITS,
)
FAMILIES = (GEMMA3N,)

"""Gemma 4: sliding and full attention with heads of other widths, layers that attend to the keys
and values of others, inputs of every layer from a second embedding.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from effcompress.model.families import llama
from effcompress.model.families.hybrids import where
from effcompress.model.families.llama import LAYER, decoder, gated, linear, side
from effcompress.types import Axis, Config, Fields, ModuleSizes, Widths

SHARED = "attention.{kv}"
"""KV heads, of the layer that has the projections."""
_HEADS = {"sliding": ("head", "head_dim"), "full": ("global_head", "global_head_dim")}
"""Flag of a layer -> key of the positions of a head, axis within it."""
PLE = "per_layer_input"


def layer_types(config: Config) -> list[str]:
    """The kind of every layer; unless stated, every sixth has full attention, and the last."""
    stated = config.get("layer_types")
    count = config["num_hidden_layers"]
    drawn = ["full_attention" if not (i + 1) % 6 else "sliding_attention" for i in range(count)]
    return [*(stated or drawn)[:-1], "full_attention"]


def _is(kind: str) -> Callable[[Config, int], bool]:
    return lambda config, layer: layer_types(config)[layer] == kind


def first_shared(config: Config) -> int:
    return config["num_hidden_layers"] - (config.get("num_kv_shared_layers") or 0)


def shares(config: Config, layer: int) -> bool:
    """Whether a layer attends to the keys and values of another one."""
    return layer >= first_shared(config)


def owner(config: Config, kinds: Sequence[str], layer: int) -> int:
    """The last layer of the same kind that has keys and values."""
    if not shares(config, layer):
        return layer
    return max(i for i in range(first_shared(config)) if kinds[i] == kinds[layer])


def _kv_layer(config: Config, layer: int) -> int:
    return owner(config, layer_types(config), layer)


def without_owner(config: Config, kinds: Sequence[str]) -> str:
    """Why keys and values cannot be shared: no layer has those of a kind of attention."""
    first = first_shared(config)
    if lost := sorted({*kinds} - {*kinds[: max(first, 0)]}):
        return (
            f"num_kv_shared_layers is {config['num_kv_shared_layers']} of "
            f"{config['num_hidden_layers']}, and no layer before those has {lost[0]}, whose keys "
            "and values they share"
        )
    return ""


def _unusable(config: Config) -> str:
    if not _has_inputs(config) and first_shared(config) < config["num_hidden_layers"]:
        return (
            f"num_kv_shared_layers is {config['num_kv_shared_layers']}, and transformers' class "
            "cuts the inputs of single layers in front of such layers, of which "
            "hidden_size_per_layer_input: 0 leaves none"
        )
    return without_owner(config, layer_types(config))


def _own(config: Config, layer: int) -> Fields:
    """What the configuration states for one layer alone."""
    stated = config.get("per_layer_config")
    if stated is not None:
        return stated.get(str(layer)) or stated.get(layer) or {}
    if layer_types(config)[layer] != "full_attention":
        return {}
    heads = config.get("num_global_key_value_heads") if config.get("attention_k_eq_v") else None
    wide = {"head_dim": config.get("global_head_dim") or 512}
    return {**wide, **({"num_key_value_heads": heads} if heads else {})}


def _global_head(config: Config) -> int:
    return _own(config, len(layer_types(config)) - 1).get("head_dim") or llama.head_dim(config)


def _kv_heads(config: Config, layer: int) -> int:
    return _own(config, layer).get("num_key_value_heads") or config["num_key_value_heads"]


def _attention() -> Iterator[Axis]:
    inside = LAYER + "self_attn."
    for flag, (head, width) in _HEADS.items():
        rows, queries = (SHARED, head), (SHARED + "/query.{i}", head)
        own = f"{flag} & !shares"
        found = [
            *where(llama.biased(inside + "q_proj", queries, "hidden", "attention_bias"), flag),
            *where(llama.biased(inside + "k_proj", rows, "hidden", "attention_bias"), own),
            # With full attention, keys may be the values, too.
            *where(
                llama.biased(inside + "v_proj", rows, "hidden", "attention_bias"),
                own if flag == "sliding" else f"{own} & !attention_k_eq_v",
            ),
            *where(llama.biased(inside + "o_proj", "hidden", queries, "attention_bias"), flag),
        ]
        yield from found
        yield side(inside + "q_norm.weight", 0, width, flag)
        yield side(inside + "k_norm.weight", 0, width, own)


def per_layer_inputs() -> Iterator[Axis]:
    """Axes of the second embedding and of its way into the stream."""
    # A stretch of columns or rows for every layer, which goes with it.
    stretch = ("layer.{i}", PLE)
    yield side("model.embed_tokens_per_layer.weight", 0, "looked_up", PLE)
    yield side("model.embed_tokens_per_layer.weight", 1, stretch, PLE)
    yield from linear("model.per_layer_model_projection", stretch, "hidden", PLE)
    yield side("model.per_layer_projection_norm.weight", 0, PLE, PLE)
    yield from linear(LAYER + "per_layer_input_gate", PLE, "hidden", PLE)
    yield from linear(LAYER + "per_layer_projection", "hidden", PLE, PLE)
    yield side(LAYER + "post_per_layer_input_norm.weight", 0, "hidden", PLE)


def _has_inputs(config: Config, _layer: int = 0) -> bool:
    return bool(config.get("hidden_size_per_layer_input"))


def _resize(config: Config, widths: Widths) -> Fields:
    return {**llama.resize(config, widths), "head_dim": llama.head_dim(config)}


def _attributes(_config: Config, widths: Widths) -> ModuleSizes:
    return {"self_attn": {"num_key_value_groups": widths["query"]}} if "query" in widths else {}


def _kept(config: Config, layers: tuple[int, ...]) -> Fields:
    kinds, own = layer_types(config), {j: _own(config, i) for j, i in enumerate(layers)}
    return {
        "layer_types": [kinds[i] for i in layers],
        "per_layer_config": {str(j): fields for j, fields in own.items() if fields},
        "num_kv_shared_layers": sum(shares(config, i) for i in layers),
    }


def _staying(config: Config) -> Iterator[str]:
    """The last layer, which the class wants to have full attention; the first, whose scale has no
    layer in front to go to; those whose keys and values others attend to.
    """
    layers = range(config["num_hidden_layers"])
    yield from (f"layer.{layers[0]}", f"mlp_block.{layers[0]}", f"layer.{layers[-1]}")
    for kept in {_kv_layer(config, i) for i in layers if shares(config, i)}:
        yield from (f"layer.{kept}", f"attention_block.{kept}")


_NORMS: dict[str, Any] = {
    "attention_norms": ("input_layernorm", "post_attention_layernorm"),
    "mlp_norms": ("pre_feedforward_layernorm", "post_feedforward_layernorm"),
    "behind": True,
}
_FED = {**llama.FED, LAYER + "self_attn.v_norm": LAYER + "self_attn.v_proj"}
GEMMA4 = decoder(
    "gemma4_text",
    name="gemma4",
    modules=(*_attention(), *gated(), *per_layer_inputs()),
    head_norms=(LAYER + "post_per_layer_input_norm.weight",),
    fed_by={**_FED, "model.per_layer_projection_norm": "model.per_layer_model_projection"},
    units={
        **llama.UNITS,
        "attention": _kv_heads,
        "query": lambda c, i: c["num_attention_heads"] // _kv_heads(c, i),
        "ffn": lambda c, i: (
            c["intermediate_size"] * (1 + bool(c.get("use_double_wide_mlp") and shares(c, i)))
        ),
        "global_head_dim": lambda c, _: _global_head(c),
        "looked_up": lambda c, _: c["vocab_size_per_layer_input"],
        PLE: lambda c, _: c["hidden_size_per_layer_input"],
    },
    positions_per_unit={
        "one": lambda _: 1,
        "head": llama.head_dim,
        "global_head": _global_head,
        PLE: lambda c: c.get("hidden_size_per_layer_input") or 0,
    },
    flags={
        "sliding": _is("sliding_attention"),
        "full": _is("full_attention"),
        "shares": shares,
        PLE: _has_inputs,
    },
    fixed=("vocab", "looked_up", "head_dim", "global_head_dim", PLE),
    scaled_embedding="model.embed_tokens.weight",
    hidden_powers={"model.per_layer_model_projection.weight": -0.5},
    epsilon_attribute="eps",
    layer_scale="layer_scalar",
    kv_layer=_kv_layer,
    more_than_blocks=_has_inputs,
    unusable=_unusable,
    staying=_staying,
    resize=_resize,
    attributes=_attributes,
    depth_fields=_kept,
    defaults={
        "gemma4_text": {
            **{"tie_word_embeddings": True, "num_key_value_heads": 4, "head_dim": 256},
            **{"hidden_size_per_layer_input": 256, "vocab_size_per_layer_input": 262_144},
        }
    },
    **_NORMS,
)
FAMILIES = (GEMMA4,)

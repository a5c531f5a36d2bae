"""Builds random models of any architecture: small ones for tracing, and of given sizes.

The structure is kept (ties, biases, grouped or multi-query attention, norms, the sorts of layers).
Every size becomes a different number, so that none can be mistaken for another.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, TypeGuard

import torch
from torch import nn

from effcompress.errors import SourceError
from effcompress.kept_layers import FIRST, LAST, NUMBERS, OWN, kept_layers, own_fields, per_layer
from effcompress.model.silence import quietly
from effcompress.types import Config, Fields

PERIOD, OFFSET = "_layer_period", "_layer_offset"
"""Ends of the names of fields by which sorts of layers repeat."""

REPEATED = "block_types"
"""Field that lists the sorts of the first layers; those after them repeat the list."""

Size = Literal["given", "small", "other"]
"""Sizes of the configuration; small; small with other numbers."""

_SIZES: Mapping[str, tuple[int, int, tuple[str, ...]]] = {
    "vocab_size": (61, 67, ()),
    "hidden_size": (144, 160, ("n_embd", "d_model", "embedding_dim", "lru_width")),
    "intermediate_size": (56, 72, ("ffn_dim", "n_inner", "ffn_hidden_size", "d_ff", "d_inner")),
    "num_hidden_layers": (2, 3, ("n_layer", "n_layers", "num_layers", "num_blocks")),
    # Three query heads per KV head: with two, torch-pruning does not terminate.
    "num_attention_heads": (12, 10, ("n_head", "n_heads", "num_heads", "attention_heads")),
    "num_key_value_heads": (4, 5, ("num_kv_heads",)),
    "head_dim": (24, 40, ("kv_channels", "d_head")),
    "max_position_embeddings": (131, 257, ("n_positions", "max_seq_len", "n_ctx")),
    "rotary_dim": (4, 8, ()),
    "sliding_window": (64, 96, ("window_size", "attention_window_size")),
    "num_experts": (5, 7, ("num_local_experts", "n_routed_experts")),
    "num_experts_per_tok": (2, 2, ("top_k_experts", "num_experts_per_token")),
    "n_group": (1, 1, ("num_expert_group",)),
    "topk_group": (1, 1, ()),
    "moe_intermediate_size": (20, 36, ()),
    "shared_expert_intermediate_size": (28, 44, ("shared_intermediate_size",)),
    # Latent attention.
    "q_lora_rank": (37, 43, ()),
    "kv_lora_rank": (54, 78, ()),
    "qk_nope_head_dim": (16, 32, ()),
    "qk_rope_head_dim": (8, 12, ()),
    "v_head_dim": (20, 28, ()),
    # Attention over the hidden state beside the embedding: twice as wide.
    "attention_hidden_size": (288, 320, ()),
    "attention_head_dim": (24, 32, ()),
    # Linear attention and state spaces; Mamba's heads times their width are twice the hidden size.
    "linear_num_heads": (4, 6, ()),
    "linear_head_dim": (10, 14, ()),
    "linear_num_key_heads": (2, 3, ()),
    "linear_num_value_heads": (4, 6, ()),
    "linear_key_head_dim": (10, 14, ()),
    "linear_value_head_dim": (6, 18, ()),
    "mamba_d_ssm": (288, 320, ()),
    "mamba_n_heads": (4, 8, ("mamba_num_heads", "n_mamba_heads")),
    "mamba_d_head": (72, 40, ("mamba_head_dim", "mamba_headdim")),
    "mamba_d_state": (6, 14, ("ssm_state_size",)),
    "mamba_chunk_size": (16, 16, ()),
    "n_groups": (2, 2, ()),
    # Embeddings added to every layer.
    "hidden_size_per_layer_input": (26, 34, ()),
    "vocab_size_per_layer_input": (73, 79, ()),
}
"""Usual name of a size -> its value if small and if ``other``, and other names of it."""


def build(config: Config, size: Size, *, attention: str | None = "eager") -> nn.Module:
    """Builds a random model in fp32 and without KV cache, on the device of the context (``with
    torch.device("meta")`` for shapes alone). ``attention``: its implementation; None: the class's
    own.

    Small sizes that the class refuses, or that its forward pass does not fit, are exchanged for
    others (``_alternatives``) until one runs.

    Raises:
        SourceError: transformers does not know the ``model_type``, or refuses the sizes.
    """
    from transformers import AutoConfig

    fields = dict(config)
    model_type = str(fields.pop("model_type", None))
    failed: Exception | None = None
    with quietly():
        try:
            stated: Any = AutoConfig.for_model(model_type, **fields)
            if size == "given":
                return _made(stated, attention)
            # Defaults of sizes that the file leaves out are in the built configuration.
            plain = plain_of(stated)
            for sizes in _alternatives(shrink(plain, size), plain):
                try:
                    tried = AutoConfig.for_model(sizes.pop("model_type"), **sizes)
                    return _runs(_made(tried, attention))
                except Exception as error:  # noqa: BLE001 (architectures raise different ones)
                    failed = failed or error
        except Exception as error:  # noqa: BLE001
            failed = error
    assert failed is not None
    first, *more = str(failed).strip().splitlines() or [type(failed).__name__]
    line = more[-1].strip() if first.endswith(":") and more else first  # a validator's own words
    said = line.partition(". ")[0]  # the rest lists hundreds of names
    raise SourceError(
        f"transformers cannot build '{model_type}' ({size}): {said}", where="model"
    ) from failed


def plain_of(config: Any) -> Fields:
    """Returns a configuration as plain values. Where layers have values of their own, transformers
    leaves the common ones out unless it is told not to.
    """
    uneven = getattr(config, "is_heterogeneous", False)
    if uneven:
        config.allow_global_per_layer_attribute_access = True
    found: Fields = config.to_dict()
    found.pop("allow_global_per_layer_attribute_access", None)
    return found


def _made(config: Any, attention: str | None) -> Any:
    from transformers import AutoModelForCausalLM

    config.use_cache = False
    how: Any = {} if attention is None else {"attn_implementation": attention}
    module: Any = AutoModelForCausalLM.from_config(config, **how)
    if getattr(module, "_can_set_experts_implementation", lambda: False)():
        module.set_experts_implementation("eager")  # grouped kernels have no fp64
    return module.float().eval()


@torch.no_grad()
def _runs(module: Any) -> nn.Module:
    ids_BT = torch.zeros(1, 3, dtype=torch.long, device=next(module.parameters()).device)
    module(input_ids=ids_BT, use_cache=False)
    return module


def _alternatives(small: Fields, stated: Config) -> Iterator[Fields]:
    """Yields the small sizes as they are, then consistent ones for classes in which one size
    follows from others: heads that fill the hidden size, heads that fill twice the hidden size
    (Mamba-2), windows as they were, twice as many KV heads in layers with a window; and rope by
    kind of layer, where the class has no default.
    """
    yield dict(small)
    if not small.get("rope_parameters") and (kinds := small.get("layer_types")):
        plain = {"rope_type": "default", "rope_theta": 10000.0}
        yield small | {"rope_parameters": {kind: dict(plain) for kind in sorted({*kinds})}}
    hidden, heads = _stated(small, "hidden_size"), _stated(small, "num_attention_heads")
    for times in (1, 2):
        width = times * (hidden or 0) // (heads or 1)
        yield small | {n: width for n in _names("head_dim") if _is_size(small.get(n))}
    yield small | {name: value for name, value in stated.items() if "window" in name}
    # Three query heads per KV head of the layers with a window, six of the others.
    kv, own = _stated(small, "num_key_value_heads"), _stated(small, "head_dim")
    if kv and own:
        yield small | {n: 6 * kv for n in _names("num_attention_heads") if _is_size(small.get(n))}


def shrink(config: Config, size: Size) -> Fields:
    """Returns the configuration of a small model of the same structure, with at least one layer of
    every sort that the configuration tells apart.
    """
    other = size == "other"
    sizes = {usual: b if other else a for usual, (a, b, _) in _SIZES.items()}
    heads, kv = _stated(config, "num_attention_heads"), _stated(config, "num_key_value_heads")
    if kv is not None and kv in (1, heads):  # multi-query or multi-head: no grouping
        sizes["num_key_value_heads"] = 1 if kv == 1 else sizes["num_attention_heads"]
    if _stated(config, "num_experts_per_tok") == 1:
        sizes["num_experts_per_tok"] = 1
    found = dict(config)
    for usual, new in sizes.items():
        found.update({name: new for name in _names(usual) if _is_size(config.get(name))})
    found |= _of_latent_heads(config, found)
    periods = _of_periods(config)
    found |= periods
    rounds = [n for name, n in periods.items() if name.endswith(PERIOD)]
    rounds += [len(config[REPEATED])] if config.get(REPEATED) else []
    least = max([sizes["num_hidden_layers"], *rounds])
    chosen = _layers(config, least, 1 if other else 2)
    found.update({n: len(chosen) for n in _names("num_hidden_layers") if _is_size(config.get(n))})
    found |= _of_layers(config, chosen, sizes)
    for name, value in config.items():
        if name.endswith("_token_id") and _is_size(value) and value >= sizes["vocab_size"]:
            found[name] = 1
    return {name: _halved(name, value) for name, value in found.items()}


def _of_latent_heads(config: Config, small: Config) -> Fields:
    """Widths that classes with latent attention derive from those of the parts of a head; a stated
    value would overrule them.
    """
    rope, nope = small.get("qk_rope_head_dim"), small.get("qk_nope_head_dim")
    if rope is None or nope is None:
        return {}
    held = {"qk_head_dim": nope + rope, "head_dim": rope}
    if config.get("head_dim") == config.get("qk_head_dim"):
        held["head_dim"] = nope + rope
    return {name: width for name, width in held.items() if _is_size(config.get(name))}


def _of_periods(config: Config) -> Fields:
    """Sorts of layers that repeat (``attn_layer_period: 8``, ``attn_layer_offset: 4``), with a
    period of four at most: a model of that many layers has one of each sort.
    """
    found: Fields = {}
    for name, period in config.items():
        if name.endswith(PERIOD) and _is_size(period) and period > 4:
            offset = name.removesuffix(PERIOD) + OFFSET
            found[name] = 4
            if _is_size(config.get(offset)):
                found[offset] = config[offset] * 4 // period
    return found


def _layers(config: Config, least: int, each: int) -> list[int]:
    """Numbers of the layers that the small model has: the first of every sort, ``each`` times where
    there are as many, and the first of all until there are ``least``, or one more than there are
    sorts.
    """
    layers = _stated(config, "num_hidden_layers") or least
    looks = [_look(config, i, layers) for i in range(layers)]
    chosen = [i for i, look in enumerate(looks) if looks[:i].count(look) < each]
    more = [i for i in range(layers) if i not in chosen]
    wanted = max(least, len(chosen) + least - 2)
    return sorted(chosen + more[: max(0, wanted - len(chosen))]) or [*range(least)]


def _look(config: Config, layer: int, layers: int) -> list[Any]:
    """What the configuration says of one layer alone."""
    found = [v[layer] for name, v in config.items() if per_layer(name, v, layers)]
    found.append(layer >= layers - (config.get(LAST) or 0))
    dense = [config.get(name) for name in FIRST]
    found += [layer < first if _is_size(first) else False for first in dense]
    found += [layer in (config.get(name) or ()) for name in NUMBERS]
    return [*found, own_fields(config, layer) is not None]


def _of_layers(config: Config, chosen: Sequence[int], sizes: Mapping[str, int]) -> Fields:
    """The fields that speak of single layers, for a model of the ``chosen`` ones."""
    found = kept_layers(config, chosen)
    for name, value in found.items():
        usual = name.removesuffix("_per_layer")
        if usual in sizes and isinstance(value, list):  # one width per layer
            found[name] = [sizes[usual]] * len(value)
    for k, own in (found.get(OWN) or {}).items():
        found[OWN][k] = {**own, **_own_sizes(own, sizes)}
    return found


def _own_sizes(own: Config, sizes: Mapping[str, int]) -> Fields:
    """Small sizes of the layers that have fields of their own: others than those of all layers."""
    heads, kv = own.get("num_attention_heads"), own.get("num_key_value_heads")
    grouped = kv is not None and kv != heads
    small = {**{name: 2 * sizes[name] for name in own if name in sizes}, "num_key_value_heads": 2}
    if heads is not None and not grouped:
        small["num_key_value_heads"] = small["num_attention_heads"]
    return {name: small[name] for name in own if name in small}


def _halved(name: str, value: Any) -> Any:
    """Partial rotation of heads becomes one half: other fractions of a small head may be odd."""
    if isinstance(value, Mapping):
        return {inner: _halved(inner, held) for inner, held in value.items()}
    partial = name == "partial_rotary_factor" and isinstance(value, float) and value < 1
    return 0.5 if partial else value


def _names(usual: str) -> tuple[str, ...]:
    return (usual, *_SIZES[usual][2])


def _stated(config: Config, usual: str) -> int | None:
    return next((config[n] for n in _names(usual) if _is_size(config.get(n))), None)


def _is_size(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0

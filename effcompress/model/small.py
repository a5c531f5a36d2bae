"""Builds random models of any architecture: small ones for tracing, and of given sizes.

The structure is kept (ties, biases, grouped or multi-query attention, norms). Every size becomes a
different number, so that none can be mistaken for another.
"""

from collections.abc import Mapping
from typing import Any, Literal

from torch import nn

from effcompress.errors import SourceError
from effcompress.model.silence import quietly
from effcompress.types import Config, Fields

Size = Literal["given", "small", "other"]
"""Sizes of the configuration; small; small with other numbers."""

_SIZES: Mapping[str, tuple[int, int, tuple[str, ...]]] = {
    "vocab_size": (61, 67, ()),
    "hidden_size": (96, 160, ("n_embd", "d_model")),
    "intermediate_size": (56, 72, ("ffn_dim", "n_inner", "ffn_hidden_size", "d_ff")),
    "num_hidden_layers": (2, 3, ("n_layer", "n_layers", "num_layers")),
    # Three query heads per KV head: with two, torch-pruning does not terminate.
    "num_attention_heads": (12, 10, ("n_head", "n_heads", "num_heads", "attention_heads")),
    "num_key_value_heads": (4, 5, ("num_kv_heads",)),
    "head_dim": (24, 40, ("kv_channels",)),
    "max_position_embeddings": (128, 256, ("n_positions", "max_seq_len", "n_ctx")),
    "rotary_dim": (4, 8, ()),
    "sliding_window": (64, 96, ("window_size",)),
    "num_experts": (5, 7, ("num_local_experts", "n_routed_experts")),
    "num_experts_per_tok": (2, 2, ()),
    "moe_intermediate_size": (20, 36, ()),
    "shared_expert_intermediate_size": (28, 44, ()),
}
"""Usual name of a size -> its value if small and if ``other``, and other names of it."""


def build(config: Config, size: Size, *, attention: str | None = "eager") -> nn.Module:
    """Builds a random model in fp32 and without KV cache, on the device of the context (``with
    torch.device("meta")`` for shapes alone). ``attention``: its implementation; None: the class's
    own.

    Raises:
        SourceError: transformers does not know the ``model_type``, or refuses the sizes.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    fields = dict(config)
    model_type = str(fields.pop("model_type", None))
    try:
        with quietly():
            built: Any = AutoConfig.for_model(model_type, **fields)
            if size != "given":  # defaults of sizes that the file leaves out
                fields = shrink(built.to_dict(), size)
                built = AutoConfig.for_model(fields.pop("model_type"), **fields)
            built.use_cache = False
            how: Any = {} if attention is None else {"attn_implementation": attention}
            module: Any = AutoModelForCausalLM.from_config(built, **how)
    except Exception as error:  # architectures raise different errors
        line = next(iter(str(error).strip().splitlines()), type(error).__name__)
        said = line.partition(". ")[0]  # the rest lists hundreds of names
        raise SourceError(
            f"transformers cannot build '{model_type}' ({size}): {said}", where="model"
        ) from error
    if getattr(module, "_can_set_experts_implementation", lambda: False)():
        module.set_experts_implementation("eager")  # grouped kernels have no fp64
    return module.float().eval()


def shrink(config: Config, size: Size) -> Fields:
    """Returns the configuration of a small model of the same structure."""
    other = size == "other"
    sizes = {usual: b if other else a for usual, (a, b, _) in _SIZES.items()}
    heads, kv = _stated(config, "num_attention_heads"), _stated(config, "num_key_value_heads")
    if kv is not None and kv in (1, heads):  # multi-query or multi-head: no grouping
        sizes["num_key_value_heads"] = 1 if kv == 1 else sizes["num_attention_heads"]
    found = dict(config)
    for usual, new in sizes.items():
        found.update({name: new for name in _names(usual) if _is_size(config.get(name))})
    layers = _stated(config, "num_hidden_layers")
    for name, value in config.items():
        if isinstance(value, list) and len(value) == layers:  # one entry per layer
            found[name] = value[: sizes["num_hidden_layers"]]
    for name, value in config.items():
        if name.endswith("_token_id") and _is_size(value) and value >= sizes["vocab_size"]:
            found[name] = 1
    return {name: _halved(name, value) for name, value in found.items()}


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


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0

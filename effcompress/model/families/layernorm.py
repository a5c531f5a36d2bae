"""Families with LayerNorm and biases: GPT-NeoX (Pythia), OPT, GPT-2. Their stock classes compute
the width of a head as hidden size / heads, so they accept few pruned shapes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from effcompress.model.families.sizes import biased, linear
from effcompress.types import Axis, Config, Family, ModuleSizes, Sublayer, Widths

ATTENTION, FFN = "attention.{i}", "ffn.{i}"
HEAD = (ATTENTION, "head")


def _norm(module: str, when: str = "") -> Iterator[Axis]:
    yield Axis(f"{module}.weight", 0, "hidden", when=when)
    yield Axis(f"{module}.bias", 0, "hidden", when=when)


def _head_dim(config: Config, hidden: str, heads: str) -> int:
    # The engine adds `head_dim` once hidden size / heads is no longer the width of a head.
    return config.get("head_dim") or config[hidden] // config[heads]


def _pad(config: Config, widths: Widths) -> dict[str, int]:
    """Pads heads until hidden size / heads is the width of a head again, if it divides."""
    hidden, heads = ("n_embd", "n_head") if "n_embd" in config else _NAMES
    fitting, rest = divmod(widths["hidden"], _head_dim(config, hidden, heads))
    return {} if rest or fitting < widths["attention"] else {"attention": fitting}


_NAMES = ("hidden_size", "num_attention_heads")
_CENTRED: dict[str, Any] = {
    "pad": _pad,
    "centred": True,
    "epsilon_attribute": "eps",
    # Channels of zeros would change the mean and the variance of a LayerNorm.
    "rigid": ("hidden",),
}

_NEOX = "gpt_neox.layers.{i}."
NEOX = Family(
    name="gpt_neox",
    model_types=("gpt_neox",),
    axes=(
        *linear("gpt_neox.embed_in", "vocab", "hidden"),
        *_norm(_NEOX + "input_layernorm"),
        *_norm(_NEOX + "post_attention_layernorm"),
        # Fused by head: rows [heads, (q, k, v), head_dim].
        *biased(
            _NEOX + "attention.query_key_value", (ATTENTION, "qkv"), "hidden", "attention_bias"
        ),
        *biased(_NEOX + "attention.dense", "hidden", HEAD, "attention_bias"),
        *biased(_NEOX + "mlp.dense_h_to_4h", FFN, "hidden"),
        *biased(_NEOX + "mlp.dense_4h_to_h", "hidden", FFN),
        *_norm("gpt_neox.final_layer_norm"),
        *linear("lm_head", "vocab", "hidden", "!tie_word_embeddings"),
    ),
    units={
        "vocab": lambda c, _: c["vocab_size"],
        "hidden": lambda c, _: c["hidden_size"],
        "attention": lambda c, _: c["num_attention_heads"],
        "ffn": lambda c, _: c["intermediate_size"],
    },
    positions_per_unit={
        "one": lambda _: 1,
        "head": lambda c: _head_dim(c, "hidden_size", "num_attention_heads"),
        "qkv": lambda c: 3 * _head_dim(c, "hidden_size", "num_attention_heads"),
    },
    resize=lambda _, w: {
        "hidden_size": w["hidden"],
        "intermediate_size": w["ffn"],
        "num_attention_heads": w["attention"],
    },
    required=(
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
    ),
    norms=(
        _NEOX + "input_layernorm.weight",
        _NEOX + "post_attention_layernorm.weight",
        "gpt_neox.final_layer_norm.weight",
    ),
    layer="gpt_neox.layers.{i}",
    sublayers={
        "attention_block": Sublayer("attention", 2, ("input_layernorm",)),
        "mlp_block": Sublayer("mlp", 1, ("post_attention_layernorm",)),
    },
    final_norm="gpt_neox.final_layer_norm.weight",
    epsilon_field="layer_norm_eps",
    fixed=("vocab",),
    defaults={"gpt_neox": {"attention_bias": True}},
    **_CENTRED,
)

_OPT = "model.decoder.layers.{i}."


def _projected(config: Config, _layer: int) -> bool:
    return config.get("word_embed_proj_dim", config["hidden_size"]) != config["hidden_size"]


def _has_final_norm(config: Config, _layer: int) -> bool:
    return bool(config.get("do_layer_norm_before", True)) and not config.get(
        "_remove_final_layer_norm", False
    )


def _opt_no_depth(config: Config) -> str:
    if config.get("do_layer_norm_before", True):
        return ""
    return "the residual stream itself is normalised in every layer (do_layer_norm_before: false)"


def _opt_attributes(config: Config, widths: Widths) -> ModuleSizes:
    found: ModuleSizes = {"self_attn": {"num_heads": widths["attention"]}}
    if not config.get(
        "layer_norm_elementwise_affine", True
    ):  # without a gain, no tensor has its length
        for norm in ("self_attn_layer_norm", "final_layer_norm"):
            found[norm] = {"normalized_shape": [widths["hidden"]]}
    return found


OPT = Family(
    name="opt",
    model_types=("opt",),
    axes=(
        Axis("model.decoder.embed_tokens.weight", 0, "vocab"),
        Axis("model.decoder.embed_tokens.weight", 1, "hidden", when="!projected"),
        Axis("model.decoder.embed_tokens.weight", 1, "embedding", when="projected"),
        *linear("model.decoder.embed_positions", "positions", "hidden"),
        *linear("model.decoder.project_in", "hidden", "embedding", "projected"),
        *linear("model.decoder.project_out", "embedding", "hidden", "projected"),
        *_norm("model.decoder.final_layer_norm", "final_norm"),
        *biased(_OPT + "self_attn.k_proj", HEAD, "hidden", "enable_bias"),
        *biased(_OPT + "self_attn.v_proj", HEAD, "hidden", "enable_bias"),
        *biased(_OPT + "self_attn.q_proj", HEAD, "hidden", "enable_bias"),
        *biased(_OPT + "self_attn.out_proj", "hidden", HEAD, "enable_bias"),
        *_norm(_OPT + "self_attn_layer_norm", "layer_norm_elementwise_affine"),
        *biased(_OPT + "fc1", FFN, "hidden", "enable_bias"),
        *biased(_OPT + "fc2", "hidden", FFN, "enable_bias"),
        *_norm(_OPT + "final_layer_norm", "layer_norm_elementwise_affine"),
        *linear("lm_head", "vocab", "hidden", "!tie_word_embeddings"),
    ),
    units={
        "vocab": lambda c, _: c["vocab_size"],
        "hidden": lambda c, _: c["hidden_size"],
        "attention": lambda c, _: c["num_attention_heads"],
        "ffn": lambda c, _: c["ffn_dim"],
        # OPT's position table has an offset of 2.
        "positions": lambda c, _: c["max_position_embeddings"] + 2,
        "embedding": lambda c, _: c["word_embed_proj_dim"],
    },
    positions_per_unit={
        "one": lambda _: 1,
        "head": lambda c: _head_dim(c, "hidden_size", "num_attention_heads"),
    },
    resize=lambda c, w: {
        "hidden_size": w["hidden"],
        "word_embed_proj_dim": c["word_embed_proj_dim"] if _projected(c, 0) else w["hidden"],
        "ffn_dim": w["ffn"],
        "num_attention_heads": w["attention"],
    },
    required=(
        "vocab_size",
        "hidden_size",
        "ffn_dim",
        "num_hidden_layers",
        "num_attention_heads",
        "max_position_embeddings",
    ),
    norms=(
        _OPT + "self_attn_layer_norm.weight",
        _OPT + "final_layer_norm.weight",
        "model.decoder.final_layer_norm.weight",
    ),
    layer="model.decoder.layers.{i}",
    sublayers={
        "attention_block": Sublayer("self_attn", 2, ("self_attn_layer_norm",)),
        "mlp_block": Sublayer("fc2", 1, ("final_layer_norm", "fc1")),
    },
    flags={"projected": _projected, "final_norm": _has_final_norm},
    attributes=_opt_attributes,
    final_norm="model.decoder.final_layer_norm.weight",
    epsilon_field="",
    fixed=("vocab", "positions", "embedding"),
    no_depth=_opt_no_depth,
    defaults={
        "opt": {
            "tie_word_embeddings": True,
            "enable_bias": True,
            "layer_norm_elementwise_affine": True,
            "do_layer_norm_before": True,
        }
    },
    aliases={"intermediate_size": "ffn_dim"},
    **_CENTRED,
)

_GPT2 = "transformer.h.{i}."


def _conv1d(module: str, into: Any, *outs: tuple[str, str] | str) -> Iterator[Axis]:
    """Axes of GPT-2's Conv1D, whose weight is ``[in, out]``; ``outs`` are segments of columns."""
    in_name, in_per_unit = (into, "one") if isinstance(into, str) else into
    yield Axis(f"{module}.weight", 0, in_name, in_per_unit)
    for out in outs:
        name, per_unit = (out, "one") if isinstance(out, str) else out
        yield Axis(f"{module}.weight", 1, name, per_unit)
        yield Axis(f"{module}.bias", 0, name, per_unit)


def _gpt2_head(config: Config) -> int:
    return _head_dim(config, "n_embd", "n_head")


def _gpt2_attributes(config: Config, widths: Widths) -> ModuleSizes:
    heads = widths["attention"]
    return {"attn": {"num_heads": heads, "split_size": heads * _gpt2_head(config)}}


def _gpt2_no_depth(config: Config) -> str:
    if config.get("scale_attn_by_inverse_layer_idx"):
        return "attention is scaled by the number of the layer (scale_attn_by_inverse_layer_idx)"
    return ""


GPT2 = Family(
    name="gpt2",
    model_types=("gpt2",),
    inputs=0,
    axes=(
        *linear("transformer.wte", "vocab", "hidden"),
        *linear("transformer.wpe", "positions", "hidden"),
        *_norm(_GPT2 + "ln_1"),
        *_conv1d(_GPT2 + "attn.c_attn", "hidden", HEAD, HEAD, HEAD),
        *_conv1d(_GPT2 + "attn.c_proj", HEAD, "hidden"),
        *_norm(_GPT2 + "ln_2"),
        *_conv1d(_GPT2 + "mlp.c_fc", "hidden", FFN),
        *_conv1d(_GPT2 + "mlp.c_proj", FFN, "hidden"),
        *_norm("transformer.ln_f"),
        *linear("lm_head", "vocab", "hidden", "!tie_word_embeddings"),
    ),
    units={
        "vocab": lambda c, _: c["vocab_size"],
        "hidden": lambda c, _: c["n_embd"],
        "attention": lambda c, _: c["n_head"],
        "ffn": lambda c, _: c.get("n_inner") or 4 * c["n_embd"],
        "positions": lambda c, _: c["n_positions"],
    },
    positions_per_unit={"one": lambda _: 1, "head": _gpt2_head},
    resize=lambda _, w: {"n_embd": w["hidden"], "n_inner": w["ffn"], "n_head": w["attention"]},
    required=("vocab_size", "n_embd", "n_layer", "n_head", "n_positions"),
    norms=(_GPT2 + "ln_1.weight", _GPT2 + "ln_2.weight", "transformer.ln_f.weight"),
    layer="transformer.h.{i}",
    sublayers={
        "attention_block": Sublayer("attn", 2, ("ln_1",)),
        "mlp_block": Sublayer("mlp", 1, ("ln_2",)),
    },
    attributes=_gpt2_attributes,
    final_norm="transformer.ln_f.weight",
    epsilon_field="layer_norm_epsilon",
    fixed=("vocab", "positions"),
    no_depth=_gpt2_no_depth,
    defaults={"gpt2": {"tie_word_embeddings": True}},
    aliases={
        "hidden_size": "n_embd",
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "max_position_embeddings": "n_positions",
        "intermediate_size": "n_inner",
    },
    **_CENTRED,
)

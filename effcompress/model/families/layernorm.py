"""Families with LayerNorm and biases: GPT-NeoX (Pythia), OPT, GPT-2. Their stock classes compute
the width of a head as hidden size / heads, so they accept few pruned shapes.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from effcompress.model.families import llama
from effcompress.model.families.llama import ATTENTION, COUNTS, FFN, HEAD, Name, biased, linear
from effcompress.types import Axis, Config, Family, Fields, ModuleSizes, Residual, Sublayer, Widths


def norm(module: str, when: str = "") -> Iterator[Axis]:
    """Axes of the gain and the bias of a LayerNorm over the residual stream."""
    yield Axis(f"{module}.weight", 0, "hidden", when=when)
    yield Axis(f"{module}.bias", 0, "hidden", when=when)


def family(
    model_type: str,
    fields: Mapping[str, str],
    layer: str,
    blocks: tuple[Sublayer, Sublayer],
    final_norm: str,
    axes: tuple[Axis, ...],
    *,
    defaults: Config,
    heads: str = "",
    **traits: Any,
) -> Family:
    """Declares a family. ``fields``: axis kind -> configuration field of its width; ``units`` adds
    kinds that are never cut, and computed ones. The first module that a block is ``through`` is its
    norm; ``axes`` are those up to the output matrix; ``heads`` is the field of their number where
    it is not the width of ``attention``.
    """
    units: dict[str, Any] = traits.pop("units", {})
    hidden, heads = fields["hidden"], heads or fields["attention"]

    def head_dim(config: Config) -> int:
        # The engine adds `head_dim` once hidden size / heads is no longer the width of a head.
        return config.get("head_dim") or config[hidden] // config[heads]

    def pad(config: Config, widths: Widths) -> dict[str, int]:
        """Pads heads until hidden size / heads is the width of a head again, if it divides."""
        fitting, rest = divmod(widths["hidden"], head_dim(config))
        return {} if rest or fitting < widths["attention"] else {"attention": fitting}

    def resize(_config: Config, widths: Widths) -> Fields:
        return {field: widths[kind] for kind, field in fields.items()}

    stated = {"vocab": "vocab_size", **fields}
    norms = (f"{layer}.{block.through[0]}.weight" for block in blocks if block.through)
    found = {
        "name": model_type,
        "axes": (*axes, *llama.lm_head()),
        "units": {**{kind: lambda c, _, f=f: c[f] for kind, f in stated.items()}, **units},
        "positions_per_unit": {
            "one": lambda _: 1,
            "head": head_dim,
            "qkv": lambda c: 3 * head_dim(c),
        },
        "norms": (*norms, final_norm),
        "layer": layer,
        "sublayers": dict(zip(("attention_block", "mlp_block"), blocks, strict=True)),
        "final_norm": final_norm,
        "fixed": ("vocab", *(kind for kind in units if kind not in fields)),
        "defaults": {model_type: defaults},
        "pad": pad,
        "centred": True,
        "whole_heads": lambda _: True,
        "epsilon_attribute": "eps",
        # Channels of zeros would change the mean and the variance of a LayerNorm.
        "rigid": ("hidden",),
        "resize": resize,
    }
    return Family(model_types=(model_type,), **{**found, **traits})


_NEOX = "gpt_neox.layers.{i}."
NEOX = family(
    "gpt_neox",
    {"hidden": "hidden_size", "attention": "num_attention_heads", "ffn": "intermediate_size"},
    "gpt_neox.layers.{i}",
    (
        Sublayer("attention", 2, ("input_layernorm",)),
        Sublayer("mlp", 1, ("post_attention_layernorm",)),
    ),
    "gpt_neox.final_layer_norm.weight",
    (
        *linear("gpt_neox.embed_in", "vocab", "hidden"),
        *norm(_NEOX + "input_layernorm"),
        *norm(_NEOX + "post_attention_layernorm"),
        # Fused by head: rows [heads, (q, k, v), head_dim].
        *biased(
            _NEOX + "attention.query_key_value", (ATTENTION, "qkv"), "hidden", "attention_bias"
        ),
        *biased(_NEOX + "attention.dense", "hidden", HEAD, "attention_bias"),
        *biased(_NEOX + "mlp.dense_h_to_4h", FFN, "hidden"),
        *biased(_NEOX + "mlp.dense_4h_to_h", "hidden", FFN),
        *norm("gpt_neox.final_layer_norm"),
    ),
    required=("vocab_size", "hidden_size", "intermediate_size", *COUNTS),
    epsilon_field="layer_norm_eps",
    residual=lambda c: Residual(
        ("attention", "post_attention_dropout"),
        ("mlp", "post_mlp_dropout"),
        parallel=bool(c.get("use_parallel_residual", True)),
    ),
    defaults={"attention_bias": True},
)

_OPT = "model.decoder.layers.{i}."


def _projected(config: Config, _layer: int) -> bool:
    return config.get("word_embed_proj_dim", config["hidden_size"]) != config["hidden_size"]


def _norm_first(config: Config) -> bool:
    return bool(config.get("do_layer_norm_before", True))


def _final_norm(config: Config) -> bool:
    return _norm_first(config) and not config.get("_remove_final_layer_norm", False)


def _affine(config: Config) -> bool:
    return bool(config.get("layer_norm_elementwise_affine", True))


def _opt_no_depth(config: Config) -> str:
    said = "the residual stream itself is normalised in every layer (do_layer_norm_before: false)"
    return "" if _norm_first(config) else said


def _opt_attributes(config: Config, widths: Widths) -> ModuleSizes:
    found: ModuleSizes = {"self_attn": {"num_heads": widths["attention"]}}
    if not _affine(config):
        # Without a gain, no tensor has a norm's length.
        for name in ("self_attn_layer_norm", "final_layer_norm"):
            found[name] = {"normalized_shape": [widths["hidden"]]}
    return found


def _opt_outside(config: Config, widths: Widths) -> ModuleSizes:
    if _affine(config) or not _final_norm(config):
        return {}
    return {"model.decoder.final_layer_norm": {"normalized_shape": [widths["hidden"]]}}


OPT = family(
    "opt",
    {"hidden": "hidden_size", "attention": "num_attention_heads", "ffn": "ffn_dim"},
    "model.decoder.layers.{i}",
    (
        Sublayer("self_attn", 2, ("self_attn_layer_norm",)),
        Sublayer("fc2", 1, ("final_layer_norm", "fc1")),
    ),
    "model.decoder.final_layer_norm.weight",
    (
        Axis("model.decoder.embed_tokens.weight", 0, "vocab"),
        Axis("model.decoder.embed_tokens.weight", 1, "hidden", when="!projected"),
        Axis("model.decoder.embed_tokens.weight", 1, "embedding", when="projected"),
        *linear("model.decoder.embed_positions", "positions", "hidden"),
        *linear("model.decoder.project_in", "hidden", "embedding", "projected"),
        *linear("model.decoder.project_out", "embedding", "hidden", "projected"),
        *norm("model.decoder.final_layer_norm", "final_norm"),
        *biased(_OPT + "self_attn.k_proj", HEAD, "hidden", "enable_bias"),
        *biased(_OPT + "self_attn.v_proj", HEAD, "hidden", "enable_bias"),
        *biased(_OPT + "self_attn.q_proj", HEAD, "hidden", "enable_bias"),
        *biased(_OPT + "self_attn.out_proj", "hidden", HEAD, "enable_bias"),
        *norm(_OPT + "self_attn_layer_norm", "layer_norm_elementwise_affine"),
        *biased(_OPT + "fc1", FFN, "hidden", "enable_bias"),
        *biased(_OPT + "fc2", "hidden", FFN, "enable_bias"),
        *norm(_OPT + "final_layer_norm", "layer_norm_elementwise_affine"),
    ),
    units={
        # The position table has an offset of 2.
        "positions": lambda c, _: c["max_position_embeddings"] + 2,
        "embedding": lambda c, _: c["word_embed_proj_dim"],
    },
    resize=lambda c, w: {
        "hidden_size": w["hidden"],
        "word_embed_proj_dim": c["word_embed_proj_dim"] if _projected(c, 0) else w["hidden"],
        "ffn_dim": w["ffn"],
        "num_attention_heads": w["attention"],
    },
    required=("vocab_size", "hidden_size", "ffn_dim", *COUNTS, "max_position_embeddings"),
    flags={
        "projected": _projected,
        "final_norm": lambda c, _: _final_norm(c) and _affine(c),
    },
    attributes=_opt_attributes,
    outside=_opt_outside,
    residual=lambda _: Residual(
        ("self_attn", "dropout"), ("fc1", "activation_fn", "fc2", "dropout")
    ),
    epsilon_field="",
    no_depth=_opt_no_depth,
    norms_behind=lambda c: not _norm_first(c),
    defaults=dict.fromkeys(
        (
            "tie_word_embeddings",
            "enable_bias",
            "layer_norm_elementwise_affine",
            "do_layer_norm_before",
        ),
        True,
    ),
    aliases={"intermediate_size": "ffn_dim"},
)

_GPT2 = "transformer.h.{i}."


def _conv1d(module: str, into: Name, *outs: Name) -> Iterator[Axis]:
    """Axes of GPT-2's Conv1D, whose weight is ``[in, out]``; ``outs`` are segments of columns."""
    yield llama.side(f"{module}.weight", 0, into)
    for out in outs:
        yield llama.side(f"{module}.weight", 1, out)
        yield llama.side(f"{module}.bias", 0, out)


def _gpt2_attributes(config: Config, widths: Widths) -> ModuleSizes:
    heads = widths["attention"]
    channels = heads * GPT2.positions_per_unit["head"](config)
    return {"attn": {"num_heads": heads, "split_size": channels}}


def _gpt2_no_depth(config: Config) -> str:
    said = "attention is scaled by the number of the layer (scale_attn_by_inverse_layer_idx)"
    return said if config.get("scale_attn_by_inverse_layer_idx") else ""


GPT2 = family(
    "gpt2",
    {"hidden": "n_embd", "attention": "n_head", "ffn": "n_inner"},
    "transformer.h.{i}",
    (Sublayer("attn", 2, ("ln_1",)), Sublayer("mlp", 1, ("ln_2",))),
    "transformer.ln_f.weight",
    (
        *linear("transformer.wte", "vocab", "hidden"),
        *linear("transformer.wpe", "positions", "hidden"),
        *norm(_GPT2 + "ln_1"),
        *_conv1d(_GPT2 + "attn.c_attn", "hidden", HEAD, HEAD, HEAD),
        *_conv1d(_GPT2 + "attn.c_proj", HEAD, "hidden"),
        *norm(_GPT2 + "ln_2"),
        *_conv1d(_GPT2 + "mlp.c_fc", "hidden", FFN),
        *_conv1d(_GPT2 + "mlp.c_proj", FFN, "hidden"),
        *norm("transformer.ln_f"),
    ),
    inputs=0,
    units={
        "ffn": lambda c, _: c.get("n_inner") or 4 * c["n_embd"],
        "positions": lambda c, _: c["n_positions"],
    },
    required=("vocab_size", "n_embd", "n_layer", "n_head", "n_positions"),
    attributes=_gpt2_attributes,
    residual=lambda _: Residual(("attn",), ("mlp",), one_width=True),
    epsilon_field="layer_norm_epsilon",
    no_depth=_gpt2_no_depth,
    defaults={"tie_word_embeddings": True},
    aliases={
        "hidden_size": "n_embd",
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "max_position_embeddings": "n_positions",
        "intermediate_size": "n_inner",
    },
)
FAMILIES = (NEOX, OPT, GPT2)

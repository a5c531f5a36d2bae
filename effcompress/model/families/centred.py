"""Decoders of Llama's shape with LayerNorm: Phi, StarCoder 2, StableLM, Cohere, Nemotron, OLMo.
In some of them both blocks of a layer read the same normalised stream.
"""

from collections.abc import Iterator
from typing import Any

from effcompress.model.families import llama
from effcompress.model.families.llama import ATTENTION, FFN, LAYER, QUERY, Name, biased, linear
from effcompress.types import Axis, Config, Family, ModuleSizes, Residual, Sublayer, Widths

_ONE, _TWO = ("input_layernorm",), ("input_layernorm", "post_attention_layernorm")


def _decoder(
    model_type: str,
    modules: tuple[Axis, ...],
    norms: tuple[str, ...],
    affine: tuple[str, ...] = ("weight", "bias"),
    final_norm: str = "model.norm",
    *,
    more: tuple[Axis, ...] = (),
    **traits: Any,
) -> Family:
    """Declares a decoder. ``modules``: axes of attention and feed-forward; ``norms``: one in front
    of both blocks, or one in front of each; ``affine``: the parameters that a norm has; ``more``:
    axes of anything else.
    """
    every = (*(LAYER + name for name in norms), final_norm)
    in_front = [(name,) for name in norms] if len(norms) > 1 else [(), ()]
    found = {
        "axes": (
            *linear("model.embed_tokens", "vocab", "hidden"),
            *modules,
            *(Axis(f"{path}.{part}", 0, "hidden") for path in every for part in affine),
            *llama.lm_head(),
            *more,
        ),
        "norms": tuple(f"{path}.weight" for path in every),
        "sublayers": {
            "attention_block": Sublayer("self_attn", 2, in_front[0]),
            "mlp_block": Sublayer("mlp", 1, in_front[1]),
        },
        "final_norm": f"{final_norm}.weight",
        "centred": True,
        "epsilon_attribute": "eps",
        # Channels of zeros would change the mean and the variance.
        "rigid": ("hidden",),
        "pad": _more_heads,
    }
    return llama.decoder(model_type, **{**found, **traits})


def _more_heads(config: Config, widths: Widths) -> dict[str, int]:
    """Pads KV heads until hidden size / heads is the width of a head again, if it divides."""
    fitting, rest = divmod(widths["hidden"], llama.head_dim(config) * widths["query"])
    return {} if rest or fitting < widths["attention"] else {"attention": fitting}


def _attention(out: str = "o_proj", flag: str = "") -> Iterator[Axis]:
    """Axes of q, k, v and the output projection, with biases always or where a flag is set."""
    for name in ("q_proj", "k_proj", "v_proj"):
        rows: Name = QUERY if name == "q_proj" else llama.HEAD
        yield from biased(LAYER + f"self_attn.{name}", rows, "hidden", flag)
    yield from biased(LAYER + f"self_attn.{out}", "hidden", QUERY, flag)


def _plain(up: str, down: str, flag: str = "") -> Iterator[Axis]:
    """Axes of a feed-forward block without a gate."""
    yield from biased(LAYER + f"mlp.{up}", FFN, "hidden", flag)
    yield from biased(LAYER + f"mlp.{down}", "hidden", FFN, flag)


_PARALLEL = Residual(parallel=True)
PHI = _decoder(
    "phi",
    (
        *_attention("dense"),
        *_plain("fc1", "fc2"),
        *(
            Axis(LAYER + f"self_attn.{x}_layernorm.{part}", 0, "head_dim", when="head_norms")
            for x in "qk"
            for part in ("weight", "bias")
        ),
    ),
    _ONE,
    final_norm="model.final_layernorm",
    more=(Axis("lm_head.bias", 0, "vocab"),),
    flags={"head_norms": lambda c, _: bool(c.get("qk_layernorm"))},
    # Of these norms the class takes hidden size / heads for the length.
    whole_heads=lambda c: bool(c.get("qk_layernorm")),
    epsilon_field="layer_norm_eps",
    residual=lambda _: Residual(
        ("self_attn", "resid_dropout"), ("mlp", "resid_dropout"), parallel=True
    ),
)
STARCODER2 = _decoder(
    "starcoder2",
    (*_attention(flag="use_bias"), *_plain("c_fc", "c_proj", "use_bias")),
    _TWO,
    epsilon_field="norm_epsilon",
    defaults={
        "starcoder2": {"use_bias": True, "num_key_value_heads": 2, "tie_word_embeddings": True}
    },
)
_COHERE: dict[str, Any] = {
    "affine": ("weight",),
    "epsilon_field": "layer_norm_eps",
    "epsilon_attribute": "variance_epsilon",
    "residual": lambda _: _PARALLEL,
}
_HEADS = ATTENTION + "/query.{i}"
COHERE = _decoder(
    "cohere",
    (
        *llama.attention(),
        *llama.gated(),
        # Within a head each, with a gain of its own for every head.
        *(
            Axis(LAYER + f"self_attn.{x}_norm.weight", dim, name, when="use_qk_norm")
            for x, heads in (("q", _HEADS), ("k", ATTENTION))
            for dim, name in enumerate((heads, "head_dim"))
        ),
    ),
    _ONE,
    defaults={"cohere": {"tie_word_embeddings": True}},
    **_COHERE,
)
COHERE2 = _decoder(
    "cohere2",
    (*llama.attention(), *llama.gated()),
    _ONE,
    defaults={"cohere2": {"tie_word_embeddings": True}},
    **_COHERE,
)
NEMOTRON = _decoder(
    "nemotron",
    (*llama.attention(), *_plain("up_proj", "down_proj", "mlp_bias")),
    _TWO,
    epsilon_field="norm_eps",
    gain_offset=1.0,
)


def _stablelm(name: str, *, parallel: bool) -> Family:
    """Both blocks read one norm where they are parallel."""

    def attributes(_config: Config, widths: Widths) -> ModuleSizes:
        kv, per_kv = widths["attention"], widths["query"]
        heads = {"num_heads": kv * per_kv, "num_key_value_heads": kv}
        return {"self_attn": {**heads, "num_key_value_groups": per_kv}}

    def applies(config: Config) -> bool:
        # Norms of queries and keys are a module for each head, which no axis shortens.
        return not config.get("qk_layernorm") and parallel is bool(
            config.get("use_parallel_residual")
        )

    return _decoder(
        "stablelm",
        (*llama.attention("use_qkv_bias", ""), *llama.gated()),
        _ONE if parallel else _TWO,
        name=name,
        applies=applies,
        attributes=attributes,
        epsilon_field="layer_norm_eps",
        residual=lambda _: Residual(("self_attn",), ("mlp", "dropout"), parallel=parallel),
        whole_heads=lambda _: True,
        defaults={"stablelm": {"num_key_value_heads": 32}},
    )


STABLELM = _stablelm("stablelm", parallel=False)
STABLELM_PARALLEL = _stablelm("stablelm_parallel", parallel=True)


def _olmo_attributes(config: Config, widths: Widths) -> ModuleSizes:
    # Without a gain, no tensor has a norm's length.
    lengths: ModuleSizes = {name: {"normalized_shape": [widths["hidden"]]} for name in _TWO}
    return {**llama.repeats(config, widths), **lengths}


OLMO = _decoder(
    "olmo",
    (*llama.attention(), *llama.gated()),
    _TWO,
    affine=(),
    epsilon_field="",
    attributes=_olmo_attributes,
    outside=lambda _, w: {"model.norm": {"normalized_shape": [w["hidden"]]}},
)
FAMILIES = (*(PHI, STARCODER2, STABLELM, STABLELM_PARALLEL, COHERE, COHERE2, NEMOTRON, OLMO),)

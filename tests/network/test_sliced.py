"""Sizes of sliced models, from configurations alone: published ones, and their formula."""

from __future__ import annotations

from typing import Any

import pytest

from effcompress.errors import CoverageError
from effcompress.network.axis_map import resolve_model
from effcompress.network.sliced import sliced_shape
from effcompress.registry import REGISTRY, Bound
from effcompress.spec import MeasureSpec, PruneSpec, RotateSpec, TargetSpec


def _llama(
    vocab: int, hidden: int, ffn: int, layers: int, heads: int, kv: int, tied: bool
) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "vocab_size": vocab,
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "tie_word_embeddings": tied,
    }


MODELS: dict[str, dict[str, Any]] = {
    "LLaMA-2-7B": _llama(32000, 4096, 11008, 32, 32, 32, False),
    "LLaMA-2-13B": _llama(32000, 5120, 13824, 40, 40, 40, False),
    "Llama-3-8B": _llama(128256, 4096, 14336, 32, 32, 8, False),
    "SmolLM2-135M": _llama(49152, 576, 1536, 30, 9, 3, True),
    "OPT-125M": {
        "model_type": "opt",
        "vocab_size": 50272,
        "hidden_size": 768,
        "word_embed_proj_dim": 768,
        "ffn_dim": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "max_position_embeddings": 2048,
    },
}
PUBLISHED = [
    ("LLaMA-2-7B", 3680, "split", 6_939_941_888),
    ("LLaMA-2-7B", 3272, "split", 6_105_940_928),
    ("LLaMA-2-7B", 3072, "split", 5_704_777_728),
    ("LLaMA-2-7B", 2864, "split", 5_292_914_432),
    ("LLaMA-2-13B", 4096, "split", 11_805_655_040),
    ("LLaMA-2-13B", 3840, "split", 11_004_805_120),
    ("LLaMA-2-13B", 3584, "split", 10_214_309_888),
    ("Llama-3-8B", 3272, "keep", 7_219_960_768),
    ("Llama-3-8B", 3072, "keep", 6_775_635_968),
    ("Llama-3-8B", 2864, "keep", 6_318_884_608),
    ("SmolLM2-135M", 456, "split", 147_489_984),
    ("SmolLM2-135M", 432, "split", 140_652_288),
    ("SmolLM2-135M", 400, "split", 131_641_088),
    ("SmolLM2-135M", 456, "keep", 125_671_104),
    ("SmolLM2-135M", 432, "keep", 119_999_232),
    ("SmolLM2-135M", 400, "keep", 112_542_464),
    ("OPT-125M", 608, "split", 147_250_880),
]


def prune(tie: Any, *, minimum: int = 1, **target: Any) -> PruneSpec:
    space = Bound(REGISTRY.get("space", "hidden"), {"round_to": 8, "minimum": minimum})
    return PruneSpec(
        target=TargetSpec(**target),
        space=(space,),
        rotate=RotateSpec(method=Bound(REGISTRY.get("rotation", "slicegpt")), tie=tie),
        measure=MeasureSpec(source="calibration"),
        schedule=Bound(REGISTRY.get("schedule", "once")),
    )


@pytest.mark.parametrize(("model", "width", "tie", "params"), PUBLISHED)
def test_sizes(model: str, width: int, tie: str, params: int) -> None:
    found = resolve_model(MODELS[model])
    made = sliced_shape(prune(tie, shape={"hidden": width}), found.config, found.axes)
    assert made.axes.count() == params
    # The widest stream whose size is not above it.
    for asked in (params, params + 1000):
        assert sliced_shape(prune(tie, params=asked), found.config, found.axes).width == width
    less = sliced_shape(prune(tie, params=params - 1), found.config, found.axes)
    assert less.width == width - 8


def test_the_last_layer_writes_all_channels() -> None:
    found = resolve_model(MODELS["SmolLM2-135M"])
    made = sliced_shape(prune("split", shape={"hidden": 456}), found.config, found.axes)
    shapes = made.axes.shapes
    assert shapes["model.layers.29.mlp_shortcut.weight"] == (576, 456)
    assert shapes["model.layers.29.mlp.down_proj.weight"] == (576, 1536)
    assert shapes["model.layers.28.mlp.down_proj.weight"] == (456, 1536)
    assert shapes["model.layers.29.attention_shortcut.weight"] == (456, 456)
    assert shapes["lm_head.weight"] == (49152, 576)
    assert shapes["model.embed_tokens.weight"] == (49152, 456)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"model_type": "gemma2"}, "norms lie between"),
        ({"model_type": "gemma3_text"}, "norms lie between"),
        ({"model_type": "olmo2"}, "norms lie between"),
        ({"model_type": "granite", "residual_multiplier": 0.22}, "is multiplied by a number"),
        ({"model_type": "hyperclovax"}, "norms lie between"),
        ({"model_type": "mixtral"}, "its experts return as many channels"),
        ({"model_type": "qwen3_moe", "num_experts": 8}, "its experts return as many channels"),
        (MODELS["OPT-125M"] | {"do_layer_norm_before": False}, "norms lie between"),
        (MODELS["OPT-125M"] | {"enable_bias": False}, "no place in"),
    ],
)
def test_families_whose_function_would_change(config: dict[str, Any], said: str) -> None:
    shape = config if "vocab_size" in config else MODELS["SmolLM2-135M"] | config
    found = resolve_model(shape)
    with pytest.raises(CoverageError, match=said):
        sliced_shape(prune("keep", shape={"hidden": 456}), found.config, found.axes)


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ({"shape": {"hidden": 460}}, "in steps of 8"),
        ({"shape": {"hidden": 584}}, "there are 576"),
        ({"shape": {"ffn": 8}}, "names the width of the stream"),
        ({"params": 1_000_000}, "the narrowest stream leaves"),
    ],
)
def test_targets_that_no_width_has(target: dict[str, Any], said: str) -> None:
    found = resolve_model(MODELS["SmolLM2-135M"])
    with pytest.raises(CoverageError) as error:
        sliced_shape(prune("keep", **target), found.config, found.axes)
    assert said in str(error.value)


def test_a_stream_is_not_narrower_than_the_space_says() -> None:
    found = resolve_model(MODELS["SmolLM2-135M"])
    least = sliced_shape(
        prune("keep", shape={"hidden": 456}), found.config, found.axes
    ).axes.count()
    made = sliced_shape(prune("keep", minimum=451, params=least), found.config, found.axes)
    assert made.width == 456
    for target in ({"params": least - 1}, {"shape": {"hidden": 448}}):
        with pytest.raises(CoverageError) as error:
            sliced_shape(prune("keep", minimum=451, **target), found.config, found.axes)
        wanted = (
            f"Name at least {least:,} or lower `minimum`" if "params" in target else "Name 456 to"
        )
        assert wanted in str(error.value)

"""Axes: prices from configurations equal those from tensors, and nothing is skipped quietly."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from effcompress import groups
from effcompress.errors import CoverageError
from effcompress.model.families import family_of
from effcompress.model.families.layernorm import NEOX
from effcompress.model.families.llama import LLAMA
from effcompress.types import axis_kind, axis_layer, in_layer
from tests.conftest import FAMILIES, SHAPES, shape, tiny

LLAMA_7B = {
    "model_type": "llama",
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "tie_word_embeddings": False,
}
LLAMA_3_8B = {
    **LLAMA_7B,
    "vocab_size": 128256,
    "intermediate_size": 14336,
    "num_key_value_heads": 8,
}


@pytest.mark.parametrize("biases", [False, True])
@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("model_type", FAMILIES)
def test_configuration_and_tensors_give_the_same_map(
    model_type: str, name: str, biases: bool
) -> None:
    more = {"model_type": model_type}
    if model_type != "mistral":  # it has no such flags
        more |= {"attention_bias": biases, "mlp_bias": biases}
    config, model = shape(name, **more), tiny(name, **more)
    family = family_of(config)
    from_tensors = groups.axes_of(model, family, config)
    from_config = groups.from_config(family, config)
    assert from_tensors.shapes == dict(from_config.shapes)
    assert from_tensors.widths == from_config.widths
    assert from_config.count() == sum(p.numel() for p in model.parameters())


def test_exact_counts_of_published_cuts() -> None:
    """LLM-Pruner's 20 % and 50 % LLaMA-7B and its 20 % Llama-3-8B, as logged by its users."""

    def cut(config: dict, layers: range, ffn: int, kv: int) -> int:
        axes = groups.from_config(family_of(config), config)
        wide = {f"ffn.{i}": axes.widths[f"ffn.{i}"] - ffn for i in layers}
        wide |= {f"attention.{i}": axes.widths[f"attention.{i}"] - kv for i in layers}
        return axes.count(wide)

    assert groups.from_config(LLAMA, LLAMA_7B).count() == 6_738_415_616
    assert cut(LLAMA_7B, range(4, 30), 2752, 8) == 5_422_977_024
    assert cut(LLAMA_7B, range(3, 31), 6605, 19) == 3_350_188_032
    assert groups.from_config(LLAMA, LLAMA_3_8B).count() == 8_030_261_248
    assert cut(LLAMA_3_8B, range(4, 30), 3584, 2) == 6_612_586_496


def test_exact_count_of_deepseek_v3() -> None:
    """The published one, which has the biases of the selection in it: one per expert and mixture,
    buffers here.
    """
    config = {"model_type": "deepseek_v3", "vocab_size": 129280, "hidden_size": 7168}
    config |= {"intermediate_size": 18432, "num_hidden_layers": 61, "num_attention_heads": 128}
    axes = groups.from_config(family_of(config), config)
    assert axes.count() + 58 * 256 == 671_026_419_200


def test_exact_count_of_torch_prunings_half_llama() -> None:
    """Torch-Pruning's Llama-3.1-8B at 50 %: half of the hidden and FFN channels and of the query
    heads of each group, all KV heads.
    """
    axes = groups.from_config(LLAMA, LLAMA_3_8B)
    half = {name: width // 2 for name, width in axes.widths.items() if width > 1}
    kept = {n: w for n, w in half.items() if n.split(".")[0] in ("hidden", "ffn", "query")}
    assert kept["hidden"] == 2048 and kept["query.0"] == 2
    assert axes.count(kept) == 2_337_409_024


def test_freed_is_the_difference_of_counts() -> None:
    axes = groups.from_config(LLAMA, shape("gqa_untied"))
    for name in ("hidden", "ffn.1", "attention.2"):
        fewer = axes.count({name: axes.widths[name] - 1})
        assert axes.freed(name, axes.widths) == axes.count() - fewer


def test_shapes_at_widths() -> None:
    axes = groups.from_config(LLAMA, shape("gqa_tied"))
    shapes = groups.shapes_at(axes, {"attention.1": 2, "hidden": 40})
    assert shapes["model.layers.1.self_attn.q_proj.weight"] == (2 * 2 * 8, 40)
    assert shapes["model.layers.0.self_attn.o_proj.weight"] == (40, 48)


def test_a_renamed_module_is_an_error_with_its_path() -> None:
    model = tiny("gqa_tied")
    layer = model.model.layers[1]
    layer.mlp.gate_projection = layer.mlp.gate_proj
    del layer.mlp.gate_proj
    with pytest.raises(CoverageError) as error:
        groups.axes_of(model, LLAMA, shape("gqa_tied"))
    assert "model.layers.1.mlp.gate_projection.weight" in str(error.value)
    assert "model.layers.1.mlp.gate_proj.weight" in str(error.value)


def test_sides_that_disagree_are_an_error() -> None:
    model = tiny("gqa_tied")
    model.model.layers[2].mlp.up_proj.weight = torch.nn.Parameter(torch.zeros(39, 48))
    with pytest.raises(CoverageError, match=r"39 units on axis 'ffn\.2'"):
        groups.axes_of(model, LLAMA, shape("gqa_tied"))


def test_a_position_without_a_unit_is_an_error() -> None:
    model = tiny("gqa_tied")
    model.model.layers[0].self_attn.k_proj.weight = torch.nn.Parameter(torch.zeros(23, 48))
    with pytest.raises(CoverageError, match="no multiple of the 8"):
        groups.axes_of(model, LLAMA, shape("gqa_tied"))


def test_a_missing_axis_is_an_error() -> None:
    model = tiny("gqa_tied")
    model.model.norm.weight = torch.nn.Parameter(torch.zeros(1, 48))
    with pytest.raises(CoverageError, match="2 dimensions"):
        groups.axes_of(model, LLAMA, shape("gqa_tied"))


def test_meta_device() -> None:
    config = AutoConfig.for_model(**LLAMA_3_8B)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert groups.axes_of(model, LLAMA, LLAMA_3_8B).count() == 8_030_261_248


def test_kind_and_layer_of_a_name() -> None:
    assert [axis_kind(name) for name in ("ffn.12", "hidden", "ffn.{i}")] == ["ffn", "hidden", "ffn"]
    assert [axis_layer(name) for name in ("ffn.12", "ffn.0", "hidden")] == [12, 0, None]
    assert (LLAMA.layers, NEOX.layers) == ("model.layers", "gpt_neox.layers")
    assert in_layer({"hidden": 8, "ffn.0": 3, "ffn.1": 5}, 1) == {"hidden": 8, "ffn": 5}


@pytest.mark.parametrize("model_type", FAMILIES)
def test_the_polynomial_counts_what_the_shapes_do(model_type: str) -> None:
    config = shape("gqa_tied", model_type=model_type)
    axes = groups.from_config(family_of(config), config)
    smaller = {n: w - 1 if w > 2 else w for n, w in axes.widths.items() if w > 1}
    wide = {**axes.widths, **smaller, "layer.1": 0}
    for param in axes.shapes:
        terms = axes.terms(param)
        total = sum(factor * math.prod(wide[name] for name in names) for names, factor in terms)
        assert total == axes.numel(param, wide)
        assert total or ".1." in param

"""Values of a configuration that transformers would refuse, or that nothing can be computed with,
are found from the text of its classes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.errors import StrictDataclassFieldValidationError
from transformers import AutoConfig
from transformers.activations import ACT2FN
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from effcompress.errors import SourceError
from effcompress.model.classes import (
    activations,
    attentions,
    causal_models,
    rotary_kinds,
    types_of,
)
from effcompress.model.values import _misfit, require_computable, require_values
from effcompress.recipe import load
from effcompress.runner.preflight import preflight
from tests.runner.toys import recipe

TYPES = ["llama", "qwen3", "gemma3_text", "olmoe", "gpt_oss", "deepseek_v3", "falcon_h1", "phi3"]
VALUES: list[Any] = [3, 0.5, -1.5, "x", True, None, [1], [0.5], {"a": 1}]


def refused(model_type: str, field: str, value: Any) -> bool:
    return _misfit(field, value, model_type) is not None


def refused_by_the_class(model_type: str, field: str, value: Any) -> bool:
    try:
        AutoConfig.for_model(model_type, **{field: value})
    except StrictDataclassFieldValidationError as error:
        return f"'{field}'" in str(error)
    except Exception:  # noqa: BLE001  what the class makes of it later is not asked here
        return False
    return False


@pytest.mark.parametrize("model_type", TYPES)
def test_types_are_those_of_the_class(model_type: str) -> None:
    stated = types_of(model_type)
    assert len(stated) > 15
    # Fields that the class itself replaces before it looks at them.
    own = {"dtype", "torch_dtype", "rope_parameters", "layer_types", "model_type"}
    for field in sorted(stated.keys() - own):
        for value in VALUES:
            ours, theirs = (
                refused(model_type, field, value),
                refused_by_the_class(model_type, field, value),
            )
            assert ours <= theirs, (field, value, stated[field])
            if field in ("hidden_size", "rms_norm_eps", "hidden_act", "use_cache", "head_dim"):
                assert ours == theirs, (field, value, stated[field])


@pytest.mark.parametrize("model_type", sorted(causal_models()))
def test_no_class_is_refused_its_own_values(model_type: str) -> None:
    try:
        config = AutoConfig.for_model(model_type).to_dict()
    except Exception as error:  # noqa: BLE001  needs a library, or a value without a default
        pytest.skip(f"no configuration without arguments: {error}")
    require_computable(config, "config.json")


def test_names_are_those_of_the_library() -> None:
    assert set(activations()) == set(ACT2FN)
    assert set(attentions()) >= {"eager", *ALL_ATTENTION_FUNCTIONS.valid_keys()}
    assert set(rotary_kinds()) == {"default", *ROPE_INIT_FUNCTIONS}
    assert rotary_kinds()["linear"] == {"rope_type", "factor"}
    assert "low_freq_factor" in rotary_kinds()["llama3"]


REFUSED: dict[str, list[Any]] = {
    "hidden_size": [2.5, "x", True, None],
    "rms_norm_eps": ["x", 1],
    "initializer_range": [-0.5, 2.0],
    "hidden_act": ["slu", 3],
    "attention_dropout": [2, -0.1],
    "attn_implementation": ["bogus", 3],
    "dtype": ["bogus", "int8"],
    "rope_theta": ["abc", -5, 0, True],
    "partial_rotary_factor": [7, 0, "x"],
    "quantization_config": [{"a": 1}],
    "num_labels": ["x"],
    "id2label": [3],
    "rope_scaling": [1, {"rope_type": "bogus"}, {"type": "linear"}],
    "rope_parameters": [
        *(
            1,
            "x",
            {"rope_type": 3},
            {"rope_type": "linear"},
            {"rope_type": "llama3", "factor": 2.0},
        ),
        {"rope_type": "linear", "factor": -1.0},
        {"full_attention": {"rope_type": "bogus"}},
    ],
}


@pytest.mark.parametrize(
    ("field", "value"), [(field, value) for field, some in REFUSED.items() for value in some]
)
def test_what_no_model_computes_with(field: str, value: Any) -> None:
    with pytest.raises(SourceError) as found:
        require_values({field: value}, "llama")
    assert found.value.where == f"model.shape.{field}" and found.value.fix


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("torch_dtype", "float99", "no type of numbers 'float99'"),
        ("dtype", "fp16", "no type of numbers 'fp16'"),
        ("rope_scaling", {"type": "su"}, "no rotary positions 'su' for llama"),
        ("rope_scaling", {"type": "mrope", "mrope_section": [1]}, "no rotary positions 'mrope'"),
        ("rope_scaling", "linear", "no mapping"),
        ("rope_parameters", {"rope_type": "default", "rope_theta": "1e4"}, "rope_theta: '1e4' is"),
        ("rope_parameters", {"rope_type": "default", "rope_theta": 0}, "rope_theta: 0 is"),
        ("rope_scaling", {"type": "linear", "factor": -4.0}, "factor: -4.0 is"),
        ("rope_parameters", {"full_attention": {"rope_type": "x"}}, "no rotary positions 'x'"),
        ("rms_norm_eps", -1.0, "no epsilon"),
    ],
)
def test_what_a_file_may_not_state(field: str, value: Any, words: str) -> None:
    """Else transformers fail with a KeyError, or the first loss is not finite."""
    with pytest.raises(SourceError, match=words) as found:
        require_computable({"model_type": "llama", field: value}, "config.json")
    assert found.value.fix


@pytest.mark.parametrize(
    ("model_type", "field", "value"),
    [
        ("phi3", "rope_scaling", {"type": "su", "long_factor": [1.0], "short_factor": [1.0]}),
        ("llama", "rope_scaling", {"type": "linear", "factor": 2}),
        ("llama", "dtype", "float8_e4m3fn"),
        ("llama", "torch_dtype", "torch.bfloat16"),
        ("llama", "rms_norm_eps", 0.0),
        ("gpt_neox", "layer_norm_eps", 1e-5),
    ],
)
def test_what_a_file_may_state(model_type: str, field: str, value: Any) -> None:
    require_computable({"model_type": model_type, field: value}, "config.json")


@pytest.mark.parametrize(
    "shape",
    [
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0}},
        {"rope_parameters": {"rope_type": "yarn", "factor": 2.0}},
        {"rope_scaling": None, "attention_dropout": 0.1, "dtype": "torch.bfloat16"},
        {"attn_implementation": "kernels-community/flash-attn", "hidden_act": "gelu_new"},
        {"num_labels": 3, "partial_rotary_factor": 0.5, "rope_theta": 500000},
        {"eos_token_id": [1, 2], "head_dim": None},
    ],
)
def test_what_models_compute_with(shape: dict[str, Any]) -> None:
    require_values(shape, "llama")


@pytest.mark.parametrize(
    ("field", "value"),
    [("hidden_act", "slu"), ("attention_dropout", 2.0), ("rope_theta", -1.0), ("head_dim", "x")],
)
def test_a_configuration_file_is_held_to_the_same(field: str, value: Any) -> None:
    with pytest.raises(SourceError, match=field) as found:
        require_computable({"model_type": "llama", field: value}, "model: config.json")
    assert found.value.where == "model: config.json"


def test_the_line_is_named_before_anything_is_built(tmp_path: Path) -> None:
    path = recipe(tmp_path)
    text = path.read_text().replace("head_dim: 8,", "head_dim: 8,\n     rms_norm_eps: tiny,")
    path.write_text(text)
    line = next(n for n, said in enumerate(text.splitlines(), 1) if "rms_norm_eps" in said)
    with pytest.raises(SourceError, match=f"toy.yaml:{line}: model.shape.rms_norm_eps: 'tiny'"):
        preflight(load(path), offline=True)

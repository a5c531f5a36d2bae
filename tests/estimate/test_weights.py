"""What loading would refuse of weights is known from the headers of their files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from effcompress import load_recipe
from effcompress.errors import SourceError
from effcompress.estimate import weights
from effcompress.estimate.weights import require_fitting
from effcompress.model.classes import renames
from effcompress.model.tokenizer import ByteTokenizer
from effcompress.runner.preflight import preflight
from tests.conftest import FAMILIES, shape, tiny
from tests.contract.zoo import config_of, sources
from tests.model.test_suitability import multimodal
from tests.runner.toys import recipe

UP = "model.layers.1.mlp.up_proj.weight"
WORDS = 258


def folder_of(model: Any, path: Path) -> Path:
    model.save_pretrained(path)
    ByteTokenizer().save(path)
    return path


def loaded(folder: Path) -> Any:
    text = recipe(folder.parent).read_text()
    before, after = text.partition("model:")[0], text.partition("data:")[2]
    (folder.parent / "toy.yaml").write_text(f"{before}model: {{folder: {folder}}}\ndata:{after}")
    return load_recipe(folder.parent / "toy.yaml")


@pytest.mark.parametrize(
    "fields",
    [
        *(shape("gqa_tied", model_type=kind, vocab_size=WORDS) for kind in FAMILIES),
        *(shape("gqa_untied", model_type=kind, vocab_size=WORDS) for kind in FAMILIES),
        *(config_of(kind) for kind in sources()),
    ],
    ids=lambda fields: f"{fields['model_type']}-{fields.get('tie_word_embeddings')}",
)
def test_what_transformers_write_fits(tmp_path: Path, fields: dict[str, Any]) -> None:
    with torch.random.fork_rng():
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**fields))
    require_fitting(loaded(folder_of(model, tmp_path / "model")))


def without(tensors: dict[str, Tensor]) -> None:
    del tensors[UP]


def layer(tensors: dict[str, Tensor]) -> None:
    tensors[UP.replace("1.mlp", "7.mlp")] = tensors[UP].clone()


def codes(tensors: dict[str, Tensor]) -> None:
    tensors[UP] = tensors[UP].to(torch.int8)


def wide(tensors: dict[str, Tensor]) -> None:
    tensors[UP] = torch.zeros(41, 48)


def empty(tensors: dict[str, Tensor]) -> None:
    tensors[UP] = torch.zeros(0, 48)


def compiled(tensors: dict[str, Tensor]) -> None:
    for name in [*tensors]:
        tensors[f"_orig_mod.{name}"] = tensors.pop(name)


def headless(tensors: dict[str, Tensor]) -> None:
    for name in [*tensors]:
        tensors[name.removeprefix("model.")] = tensors.pop(name)
    tensors.pop("lm_head.weight", None)


def rewarding(tensors: dict[str, Tensor]) -> None:
    tensors["score.weight"] = tensors.pop("lm_head.weight")[:1].clone()


def valued(tensors: dict[str, Tensor]) -> None:
    tensors["v_head.summary.weight"] = torch.ones(1, 48)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (headless, "lm_head.weight is missing"),
        (rewarding, "lm_head.weight is missing"),
        (valued, "v_head.summary.weight is stored, and config.json has no place for it"),
    ],
)
def test_models_without_a_head_or_with_that_of_another_task(
    tmp_path: Path, change: Callable[[dict[str, Tensor]], None], words: str
) -> None:
    folder = folder_of(tiny("gqa_untied", vocab_size=WORDS), tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    assert words in refused(folder)


def test_a_tied_model_without_a_head_has_one(tmp_path: Path) -> None:
    """Its class adds the prefix to the names, and ties the head."""
    folder = folder_of(tiny(vocab_size=WORDS), tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    headless(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    preflight(loaded(folder), offline=False)


def test_files_without_tensors(tmp_path: Path) -> None:
    folder = folder_of(tiny(vocab_size=WORDS), tmp_path / "model")
    save_file({}, folder / "model.safetensors", {"format": "pt"})
    assert "holds no tensors" in refused(folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda name: name.replace("model.layers", "model.blocks"), "own"),
        (lambda name: "" if "layers.1.mlp.up_proj" in name else name, "up_proj.weight is missing"),
    ],
)
def test_the_text_model_of_a_multimodal_one(
    tmp_path: Path, change: Callable[[str], str], words: str
) -> None:
    folder = tmp_path / "model"
    multimodal("llava", folder)
    ByteTokenizer().save(folder)
    preflight(loaded(folder), offline=False)
    tensors = {change(name): t for name, t in load_file(folder / "model.safetensors").items()}
    tensors.pop("", None)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    said = refused(folder)
    assert words in said and ("get_text_config()" in said) == (words == "own")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (without, f"{UP} is missing"),
        (layer, "model.layers.7.mlp.up_proj.weight is stored, and config.json has no place for it"),
        (codes, f"{UP} is stored as I8, the code of a quantised weight"),
        (wide, f"{UP} is stored as 41 x 48, and config.json makes it 40 x 48"),
        (empty, f"{UP} is stored as 0 x 48"),
        (compiled, "every weight begins with '_orig_mod.'"),
    ],
)
def test_weights_that_do_not_fit(
    tmp_path: Path, change: Callable[[dict[str, Tensor]], None], words: str
) -> None:
    folder = folder_of(tiny(vocab_size=WORDS), tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    said = refused(folder)
    assert words in said and "toy.yaml:2: " in said


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"num_hidden_layers": 2}, "model.layers.2.input_layernorm.weight is stored, and"),
        ({"num_hidden_layers": 4}, "model.layers.3.self_attn.q_proj.weight is missing"),
        ({"intermediate_size": 41}, "is stored as 40 x 48, and config.json makes it 41 x 48"),
        ({"num_key_value_heads": 2}, "and 5 more"),
        ({"attention_bias": True}, "q_proj.bias is missing"),
        ({"tie_word_embeddings": False}, "lm_head.weight is missing"),
        ({"vocab_size": 300}, "is stored as 258 x 48, and config.json makes it 300 x 48"),
    ],
)
def test_a_configuration_that_does_not_fit(
    tmp_path: Path, fields: dict[str, Any], words: str
) -> None:
    folder = folder_of(tiny(vocab_size=WORDS), tmp_path / "model")
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))
    assert words in refused(folder)


def refused(folder: Path) -> str:
    with pytest.raises(SourceError) as caught:
        preflight(loaded(folder), offline=False)
    assert caught.value.fix and len(str(caught.value).splitlines()) <= 3
    return str(caught.value)


def test_layers_that_the_class_of_the_text_model_renames() -> None:
    assert renames("nemotron_h", "backbone.") and not renames("llama", "backbone.")
    assert not renames("nemotron_h", "blocks.")


def test_a_text_model_whose_layers_are_renamed_is_taken(tmp_path: Path, monkeypatch: Any) -> None:
    """As that of Nemotron H Omni, whose class of text reads `backbone`."""
    folder = tmp_path / "model"
    multimodal("llava", folder)
    ByteTokenizer().save(folder)
    tensors = load_file(folder / "model.safetensors")
    tensors = {name.replace("model.layers", "model.backbone"): t for name, t in tensors.items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    assert "under names of its own" in refused(folder)
    monkeypatch.setattr(weights, "renames", lambda kind, part: part == "backbone.")
    preflight(loaded(folder), offline=False)

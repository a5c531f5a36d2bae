"""What transformers does not take from a tokenizer's files, ``check`` refuses; no more."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from effcompress import load_recipe
from effcompress.errors import RecipeError, SourceError
from effcompress.model.source import config_of, tokenizer_packages, tokens_per_byte
from effcompress.runner.preflight import require_packages
from effcompress.spec import ModelSpec
from tests.runner.toys import recipe as toy

TEXT, TAGGED = "<|eos|>", {"__type": "AddedToken", "content": "<|eos|>", "lstrip": False}
UNTAGGED = {"content": "<|eos|>", "lstrip": False}
CONFIG, MAP = "tokenizer_config.json", "special_tokens_map.json"
TAKEN: list[tuple[str, str, Any]] = [
    *((CONFIG, "eos_token", value) for value in (TEXT, None, TAGGED, "")),
    *((MAP, "eos_token", value) for value in (TEXT, None, TAGGED, UNTAGGED)),
    *((CONFIG, "extra_special_tokens", v) for v in (None, [], ["<a>"], {"image": "<a>"})),
    *((CONFIG, "additional_special_tokens", value) for value in (None, [], [TEXT], [TAGGED])),
    *((CONFIG, "model_max_length", value) for value in (None, 5, 0, 1e30)),
    *((CONFIG, "added_tokens_decoder", value) for value in ({}, {"3": {"content": "<q>"}})),
    *((CONFIG, "tokenizer_class", value) for value in (None, "Unheard", "GPT2TokenizerFast")),
    (CONFIG, "padding_side", "left"),
    (CONFIG, "auto_map", {}),
    ("added_tokens.json", "<z>", 470),
]
REFUSED: list[tuple[str, str, Any]] = [
    *((CONFIG, "eos_token", value) for value in (2, 1.5, True, [TEXT], UNTAGGED)),
    *((CONFIG, "pad_token", value) for value in ({**TAGGED, "lstrip": "x"}, {"x": 1})),
    *((MAP, "bos_token", value) for value in (5, [TEXT], {"content": 3})),
    *((CONFIG, "extra_special_tokens", value) for value in (5, "abc", [5], {"image": 3}, False)),
    *((CONFIG, "additional_special_tokens", value) for value in ("abc", [UNTAGGED], [None])),
    *((CONFIG, "model_max_length", value) for value in ("many", [1])),
    *((CONFIG, "padding_side", value) for value in ("middle", None, 5)),
    (CONFIG, "truncation_side", "up"),
    *((CONFIG, "added_tokens_decoder", v) for v in (None, [], {"x": UNTAGGED}, {"3": "<q>"})),
    (CONFIG, "added_tokens_decoder", {"3": {"content": "<q>", "lstrip": None}}),
    *((CONFIG, "tokenizer_class", value) for value in (5, True, [])),
    (CONFIG, "model_input_names", 5),
    (CONFIG, "split_special_tokens", "x"),
    *((CONFIG, "auto_map", value) for value in ("x", [], None)),
    ("added_tokens.json", "<z>", "x"),
]


@pytest.fixture
def folder(hf_folder: Path) -> Path:
    return hf_folder


def with_value(folder: Path, file: str, key: str, value: Any) -> ModelSpec:
    path = folder / file
    before = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**before, key: value}))
    return ModelSpec(folder=folder, random=True)  # its weights do not matter here


def read(folder: Path) -> None:
    AutoTokenizer.from_pretrained(folder, local_files_only=True)("a b")


@pytest.mark.parametrize(("file", "key", "value"), TAKEN)
def test_what_transformers_takes(folder: Path, file: str, key: str, value: Any) -> None:
    spec = with_value(folder, file, key, value)
    read(folder)
    assert config_of(spec)


@pytest.mark.parametrize(("file", "key", "value"), REFUSED)
def test_what_it_does_not(folder: Path, file: str, key: str, value: Any) -> None:
    spec = with_value(folder, file, key, value)
    with pytest.raises((TypeError, ValueError, AttributeError, LookupError)):
        read(folder)
    with pytest.raises(SourceError) as caught:
        config_of(spec)
    said = str(caught.value)
    assert str(folder) in said and f"{file}: " in said and key in said
    assert caught.value.fix and len(said.splitlines()) <= 3


def changed(folder: Path, change: Callable[[dict[str, Any]], Any]) -> ModelSpec:
    path = folder / "tokenizer.json"
    plan = json.loads(path.read_text())
    change(plan)
    path.write_text(json.dumps(plan))
    return ModelSpec(folder=folder, random=True)


def template(*listed: str) -> dict[str, Any]:
    parts = [{"SpecialToken": {"id": "<q>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    known = {name: {"id": name, "ids": [256], "tokens": [name]} for name in listed}
    return {
        "type": "TemplateProcessing",
        "single": parts,
        "pair": [*parts, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": known,
    }


def test_two_tokens_with_one_id(folder: Path) -> None:
    """The library takes either; an export writes one of them down, and its proof fails."""
    spec = changed(folder, lambda plan: plan["model"]["vocab"].update(zzz=5))
    with pytest.raises(SourceError, match=r"(?s)tokenizer.json: .*'zzz' have the same id, 5"):
        config_of(spec)


@pytest.mark.parametrize("within", [False, True])
def test_a_token_in_front_of_every_text_that_is_not_listed(folder: Path, within: bool) -> None:
    """The library panics, which no `except Exception` catches."""
    last = template()
    last = {"type": "Sequence", "processors": [last]} if within else last
    spec = changed(folder, lambda plan: plan.update(post_processor=last))
    with pytest.raises(SourceError, match=r"adds '<q>', which its special_tokens do not list"):
        config_of(spec)
    with pytest.raises(SourceError, match="cannot be used"):
        tokens_per_byte(spec, ["a b"])
    assert config_of(changed(folder, lambda plan: plan.update(post_processor=template("<q>"))))


def test_a_template_that_is_no_text(folder: Path) -> None:
    (folder / "chat_template.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(SourceError, match=r"chat_template\.jinja: no UTF-8 text"):
        config_of(ModelSpec(folder=folder, random=True))


def test_code_of_the_tokenizer_reads_its_files_as_it_likes(folder: Path) -> None:
    code = {"AutoTokenizer": ["own.Tokenizer", None]}
    with_value(folder, CONFIG, "auto_map", code)
    assert config_of(with_value(folder, CONFIG, "eos_token", 7))


def test_a_configuration_alone_is_no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    spec = ModelSpec(folder=folder)
    with pytest.raises(SourceError, match="there is no tokenizer in this folder"):
        tokenizer_packages(spec)
    with_value(folder, CONFIG, "tokenizer_class", "ByT5Tokenizer")
    assert tokenizer_packages(spec) == ()


def test_the_package_of_a_class(folder: Path, tmp_path: Path) -> None:
    with_value(folder, CONFIG, "tokenizer_class", "MistralCommonBackend")
    loaded = load_recipe(toy(tmp_path), [f"model={{folder: {folder}}}"])
    with pytest.raises(RecipeError, match=r"(?s)mistral_common is not installed.*mistral-common"):
        require_packages(loaded)

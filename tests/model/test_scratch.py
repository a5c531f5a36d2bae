"""An architecture without its weights: random weights in the shape of a source."""

from __future__ import annotations

import json

import pytest
import torch

from effcompress.errors import SourceError
from effcompress.model import hub
from effcompress.model.load import load
from effcompress.model.source import config_of, items, label_of
from effcompress.model.tokenizer import HFTokenizer
from effcompress.spec import ModelSpec

UP = "model.layers.0.mlp.up_proj.weight"


def weights(module) -> dict[str, torch.Tensor]:
    return dict(module.state_dict())


def same(one, other) -> bool:
    pairs = zip(weights(one).values(), weights(other).values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_a_source_gives_all_but_its_weights(hf_folder):
    source = load(ModelSpec(folder=hf_folder))
    spec = ModelSpec(folder=hf_folder, random=True)
    one, again, other = load(spec, seed=1), load(spec, seed=1), load(spec, seed=2)
    assert same(one.module, again.module)
    assert not same(one.module, other.module) and not same(one.module, source.module)
    shapes = {name: tensor.shape for name, tensor in weights(source.module).items()}
    assert {name: tensor.shape for name, tensor in weights(one.module).items()} == shapes
    assert all(p.eq(1).all() for n, p in one.module.named_parameters() if "norm" in n)
    assert one.source == f"random weights, shape of {hf_folder}, seed 1"
    assert isinstance(one.tokenizer, HFTokenizer)
    assert one.tokenizer.fingerprint == source.tokenizer.fingerprint
    assert one.config["bos_token_id"] == source.config["bos_token_id"]


def test_shape_scales_the_source(shelf, tmp_path):
    spec = shelf.spec(random=True, shape={"intermediate_size": 24, "rope_theta": 5e5})
    assert config_of(spec, tmp_path) is None, "a few sizes do not make a model"
    loaded = load(spec, tmp_path, seed=0)
    assert weights(loaded.module)[UP].shape == (24, 32)
    assert loaded.config["rope_parameters"]["rope_theta"] == 5e5
    assert loaded.tokenizer.encode(["th"]) == [[258]], "the source's own tokenizer"
    priced = config_of(spec, tmp_path)
    assert priced is not None and priced["intermediate_size"] == 24
    assert label_of(spec).endswith("with intermediate_size 24, rope_theta 500000.0")
    (item,) = items(spec, tmp_path)
    assert item.cached and item.name == f"tiny-model==1.0/{spec.member}"
    assert weights(load(shelf.spec(), tmp_path).module)[UP].shape == (64, 32)
    assert shelf.asked == 1, "one conversion serves both"


def test_a_whole_shape_prices_a_source_that_is_not_here(shelf, tmp_path, tiny_shape):
    spec = shelf.spec(random=True, shape=tiny_shape)
    assert config_of(spec, tmp_path) == tiny_shape


def test_a_folder_needs_no_weights(hf_folder):
    (hf_folder / "model.safetensors").unlink()
    spec = ModelSpec(folder=hf_folder, random=True)
    assert [item.cached for item in items(spec)] == [True]
    load(spec)
    (hf_folder / "config.json").unlink()
    with pytest.raises(SourceError, match=r"config\.json is missing"):
        load(spec)


def test_no_weights_are_fetched_from_the_hub(monkeypatch, hf_folder, tmp_path):
    asked = []

    def download(repo, revision, **how):
        asked.append(how["weights"])
        return hf_folder

    monkeypatch.setattr(hub, "download", download)
    monkeypatch.setattr(hub, "cached_file", lambda repo, revision, name: hf_folder / name)
    loaded = load(ModelSpec(hub="a/b", random=True, shape={"num_hidden_layers": 1}), tmp_path)
    assert asked == [False] and UP in weights(loaded.module)
    assert UP.replace("0", "1") not in weights(loaded.module)


def test_other_names_of_a_size(write_model, tmp_path):
    small = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32}
    folder = write_model(tmp_path / "gpt2", model_type="gpt2", **small)
    spec = ModelSpec(folder=folder, random=True, shape={"hidden_size": 8, "num_hidden_layers": 1})
    config = config_of(spec) or {}
    assert (config["n_embd"], config["n_layer"]) == (8, 1)
    assert weights(load(spec).module)["transformer.wte.weight"].shape == (258, 8)


def test_lists_with_one_entry_per_layer(write_model, tmp_path):
    folder = write_model(tmp_path / "qwen3", model_type="qwen3", head_dim=8)
    assert len(json.loads((folder / "config.json").read_text())["layer_types"]) == 2
    fewer = load(ModelSpec(folder=folder, random=True, shape={"num_hidden_layers": 1}))
    assert UP.replace("0", "1") not in weights(fewer.module)
    with pytest.raises(SourceError, match=r"2 entries in layer_types.*\n.*write `layer_types`"):
        load(ModelSpec(folder=folder, random=True, shape={"num_hidden_layers": 3}))


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ({"intermediate_sice": 24}, "did you mean 'intermediate_size'"),
        ({"model_type": "mistral"}, "cannot make it another class"),
        ({"hidden_size": 30}, "cannot build|multiple"),
        ({"vocab_size": 100}, "vocabulary has 100 rows"),
    ],
)
def test_a_shape_that_cannot_be_meant(hf_folder, shape, words):
    with pytest.raises(SourceError, match=words):
        load(ModelSpec(folder=hf_folder, random=True, shape=shape))

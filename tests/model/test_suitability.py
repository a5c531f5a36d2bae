"""What cannot be pruned is refused by the text of a folder's files, before any weight is read."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from effcompress.errors import SourceError
from effcompress.model import integrity
from effcompress.model.classes import causal_models, fields_of, has_position_table
from effcompress.model.families import FAMILIES
from effcompress.model.load import load
from effcompress.model.source import config_of, outer_of
from effcompress.model.suitability import EXTRACT, positions_of, require_causal, text_of
from effcompress.network.axis_map import resolve_model
from effcompress.spec import ModelSpec


def refused(folder: Path | None, *words: str, **keys: Any) -> SourceError:
    """The error of ``check``, which is that of loading, too; three lines at most, and fast."""
    spec = ModelSpec(**{"folder": folder, "tokenizer": "bytes", **keys})
    started = time.process_time()
    with pytest.raises(SourceError) as caught:
        config_of(spec)
    assert time.process_time() - started < 3
    text = str(caught.value)
    assert all(word in text for word in words), text
    assert len(text.splitlines()) <= 3
    with pytest.raises(SourceError):
        load(spec)
    return caught.value


def state(folder: Path, **fields: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "bitsandbytes, 8 bit"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes, 4 bit"),
        ({"quant_method": "gptq", "bits": 4}, "gptq"),
        ({"format": "nvfp4"}, "nvfp4"),
        ("broken", "in an unknown way"),
        ({}, "in an unknown way"),
    ],
)
def test_quantised_weights(hf_folder, fields, words):
    state(hf_folder, quantization_config=fields)
    assert "fp8" in str(refused(hf_folder, words).fix)


@pytest.mark.parametrize("name", ["quantize_config.json", "hf_quant_config.json"])
def test_weights_quantised_by_a_file_beside_them(hf_folder, name):
    (hf_folder / name).write_text("{}")
    refused(hf_folder, "quantised", name)


def test_fp8_becomes_plain_numbers(hf_folder):
    file = hf_folder / "model.safetensors"
    before = load_file(file)
    scale, after = torch.tensor([[0.01]]), dict(before)
    for name in [n for n in before if "_proj" in n]:
        after[name] = (before[name] / scale).to(torch.float8_e4m3fn)
        after[f"{name}_scale_inv"] = scale.clone()
    save_file(after, file, {"format": "pt"})
    how = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    state(hf_folder, quantization_config=how)
    spec = ModelSpec(folder=hf_folder, tokenizer="bytes")
    assert (config_of(spec) or {})["quantization_config"] == how
    for name, p in load(spec).module.named_parameters():
        torch.testing.assert_close(p, before[name], rtol=0.07, atol=1e-3)


@pytest.mark.parametrize("whole", [True, False])
def test_an_adapter_is_no_model(hf_folder, whole):
    text = json.dumps({"base_model_name_or_path": "someone/base"})
    (hf_folder / "adapter_config.json").write_text(text)
    if not whole:
        (hf_folder / "config.json").unlink()
    refused(hf_folder, "PEFT adapter (of someone/base)", "merge_and_unload")
    refused(hf_folder, "PEFT adapter", random=True)


@pytest.mark.parametrize(
    ("key", "kind", "fix"),
    [
        ("text_config", "mllama_text_model", "no language model of 'mllama_text_model' by itself"),
        ("llm_config", "llama", "get_text_config"),
    ],
)
def test_a_text_model_that_is_not_declared(hf_folder, key, kind, fix):
    state(hf_folder, model_type="llava", architectures=["Llava"], **{key: {"model_type": kind}})
    refused(hf_folder, "'llava' (Llava) wraps", f"`{key}`: {kind}", fix)
    refused(hf_folder, "'llava' (Llava) wraps", random=True)


SMALL = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 2}
TEXT = {"model_type": "llama", "vocab_size": 258, "pad_token_id": 0, **HEADS, **SMALL}
SEEN = {"image_size": 28, "patch_size": 14, "projection_dim": 16, **HEADS, **SMALL}
GEMMA = {**TEXT, "model_type": "gemma3_text", "num_key_value_heads": 1, "head_dim": 8}
MULTIMODAL: dict[str, tuple[str, dict[str, Any]]] = {
    "llava": (
        "Llava",
        {"text_config": TEXT, "vision_config": {"model_type": "clip_vision_model", **SEEN}},
    ),
    "gemma3": (
        "Gemma3",
        {
            **{"text_config": GEMMA, "mm_tokens_per_image": 4},
            "vision_config": {"model_type": "siglip_vision_model", **SEEN},
        },
    ),
    "idefics3": (
        "Idefics3",
        {"text_config": TEXT, "vision_config": SEEN, "pad_token_id": 0}
        | {"tie_word_embeddings": False},
    ),
}
"""Three ways of naming the weights of the text model."""


def multimodal(kind: str, folder: Path) -> Any:
    name, fields = MULTIMODAL[kind]
    config = getattr(transformers, f"{name}Config")(**copy.deepcopy(fields))
    torch.manual_seed(0)
    made = getattr(transformers, f"{name}ForConditionalGeneration")(config).eval()
    made.save_pretrained(folder)
    return made


@pytest.mark.parametrize("kind", MULTIMODAL)
def test_the_text_model_of_a_multimodal_one_is_the_source(kind: str, tmp_path: Path) -> None:
    """It is loaded as the whole one computes it, without images."""
    both, spec = multimodal(kind, tmp_path), ModelSpec(folder=tmp_path, tokenizer="bytes")
    loaded, known = load(spec), config_of(spec)
    text = MULTIMODAL[kind][1]["text_config"]
    assert known is not None and known["model_type"] == text["model_type"]
    assert outer_of(spec) == kind and loaded.source.startswith("the text model of ")
    assert resolve_model(known).axes.shapes == resolve_model(loaded.config).axes.shapes
    ids = torch.arange(3, 15)[None]
    with torch.no_grad():
        torch.testing.assert_close(loaded.module.eval()(ids).logits, both(input_ids=ids).logits)
    drawn = load(ModelSpec(folder=tmp_path, tokenizer="bytes", random=True)).module
    assert type(drawn) is type(loaded.module)


def test_weights_of_the_text_model_that_its_configuration_lacks(tmp_path: Path) -> None:
    multimodal("llava", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["text_config"]["num_hidden_layers"] = 1
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(SourceError, match=r"unexpected keys model\.layers\.1"):
        load(ModelSpec(folder=tmp_path, tokenizer="bytes"))


def test_what_a_text_configuration_leaves_out_are_the_classes_defaults() -> None:
    """LLaVA-1.5's states little more than its class."""
    stated = {"model_type": "llama", "vocab_size": 32064, "rms_norm_eps": 1e-5}
    found = text_of({"model_type": "llava", "text_config": stated})
    assert found is not None and resolve_model(found).axes.count() == 6_738_939_904
    assert text_of({"model_type": "llama"}) is None
    assert text_of({"model_type": "unheard_of", "text_config": stated}) is None


def test_the_text_model_is_got_as_the_error_says(tmp_path):
    wrapped = multimodal("llava", tmp_path / "both")
    places = {"FOLDER": str(tmp_path / "both"), "TEXT": str(tmp_path / "text")}
    # exec: what a user would paste
    exec(EXTRACT, {**vars_of(transformers), **places})
    text: Any = load(ModelSpec(folder=tmp_path / "text", tokenizer="bytes")).module
    assert torch.equal(text.lm_head.weight, wrapped.lm_head.weight)
    before = wrapped.model.language_model.layers[0].mlp.up_proj.weight
    assert torch.equal(text.model.layers[0].mlp.up_proj.weight, before)


def test_a_text_model_with_its_own_head_is_got_as_the_error_says(tmp_path):
    """BLIP-2 holds a whole causal language model: nothing has to be put together."""
    text = {"model_type": "opt", "vocab_size": 258, "hidden_size": 16, "ffn_dim": 16}
    text |= {"num_hidden_layers": 2, **HEADS, "word_embed_proj_dim": 16}
    seen = {k: v for k, v in SEEN.items() if k != "projection_dim"}
    asks = {**SMALL, **HEADS, "encoder_hidden_size": 16}
    config = transformers.Blip2Config(text_config=text, vision_config=seen, qformer_config=asks)
    transformers.Blip2ForConditionalGeneration(config).save_pretrained(tmp_path / "both")
    said = refused(tmp_path / "both", "'blip-2'", "opt) that is not found inside it")
    code = str(said.fix).partition("folder: ")[2]
    places = {"FOLDER": str(tmp_path / "both"), "TEXT": str(tmp_path / "text")}
    exec(code, {**vars_of(transformers), **places})
    load(ModelSpec(folder=tmp_path / "text", tokenizer="bytes"))


def vars_of(library: Any) -> dict[str, Any]:
    names = ("AutoModelForCausalLM", "AutoModelForImageTextToText")
    return {name: getattr(library, name) for name in names}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"model_type": "bert", "architectures": ["BertForMaskedLM"]}, "'bert' (BertForMaskedLM)"),
        ({"model_type": "bert", "architectures": None}, "an encoder"),
        ({"model_type": "t5", "architectures": ["T5ForX"]}, "'t5' (T5ForX)"),
        ({"model_type": "distilbert"}, "'distilbert'"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification"),
        ({"is_encoder_decoder": True}, "an encoder and a decoder"),
    ],
)
def test_what_does_not_predict_the_next_token(hf_folder, fields, words):
    state(hf_folder, **fields)
    refused(hf_folder, words, "is no causal language model")


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_no_declared_architecture_is_taken_for_another_kind(family):
    """Also where its class has a field that only others read: GPT-NeoX says `is_decoder: false`."""
    for model_type in family.model_types:
        require_causal({"model_type": model_type}, "somewhere")
        fields = fields_of(model_type)
        assert fields is not None
        require_causal({**fields, "model_type": model_type}, "somewhere")


def test_models_without_a_named_class_are_not_refused(hf_folder):
    for named in (None, ["LlamaModel"], ["LlamaForCausalLM"], ["GPT2LMHeadModel"]):
        state(hf_folder, architectures=named)
        assert config_of(ModelSpec(folder=hf_folder, tokenizer="bytes"))
    assert {"llama", "gpt2", "qwen3_moe"} <= set(causal_models())


@pytest.mark.parametrize("model_type", [t for f in FAMILIES for t in f.model_types])
def test_no_declared_family_is_taken_for_an_encoder(model_type: str) -> None:
    """Pythia's config.json does not say `is_decoder`, and its class's default is False."""
    require_causal({"model_type": model_type, "architectures": None}, "here")


def test_a_padding_token_without_a_row(hf_folder: Path, tiny_shape: dict[str, Any]) -> None:
    phi3 = {**tiny_shape, "model_type": "phi3", "tie_word_embeddings": False}
    refused(None, "pad_token_id is 32000, phi3's default", shape=phi3, random=True)
    assert load(ModelSpec(shape={**phi3, "pad_token_id": None}, random=True))
    # A class whose embedding keeps no row for it.
    gpt2 = {"model_type": "gpt2", "n_embd": 32, "n_layer": 1, "n_head": 2, "pad_token_id": 300}
    assert load(ModelSpec(shape=gpt2, random=True))
    state(hf_folder, pad_token_id=70000)
    refused(hf_folder, "pad_token_id is 70000, and the vocabulary has")


def test_rows_of_experts_that_kernels_take(tiny_shape: dict[str, Any]) -> None:
    mixtral = {**tiny_shape, "model_type": "mixtral", "num_local_experts": 4}
    assert load(ModelSpec(shape={**mixtral, "intermediate_size": 44}, random=True))
    spec = ModelSpec(shape={**mixtral, "intermediate_size": 42}, random=True)
    with pytest.raises(SourceError, match="expert_ffn 42 is no multiple of 4"):
        resolve_model(config_of(spec) or {})
    with torch.no_grad(), pytest.raises(RuntimeError, match="multiple of 16 bytes"):
        load(spec).module(torch.tensor([[1, 2, 3]]))


@pytest.mark.parametrize(
    ("field", "near"),
    [("tie_word_embeddingsx", "tie_word_embeddings"), ("head_dimx", "head_dim"), ("x_y", "Known")],
)
def test_fields_of_shape_are_those_of_the_class(hf_folder, tiny_shape, field, near):
    for folder, drawn in ((None, True), (hf_folder, True), (hf_folder, False)):
        shape = {**({} if folder else tiny_shape), field: 1}
        error = refused(folder, f"has no '{field}'", shape=shape, random=drawn)
        assert near in str(error.fix)
        assert error.where == f"model.shape.{field}"


def test_the_fields_of_every_class_are_known():
    """Read from the text of transformers, so held to what its classes say."""
    from transformers import AutoConfig

    for model_type in ("llama", "gpt2", "falcon", "qwen3_moe", "opt", "phi3", "gemma3_text"):
        config = AutoConfig.for_model(model_type)
        known = fields_of(model_type) or {}
        assert {*config.to_dict(), *config.attribute_map} <= {*known}
        assert known["tie_word_embeddings"] == config.tie_word_embeddings
    assert fields_of("no_such") is None
    assert not {"attribute_map", "base_model_tp_plan", "self"} & {*(fields_of("llama") or {})}


def test_a_head_of_its_own_where_the_configuration_says_tied(hf_folder):
    file = hf_folder / "model.safetensors"
    tensors = load_file(file)
    table = tensors["model.embed_tokens.weight"]
    save_file({**tensors, "lm_head.weight": table.clone()}, file, {"format": "pt"})
    assert config_of(ModelSpec(folder=hf_folder, tokenizer="bytes")), "a second copy is legal"
    other = table.clone()
    other[-1, -1] += 1
    save_file({**tensors, "lm_head.weight": other}, file, {"format": "pt"})
    refused(hf_folder, "lm_head.weight differs from", "tie_word_embeddings: false")
    state(hf_folder, tie_word_embeddings=False)
    assert config_of(ModelSpec(folder=hf_folder, tokenizer="bytes"))


def test_two_sets_of_weights(hf_folder):
    file, index = hf_folder / "model.safetensors", hf_folder / "model.safetensors.index.json"
    (hf_folder / "model-1.safetensors").write_bytes(file.read_bytes())
    index.write_text(json.dumps({"weight_map": {"a": "model-1.safetensors"}}))
    refused(hf_folder, "two sets of weights")
    index.write_text(json.dumps({"weight_map": {"a": "model.safetensors"}}))
    assert config_of(ModelSpec(folder=hf_folder, tokenizer="bytes")), "one set, with an index"
    state(hf_folder, transformers_weights="model-1.safetensors")
    refused(hf_folder, "transformers_weights: model-1.safetensors")


def add_token(folder: Path, text: str, number: int, *, special: bool) -> None:
    plan = json.loads((folder / "tokenizer.json").read_text())
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    plan["added_tokens"].append({"id": number, "content": text, "special": special, **flags})
    (folder / "tokenizer.json").write_text(json.dumps(plan))


def named(folder: Path, **keys: str) -> None:
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **keys}))


@pytest.mark.parametrize("role", ["", "eos_token", "bos_token"])
def test_a_tokenizer_that_emits_ids_beyond_the_embedding(hf_folder, role):
    add_token(hf_folder, "<new>", 258, special=bool(role))
    if role:
        named(hf_folder, **{role: "<new>"})
    for keys in ({}, {"tokenizer": str(hf_folder)}, {"random": True}):
        refused(hf_folder, "<new> the id 258", "258 rows", **{"tokenizer": None, **keys})


def test_a_special_token_that_no_text_gives_may_lie_beyond(hf_folder):
    add_token(hf_folder, "<pad>", 258, special=True)
    named(hf_folder, pad_token="<pad>")
    spec = ModelSpec(folder=hf_folder)
    assert config_of(spec)
    assert load(spec).tokenizer.vocab_size == 259


def test_positions():
    assert positions_of({"model_type": "gpt2", "n_positions": 64}) == (64, True)
    assert positions_of({"model_type": "opt", "max_position_embeddings": 64}) == (64, True)
    assert positions_of({"model_type": "llama"}) == (2048, False)
    assert positions_of({"model_type": "bloom"}) == (None, False)
    assert [
        m for m in ("gptj", "gpt_neo", "gpt_neox", "xglm", "mistral") if has_position_table(m)
    ] == ["gptj", "gpt_neo"]


JSON_FILES = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "model.safetensors.index.json",
]


def pipe(file: Path) -> None:
    file.unlink(missing_ok=True)
    os.mkfifo(file)


def zeros(file: Path) -> None:
    file.unlink(missing_ok=True)
    file.symlink_to("/dev/zero")


def sparse(file: Path) -> None:
    file.unlink(missing_ok=True)
    with file.open("wb") as stream:
        stream.truncate(64 << 30)


def deep(file: Path) -> None:
    file.write_text("[" * 200_000 + "]" * 200_000)


def folder_of(file: Path) -> None:
    file.unlink(missing_ok=True)
    file.mkdir()


@pytest.mark.parametrize("damage", [pipe, zeros, sparse, deep, folder_of])
@pytest.mark.parametrize("name", JSON_FILES)
def test_files_that_cannot_be_read(hf_folder, name, damage: Callable[[Path], None]):
    damage(hf_folder / name)
    refused(hf_folder, name, tokenizer=None)


@pytest.mark.parametrize("damage", [pipe, zeros, folder_of])
@pytest.mark.parametrize("name", ["model.safetensors", "chat_template.jinja", "merges.txt"])
def test_other_files_that_are_not_files(hf_folder, name, damage: Callable[[Path], None]):
    damage(hf_folder / name)
    refused(hf_folder, name)


def test_the_tokenizer_of_another_folder(hf_folder, tmp_path):
    words = tmp_path / "words"
    words.mkdir()
    for damage in (pipe, zeros, sparse, deep):
        damage(words / "tokenizer.json")
        refused(hf_folder, "tokenizer.json", tokenizer=str(words))


@pytest.mark.parametrize("table", [[], ["a"], "a", 3, {"a": 3}, {"a": "../a"}, {"a": ["b"]}, None])
def test_an_index_of_another_type(hf_folder, table):
    (hf_folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": table}))
    refused(hf_folder, "index.json is damaged")


@pytest.mark.parametrize(
    "entry",
    [
        {"data_offsets": ["0", "4"]},
        {"data_offsets": [0, 4.0]},
        {"data_offsets": [4, 0]},
        {"data_offsets": [0]},
        {"data_offsets": 4},
        {"shape": "1"},
        {"shape": [True]},
        {"dtype": None, "shape": None},
        [],
    ],
)
def test_a_header_without_a_meaning(hf_folder, entry):
    right = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    text = json.dumps({"a": {**right, **entry} if isinstance(entry, dict) else entry}).encode()
    data = len(text).to_bytes(8, "little") + text + bytes(4)
    (hf_folder / "model.safetensors").write_bytes(data)
    refused(hf_folder, "its header cannot be read")


def test_a_header_of_64_gigabytes(hf_folder):
    file = hf_folder / "model.safetensors"
    sparse(file)
    with file.open("r+b") as stream:
        stream.write((file.stat().st_size - 8).to_bytes(8, "little"))
    refused(hf_folder, "a header of 68,719,476,728 bytes")


def test_a_header_that_is_nested_too_deeply(hf_folder):
    text = b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}"
    data = len(text).to_bytes(8, "little") + text
    (hf_folder / "model.safetensors").write_bytes(data)
    refused(hf_folder, "its header cannot be read")


def test_a_file_that_git_lfs_left_out(hf_folder):
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n"
    (hf_folder / "model.safetensors").write_text(text)
    refused(hf_folder, "never downloaded", "git lfs pull")


def test_a_large_text_is_not_read(hf_folder, monkeypatch):
    monkeypatch.setattr(integrity, "TEXT_LIMIT", 1 << 20)
    (hf_folder / "config.json").write_text(" " * ((1 << 20) + 1))
    refused(hf_folder, "config.json has", "more than 1 MiB")


def test_check_imports_neither_torch_nor_transformers(hf_folder):
    code = (
        "import sys; from effcompress.model.source import config_of, outer_of, prompt_length\n"
        "from effcompress.spec import ModelSpec\n"
        f"spec = ModelSpec(folder={str(hf_folder)!r}, shape={{'hidden_act': 'silu'}})\n"
        "assert config_of(spec) and prompt_length(spec, 'four') == 4\n"
        "assert not {'torch', 'transformers'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([], "generation_config.json holds no JSON object"),
        ({"max_new_tokens": "abc"}, "max_new_tokens is 'abc'"),
        ({"num_beams": -3}, "num_beams is -3"),
        ({"eos_token_id": [2, 999_999]}, "eos_token_id is [2, 999999]"),
        ({"eos_token_id": "x"}, "eos_token_id is 'x'"),
        ({"forced_bos_token_id": 999_999}, "forced_bos_token_id is 999999"),
    ],
)
def test_how_text_is_generated(hf_folder, content, words):
    """Else the run fails in the proof of its export, after all training."""
    (hf_folder / "generation_config.json").write_text(json.dumps(content))
    assert refused(hf_folder, words).fix
    (hf_folder / "generation_config.json").unlink()
    state(hf_folder, eos_token_id=999_999)
    refused(hf_folder, "config.json: eos_token_id is 999999")
    state(hf_folder, eos_token_id=[0, 1])
    assert config_of(ModelSpec(folder=hf_folder, tokenizer="bytes"))


@pytest.mark.parametrize(
    "content", [{"num_beams": 4, "num_return_sequences": 9}, {"cache_implementation": "foo"}]
)
def test_what_transformers_refuse_is_named_by_its_file(hf_folder, content):
    (hf_folder / "generation_config.json").write_text(json.dumps(content))
    with pytest.raises(SourceError, match=r"generation_config\.json cannot be used") as caught:
        load(ModelSpec(folder=hf_folder, tokenizer="bytes"))
    assert "remove the file" in str(caught.value.fix)


def test_files_that_are_no_objects(hf_folder):
    (hf_folder / "tokenizer_config.json").write_text("[]")
    refused(hf_folder, "tokenizer_config.json holds no JSON object", "copy that file again")


def test_a_tensor_in_two_files(hf_folder):
    tensors = load_file(hf_folder / "model.safetensors")
    names = [*tensors]
    parts = {"one.safetensors": names[:3], "two.safetensors": names[2:]}
    for file, some in parts.items():
        save_file({name: tensors[name] for name in some}, hf_folder / file, {"format": "pt"})
    (hf_folder / "model.safetensors").unlink()
    table = {name: file for file, some in parts.items() for name in some}
    index = hf_folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": table}))
    refused(hf_folder, f"{names[2]} is stored twice, in one.safetensors and in two.safetensors")
    index.write_text(json.dumps({"weight_map": table}))
    refused(hf_folder, "has no `metadata`", 'add "metadata"')
    index.unlink()
    refused(hf_folder, "model.safetensors is missing, and model.safetensors.index.json", "one.safe")
    for file in parts:
        (hf_folder / file).unlink()
    (hf_folder / "pytorch_model.bin").write_bytes(b"")
    refused(hf_folder, "no safetensors weights", "save_pretrained(OTHER)")

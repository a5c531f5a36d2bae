"""Multimodal models: the text model inside is pruned and put back, and the rest stays as it is."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

from effcompress import load_recipe, run
from effcompress.errors import RecipeError
from effcompress.model.load import load
from effcompress.model.multimodal import text_name, text_of
from effcompress.runner.preflight import preflight
from effcompress.spec import ModelSpec
from tests.runner.toys import texts

SIZES = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 3}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
TEXT = {"vocab_size": 258, "bos_token_id": 256, "eos_token_id": 257, "pad_token_id": 0}
TEXT |= SIZES | HEADS | {"max_position_embeddings": 256}
SEEN = {"image_size": 28, "patch_size": 14, "hidden_size": 16, "intermediate_size": 16}
SEEN |= {"num_hidden_layers": 2, "num_attention_heads": 2}
MROPE = {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 1e4}
QWEN_SEES = {"depth": 2, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2}
QWEN_SEES |= {"out_hidden_size": 32, "patch_size": 14}
GLM_SEES = {**SEEN, "depth": 2, "num_heads": 2, "out_hidden_size": 32}
SIGLIP = {"model_type": "siglip_vision_model", **SEEN}
CLIP = {"model_type": "clip_vision_model", "projection_dim": 16, **SEEN}
SOURCES: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma3": (
        "Gemma3",
        {
            **{"text_config": {**TEXT, "model_type": "gemma3_text", "sliding_window": 8}},
            **{"vision_config": SIGLIP},
            "mm_tokens_per_image": 4,
        },
    ),
    "mistral3": (
        "Mistral3",
        {
            "text_config": {**TEXT, "model_type": "mistral"},
            "vision_config": {"model_type": "pixtral", **SEEN, "head_dim": 8},
        },
    ),
    "llava": (
        "Llava",
        {"text_config": {**TEXT, "model_type": "llama"}, "vision_config": CLIP},
    ),
    "idefics3": (
        "Idefics3",
        {
            "text_config": {**TEXT, "model_type": "llama"},
            **{"vision_config": SEEN, "pad_token_id": 0, "tie_word_embeddings": False},
        },
    ),
    "qwen2_5_vl": (
        "Qwen2_5_VL",
        {
            "text_config": {**TEXT, "model_type": "qwen2_5_vl_text", "rope_parameters": MROPE},
            "vision_config": QWEN_SEES,
        },
    ),
    "idefics2": (
        "Idefics2",
        {
            **{"text_config": {**TEXT, "model_type": "mistral"}, "vision_config": SEEN},
            "perceiver_config": {
                **{"resampler_n_latents": 4, "resampler_depth": 1, "resampler_n_heads": 2},
                **{"resampler_head_dim": 8, "num_key_value_heads": 2, "hidden_size": 32},
            },
        },
    ),
    "qwen2_vl": (
        "Qwen2VL",
        {
            "text_config": {**TEXT, "model_type": "qwen2_vl_text", "rope_parameters": MROPE},
            "vision_config": {
                **{"depth": 2, "embed_dim": 16, "mlp_ratio": 2, "num_heads": 2},
                **{"hidden_size": 32, "patch_size": 14},
            },
        },
    ),
    "gemma4": (
        "Gemma4",
        {
            "text_config": {
                **{**TEXT, "model_type": "gemma4_text", "sliding_window": 8},
                **{"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 258},
                **{"layer_types": ["sliding_attention", "sliding_attention", "full_attention"]},
                **{"global_head_dim": 16, "num_kv_shared_layers": 0},
            },
            "vision_config": {
                **{k: v for k, v in SEEN.items() if k != "image_size"},
                **{"num_key_value_heads": 2, "head_dim": 8, "global_head_dim": 8},
            },
            "audio_config": None,
        },
    ),
    "qwen3_5": (
        "Qwen3_5",
        {
            "text_config": {
                **{**TEXT, "model_type": "qwen3_5_text"},
                **{"linear_num_key_heads": 2, "linear_num_value_heads": 4},
                **{"linear_key_head_dim": 6, "linear_value_head_dim": 8},
                "layer_types": ["linear_attention", "full_attention", "full_attention"],
            },
            "vision_config": QWEN_SEES,
        },
    ),
    "llama4": (
        "Llama4",
        {
            "text_config": {
                **{**TEXT, "model_type": "llama4_text", "intermediate_size_mlp": 48},
                **{"num_local_experts": 4, "num_experts_per_tok": 1, "moe_layers": [1]},
                **{"interleave_moe_layer_step": 2, "attention_chunk_size": 64},
            },
            "vision_config": {
                **SEEN,
                **{"vision_output_dim": 16, "projector_input_dim": 16, "projector_output_dim": 16},
                "pixel_shuffle_ratio": 0.5,
            },
        },
    ),
    "internvl": (
        "InternVL",
        {
            "text_config": {**TEXT, "model_type": "qwen2"},
            "vision_config": {
                **{"model_type": "internvl_vision", **SEEN},
                **{"image_size": [28, 28], "patch_size": [14, 14]},
            },
        },
    ),
    "glm4v": (
        "Glm4v",
        {
            "text_config": {**TEXT, "model_type": "glm4v_text", "rope_parameters": MROPE},
            "vision_config": GLM_SEES,
        },
    ),
    "glm4v_moe": (
        "Glm4vMoe",
        {
            "text_config": {
                **{**TEXT, "model_type": "glm4v_moe_text", "n_routed_experts": 4},
                **{"num_experts_per_tok": 2, "moe_intermediate_size": 16},
                **{"first_k_dense_replace": 1, "attention_bias": True},
                "rope_parameters": {**MROPE, "mrope_section": [1, 1, 0]},
            },
            "vision_config": GLM_SEES,
        },
    ),
    "qwen3_vl_moe": (
        "Qwen3VLMoe",
        {
            "text_config": {
                **{**TEXT, "model_type": "qwen3_vl_moe_text", "rope_parameters": MROPE},
                **{"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
            },
            "vision_config": {**QWEN_SEES, "deepstack_visual_indexes": [0]},
        },
    ),
    "qwen3_vl": (
        "Qwen3VL",
        {
            "text_config": {**TEXT, "model_type": "qwen3_vl_text", "rope_parameters": MROPE},
            "vision_config": {**QWEN_SEES, "deepstack_visual_indexes": [0]},
        },
    ),
}
SHAPES = {
    "idefics2": {"attention": 1, "layer": 2},  # ffn: a part beside it has that width
    "qwen2_vl": {"ffn": 33, "layer": 2},  # as of Qwen2.5-VL
    "qwen2_5_vl": {"ffn": 33, "layer": 2},  # heads: the class divides hidden by them
    "qwen3_vl": {"ffn": 33, "attention": 1},  # layers: what it sees goes to them by number
    "qwen3_vl_moe": {"attention": 1},
    "glm4v": {"ffn": 33, "layer": 2},  # as of Qwen2.5-VL
    "glm4v_moe": {"attention": 1, "layer": 2},
    "gemma4": {"ffn": 33, "attention": 1},
    "qwen3_5": {"ffn": 33, "attention": 1, "layer": 1},  # of two: the last one stays
    "llama4": {"ffn": 33, "expert_ffn": 24, "attention": 1, "layer": 2},
}
FIELDS_OF_LAYERS = ("num_hidden_layers", "layer_types", "moe_layers", "no_rope_layers")
RECIPE = """
name: toy
model: {{folder: source, tokenizer: bytes}}
data:
  sequence_length: 32
  domains: {{letters: {{jsonl: letters.jsonl, text: text}}}}
prune:
  target: {{{target}}}
  space: [{space}]
  criterion: magnitude
  schedule: {{name: once, at: 0}}
evaluate: {{sequences: 4, new_tokens: 4}}
export: {{multimodal: whole{more}}}
"""


def multimodal(kind: str, folder: Path) -> Any:
    name, fields = SOURCES[kind]
    config = getattr(transformers, f"{name}Config")(**copy.deepcopy(fields))
    torch.manual_seed(0)
    made = getattr(transformers, f"{name}ForConditionalGeneration")(config).eval()
    for p in made.parameters():
        p.data.normal_(1.0 if p.dim() == 1 else 0.0, 0.1)
        p.data = p.data.bfloat16()  # buffers may be complex
    made.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text('{"size": 28}')
    return type(made).from_pretrained(folder, dtype=torch.float32).eval()


def recipe(folder: Path, kind: str, **how: str) -> Path:
    texts(folder)
    multimodal(kind, folder / "source")
    path = folder / "toy.yaml"
    path.write_text(RECIPE.format(**{"space": "ffn", "target": "keep: 94%", "more": "", **how}))
    return path


@torch.no_grad()
def logits(module: Any) -> torch.Tensor:
    return module.eval()(input_ids=torch.arange(3, 15)[None]).logits


@pytest.mark.parametrize("kind", SOURCES)
def test_the_text_model_computes_what_the_whole_does(kind: str, tmp_path: Path) -> None:
    whole = multimodal(kind, tmp_path)
    text = load(ModelSpec(folder=tmp_path, tokenizer="bytes")).module
    torch.testing.assert_close(logits(text), logits(whole), rtol=0, atol=1e-5)


LEFT_OUT = ("rms_norm_eps", "attention_bias", "pad_token_id", "hidden_act", "norm_topk_prob")


@pytest.mark.parametrize(
    "kind", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "glm4v", "glm4v_moe"]
)
def test_what_a_text_model_without_a_class_of_its_own_leaves_out(kind: str, tmp_path: Path) -> None:
    """Files of earlier versions state what differs from the defaults; those are the defaults of
    the text model's configuration, not of the class that computes the same of text alone.
    """
    whole = multimodal(kind, tmp_path)
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    text = config["text_config"]
    sizes = ("head_dim",) if kind == "glm4v" else ()  # which its class computes
    for name in (*LEFT_OUT, *sizes):
        text.pop(name, None)
    del text["rope_parameters"]["rope_theta"]
    file.write_text(json.dumps(config))
    whole = type(whole).from_pretrained(tmp_path, dtype=torch.float32)
    module = load(ModelSpec(folder=tmp_path, tokenizer="bytes")).module
    torch.testing.assert_close(logits(module), logits(whole), rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", SOURCES)
def test_it_is_pruned_and_put_back(kind: str, tmp_path: Path) -> None:
    """In every weight of other parts, and every field of the configuration but those that changed,
    the result is the source; the proof compares the whole, without images, with the text model.
    """
    shape = SHAPES.get(kind, {"ffn": 33, "attention": 1, "layer": 2})
    target, space = f"shape: {json.dumps(shape)}", [k for k in shape if k != "expert_ffn"]
    path = recipe(tmp_path, kind, space=", ".join(space), target=target)
    folder, source = tmp_path / "out", tmp_path / "source"
    run(load_recipe(path), output=folder)
    before, after = load_file(source / "model.safetensors"), load_file(folder / "model.safetensors")
    others = [name for name in before if not text_name(name)]
    assert len(others) > 5 and {*others} <= {*after}
    for name in others:
        assert before[name].dtype == after[name].dtype and torch.equal(before[name], after[name])
    fewer = {n for n in before if text_name(n)} - {n for n in after if text_name(n)}
    assert bool(fewer) == ("layer" in shape)
    old, new = (json.loads((f / "config.json").read_text()) for f in (source, folder))
    changed = {k for k in old["text_config"] if old["text_config"][k] != new["text_config"].get(k)}
    sizes = {"intermediate_size", "intermediate_size_mlp", "num_attention_heads"}
    sizes |= {"num_key_value_heads", "num_global_key_value_heads"}
    assert changed - {"dtype"} <= sizes | {*FIELDS_OF_LAYERS, "model_type"}
    assert old["vision_config"] == new["vision_config"]
    assert (folder / "preprocessor_config.json").read_text() == '{"size": 28}'
    again = load(ModelSpec(folder=folder, tokenizer="bytes"))  # the result is a source again
    assert again.config["num_hidden_layers"] == new["text_config"]["num_hidden_layers"]


@pytest.mark.parametrize("kind", ["gemma3", "qwen2_5_vl"])
def test_the_whole_says_what_version_4_reads(kind: str, tmp_path: Path) -> None:
    """Without the older keys that computes with a rotary base of 10000, whatever the model has."""
    run(load_recipe(recipe(tmp_path, kind)), output=tmp_path / "out")
    text = json.loads((tmp_path / "out/config.json").read_text())["text_config"]
    rope = text["rope_parameters"]
    assert text["rope_theta"] == rope.get("full_attention", rope)["rope_theta"]
    assert text["torch_dtype"] == text["dtype"]
    if "mrope_section" in rope:
        assert text["rope_scaling"]["mrope_section"] == rope["mrope_section"]


def test_layers_that_differ_are_padded(tmp_path: Path) -> None:
    space = "{name: ffn, scope: per_layer}"
    run(load_recipe(recipe(tmp_path, "gemma3", space=space)), output=tmp_path / "out")
    made = next(json.loads(x) for x in metrics(tmp_path / "out") if '"export"' in x)
    assert made["form"] == "padded" and "zeros" in made["why"]
    assert "the text model of a 'gemma3', whose other parts are as they were" in made["why"]


def metrics(folder: Path) -> list[str]:
    return (folder / "metrics.jsonl").read_text().splitlines()


def test_an_older_file_states_the_text_model_beside_the_rest(tmp_path: Path) -> None:
    config = {"model_type": "qwen2_5_vl", **TEXT, "vision_config": {}, "tie_word_embeddings": True}
    config |= {"rope_scaling": {"type": "mrope", "mrope_section": [2, 1, 1]}, "rope_theta": 1e4}
    found = text_of(config)
    assert found is not None and found["model_type"] == "qwen2"
    assert found["rope_scaling"] == {"type": "default"} and "vision_config" not in found
    assert text_of({"model_type": "qwen2_5_vl", "vision_config": {}}) is None


@pytest.mark.parametrize(
    ("kind", "how", "said"),
    [
        ("gemma3", {"space": "ffn, hidden"}, "other parts write into the hidden channels"),
        ("gemma3", {"more": ", form: exact"}, "text models of stock classes alone"),
        ("qwen3_vl", {"space": "ffn, layer"}, "take what its other parts see by their numbers"),
        ("idefics2", {}, r"derives \(39, 16\) for model.connector.modality_projection"),
        ("qwen2_5_vl", {"space": "ffn, attention"}, "derives .* for .*self_attn"),
    ],
)
def test_what_cannot_be_put_back_is_found_by_check(
    kind: str, how: dict[str, str], said: str, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=said) as caught:
        preflight(load_recipe(recipe(tmp_path, kind, **how)), offline=True)
    assert "toy.yaml:" in str(caught.value.where) and "multimodal: text" in str(caught.value.fix)


def test_a_whole_that_leaves_out_a_factor_of_its_text_model_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Aya Vision's class does not multiply logits by ``logit_scale``, which its text model does."""
    fields = {"text_config": {**TEXT, "model_type": "cohere2"}, "vision_config": SIGLIP}
    monkeypatch.setitem(SOURCES, "aya", ("AyaVision", fields))
    path = recipe(tmp_path, "aya")
    with pytest.raises(RecipeError, match="does not read logit_scale of the text model"):
        preflight(load_recipe(path), offline=True)
    preflight(load_recipe(path, ["export.multimodal=text"]), offline=True)


def test_a_source_that_is_no_multimodal_model(tmp_path: Path) -> None:
    path = recipe(tmp_path, "llava")
    text = path.read_text().replace(
        "{folder: source, tokenizer: bytes}", json.dumps({"random": True, "shape": LLAMA})
    )
    path.write_text(text)
    with pytest.raises(RecipeError, match="the source is no multimodal model"):
        preflight(load_recipe(path), offline=True)


LLAMA = {"model_type": "llama", **{k: v for k, v in TEXT.items() if "token" not in k}}

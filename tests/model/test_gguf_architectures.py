"""Every type of the table: llama.cpp opens its file, and its logits are those of transformers."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGUFReader
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from effcompress.errors import SourceError
from effcompress.model.gguf.architectures import ARCHITECTURES
from effcompress.model.gguf.offered import why_not, why_not_sizes
from effcompress.model.gguf.read import convert
from effcompress.model.gguf.stock import write_stock
from tests.model.by_llama_cpp import ask, difference, logits_of

BASE: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 48,
    "intermediate_size": 40,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "pad_token_id": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
WIDE: dict[str, Any] = {"head_dim": 12, "hidden_size": 60}
"""Heads that do not fill the hidden size: what is left when either of them is pruned."""
ALONE = {"num_key_value_heads": 6}
DEFAULT = {"rope_type": "default", "rope_theta": 1e4}
HALF = {"partial_rotary_factor": 0.5}
ROUTED = {
    **{"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2},
    **{"moe_intermediate_size": 24, "shared_expert_intermediate_size": 20},
}
GRANITE = {
    **{"embedding_multiplier": 3.0, "residual_multiplier": 0.5},
    **{"attention_multiplier": 0.2, "logits_scaling": 4.0},
}
FALCON = {"alibi": False, "parallel_attn": True, "bias": False, "ffn_hidden_size": 40}
YARN = {
    **{"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0},
    **{"original_max_position_embeddings": 32, "beta_fast": 4.0, "beta_slow": 1.0},
}
LATENT = {
    **{**ROUTED, "n_routed_experts": 4, "n_shared_experts": 1, "first_k_dense_replace": 1},
    **{"q_lora_rank": 16, "kv_lora_rank": 20, "qk_nope_head_dim": 12, "qk_rope_head_dim": 8},
    **{"v_head_dim": 10, "n_group": 1, "topk_group": 1, "routed_scaling_factor": 1.5},
    **{"norm_topk_prob": True, "num_key_value_heads": 6},
}
GROUPED = {"n_routed_experts": 8, "num_local_experts": 8, "n_group": 4, "topk_group": 2}
ERNIE = {
    **{**ROUTED, **WIDE, "moe_num_experts": 4, "moe_k": 2, "moe_layer_start_index": 1},
    **{"moe_layer_interval": 1},
}
LFM2 = {
    **{"layer_types": ["conv", "full_attention", "conv", "full_attention"], "conv_L_cache": 3},
    "block_auto_adjust_ff_dim": False,
}
FALCON_H1 = {
    **{"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_n_groups": 2},
    **{"mamba_d_state": 16, "mamba_rms_norm": True, "mamba_norm_before_gate": False},
    **{"attention_in_multiplier": 1.5, "attention_out_multiplier": 0.8, "key_multiplier": 0.7},
    **{"embedding_multiplier": 2.0, "lm_head_multiplier": 0.5, "mlp_multipliers": [0.6, 1.4]},
    **{"ssm_in_multiplier": 1.2, "ssm_out_multiplier": 0.9},
    "ssm_multipliers": [0.5, 1.5, 0.7, 1.3, 0.9],
}
NEMOTRON_H = {
    "layers_block_type": ["linear_attention", "full_attention", "mlp", "linear_attention"],
    **{"mamba_num_heads": 4, "mamba_head_dim": 8, "n_groups": 2, "ssm_state_size": 16},
}
QWEN3_NEXT = {
    **{**ROUTED, "layer_types": ["linear_attention", "full_attention"] * 2},
    **{"linear_num_key_heads": 2, "linear_num_value_heads": 4},
    **{"linear_key_head_dim": 8, "linear_value_head_dim": 8},
}
GEMMA4 = {
    **{"num_hidden_layers": 6, "sliding_window": 4, "global_head_dim": 16},
    "layer_types": ["sliding_attention"] * 3
    + ["full_attention", "sliding_attention", "full_attention"],
    **{"hidden_size_per_layer_input": 10, "vocab_size_per_layer_input": 61},
}
LLAMA4 = {**ROUTED, **WIDE, "intermediate_size_mlp": 36, "interleave_moe_layer_step": 2}
NO_WIDTH = ("falcon", "deepseek_v2", "deepseek_v3", "glm4_moe_lite")
"""Types that compute ``head_dim``."""
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2": ("qwen2", {}),
    "qwen2, tied": ("qwen2", {"tie_word_embeddings": True}),
    "qwen2, wide": ("qwen2", WIDE),
    "qwen3": ("qwen3", WIDE),
    "gemma": ("gemma", WIDE),
    "gemma2": ("gemma2", {**WIDE, "query_pre_attn_scalar": 24, "sliding_window": 4}),
    "gemma2, no caps": (
        "gemma2",
        {"attn_logit_softcapping": None, "final_logit_softcapping": None, "sliding_window": 200},
    ),
    "gemma2, 46 layers": ("gemma2", {"num_hidden_layers": 46, "hidden_size": 60, "head_dim": 8}),
    "gemma3": (
        "gemma3_text",
        {"head_dim": 12, "query_pre_attn_scalar": 24, "sliding_window": 4, "num_hidden_layers": 7},
    ),
    "gemma3, linear": (
        "gemma3_text",
        {
            "sliding_window": 4,
            "num_hidden_layers": 6,
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
                "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
            },
        },
    ),
    "phi3": ("phi3", {}),
    "phi3, wide": ("phi3", WIDE),
    "phi3, part": (
        "phi3",
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, **HALF}},
    ),
    "olmo2": ("olmo2", {}),
    "olmo3": ("olmo3", {"sliding_window": 4}),
    "smollm3": ("smollm3", WIDE),
    "mixtral": ("mixtral", {**ROUTED, **WIDE}),
    "qwen3_moe": ("qwen3_moe", {**ROUTED, **WIDE, "norm_topk_prob": True}),
    "qwen2_moe": ("qwen2_moe", {**ROUTED, "norm_topk_prob": False}),
    "olmoe": ("olmoe", {**ROUTED, **ALONE, "norm_topk_prob": False}),
    "granite": ("granite", {**WIDE, **GRANITE}),
    "gpt2": ("gpt2", ALONE),
    "gpt_neox": ("gpt_neox", {**ALONE, "use_parallel_residual": True}),
    "gpt_neox, tied": (
        "gpt_neox",
        {**ALONE, "use_parallel_residual": False, "tie_word_embeddings": True},
    ),
    "starcoder2": ("starcoder2", {"sliding_window": None}),
    "stablelm": ("stablelm", HALF),
    "stablelm 2": (
        "stablelm",
        {"qk_layernorm": True, "use_qkv_bias": True, "use_parallel_residual": True, **HALF},
    ),
    "phi": ("phi", {**ALONE, **HALF}),
    "cohere": ("cohere", {"logit_scale": 0.25}),
    "cohere2": ("cohere2", {"sliding_window": 4}),
    "arcee": ("arcee", WIDE),
    "ernie4_5": ("ernie4_5", WIDE),
    "seed_oss": ("seed_oss", WIDE),
    "hunyuan_v1_dense": ("hunyuan_v1_dense", WIDE),
    "nemotron": ("nemotron", HALF),
    "glm4": ("glm4", {**WIDE, **HALF}),
    "glm": ("glm", {**HALF, "attention_bias": True}),
    "exaone4": ("exaone4", {"sliding_window": None, "layer_types": ["full_attention"] * 4}),
    "ministral": ("ministral", {**WIDE, "sliding_window": 200}),
    "olmo": ("olmo", {"clip_qkv": 0.8}),
    "granitemoe": ("granitemoe", {**ROUTED, **WIDE, **GRANITE}),
    "glm4_moe": (
        "glm4_moe",
        {
            **{**ROUTED, **WIDE, **HALF, "n_routed_experts": 4, "n_shared_experts": 1},
            **{"first_k_dense_replace": 1, "n_group": 1, "topk_group": 1, "use_qk_norm": True},
            **{"routed_scaling_factor": 1.5, "norm_topk_prob": True, "attention_bias": True},
        },
    ),
    "gpt_bigcode": ("gpt_bigcode", {"multi_query": True}),
    "olmo2, tied": ("olmo2", {"tie_word_embeddings": True}),
    "olmo3, tied": ("olmo3", {"sliding_window": 4, "tie_word_embeddings": True}),
    "qwen2_moe, tied": (
        "qwen2_moe",
        {**ROUTED, "norm_topk_prob": False, "tie_word_embeddings": True},
    ),
    "olmoe, tied": (
        "olmoe",
        {**ROUTED, **ALONE, "norm_topk_prob": False, "tie_word_embeddings": True},
    ),
    "nemotron, tied": ("nemotron", {**HALF, "tie_word_embeddings": True}),
    "falcon": ("falcon", {**FALCON, "multi_query": True}),
    "falcon, by head": ("falcon", {**FALCON, "multi_query": False}),
    "falcon, two norms": (
        "falcon",
        {**FALCON, "new_decoder_architecture": True, "num_kv_heads": 3},
    ),
    "falcon, one norm": (
        "falcon",
        {
            **{**FALCON, "new_decoder_architecture": True, "num_kv_heads": 2},
            "num_ln_in_parallel_attn": 1,
        },
    ),
    "bloom": ("bloom", {}),
    "gpt_oss": ("gpt_oss", {**ROUTED, **WIDE, "rope_parameters": DEFAULT, "sliding_window": 4}),
    "gpt_oss, yarn": (
        "gpt_oss",
        {**ROUTED, "rope_parameters": {**YARN, "truncate": True}, "sliding_window": 200},
    ),
    "gpt_oss, tied": (
        "gpt_oss",
        {**ROUTED, "rope_parameters": DEFAULT, "tie_word_embeddings": True},
    ),
    "deepseek_v2": ("deepseek_v2", {**LATENT, "n_shared_experts": 2, "norm_topk_prob": True}),
    "deepseek_v2, yarn": (
        "deepseek_v2",
        {**LATENT, "rope_parameters": {**YARN, "mscale": 0.7, "mscale_all_dim": 0.7}},
    ),
    "deepseek_v3": ("deepseek_v3", {**LATENT, "rope_parameters": DEFAULT}),
    "deepseek_v3, yarn": (
        "deepseek_v3",
        {**LATENT, "rope_parameters": {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0}},
    ),
    "deepseek_v3, all routed": (
        "deepseek_v3",
        {**LATENT, "first_k_dense_replace": 0, "norm_topk_prob": False},
    ),
    "deepseek_v3, another epsilon": ("deepseek_v3", {**LATENT, "rms_norm_eps": 1e-2}),
    "deepseek_v3, groups of experts": (
        "deepseek_v3",
        {**LATENT, **GROUPED},
    ),
    "deepseek_v2, lite": (
        "deepseek_v2",
        {**LATENT, "q_lora_rank": None, "num_hidden_layers": 26},
    ),
    "glm4_moe_lite": ("glm4_moe_lite", {**LATENT, "mlp_layer_types": None}),
    "dots1": ("dots1", {**LATENT, **WIDE, **ALONE}),
    "dots1, groups of experts, tied": (
        "dots1",
        {**LATENT, **ALONE, **GROUPED, "tie_word_embeddings": True},
    ),
    "ernie4_5_moe": ("ernie4_5_moe", {**ERNIE, "moe_num_shared_experts": 2}),
    "ernie4_5_moe, none shared": ("ernie4_5_moe", {**ERNIE, "moe_num_shared_experts": 0}),
    "minimax_m2": ("minimax_m2", {**ROUTED, **WIDE, "rope_parameters": {**DEFAULT, **HALF}}),
    "minimax_m2, tied": ("minimax_m2", {**ROUTED, "tie_word_embeddings": True}),
    "lfm2": ("lfm2", LFM2),
    "lfm2, adjusted": ("lfm2", {**LFM2, "block_auto_adjust_ff_dim": True}),
    "lfm2_moe": ("lfm2_moe", {**LFM2, **ROUTED, "num_dense_layers": 2}),
    "falcon_h1": ("falcon_h1", {**FALCON_H1, **WIDE}),
    "falcon_h1, tied": ("falcon_h1", {**FALCON_H1, "tie_word_embeddings": True}),
    "falcon_h1, no norm": ("falcon_h1", {**FALCON_H1, "mamba_rms_norm": False}),
    "nemotron_h": ("nemotron_h", {**NEMOTRON_H, "head_dim": 12}),
    "nemotron_h, tied": ("nemotron_h", {**NEMOTRON_H, "tie_word_embeddings": True}),
    "qwen3_next": ("qwen3_next", {**QWEN3_NEXT, "head_dim": 16, "hidden_size": 60}),
    "qwen3_next, tied": ("qwen3_next", {**QWEN3_NEXT, "tie_word_embeddings": True}),
    "gemma4": ("gemma4_text", GEMMA4),
    "gemma4, shared": ("gemma4_text", {**GEMMA4, "num_kv_shared_layers": 2}),
    "gemma4, twice as wide": (
        "gemma4_text",
        {**GEMMA4, "num_kv_shared_layers": 2, "use_double_wide_mlp": True},
    ),
    "gemma4, keys as values": (
        "gemma4_text",
        {
            **{**GEMMA4, "attention_k_eq_v": True, "num_global_key_value_heads": 2},
            **{"hidden_size_per_layer_input": 0, "final_logit_softcapping": 20.0},
        },
    ),
    "llama4": ("llama4_text", LLAMA4),
    "llama4, two experts": (
        "llama4_text",
        {**LLAMA4, "interleave_moe_layer_step": 1, "tie_word_embeddings": True},
    ),
    "llama4, one expert": ("llama4_text", {**LLAMA4, "num_experts_per_tok": 1}),
}


class Table(nn.Module):
    """GELU as llama.cpp has it: a table of 16-bit numbers, by the tanh formula."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = nn.functional.gelu(x.half().float(), approximate="tanh").half().float()
        return torch.where(x <= -10, 0, torch.where(x >= 10, x, found))


def tiny(model_type: str, **more: Any) -> Any:
    """A random model whose gains and biases are random too, with llama.cpp's GELU."""
    fields = {**BASE, **more}
    if model_type in NO_WIDTH:
        fields.pop("head_dim")
    config = AutoConfig.for_model(model_type, **fields)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
        for p in model.parameters():
            p.data.uniform_(0.5, 1.5) if p.dim() == 1 else p.data.normal_(0, 0.2)
        for name, held in model.named_buffers():
            if name.endswith(("_correction_bias", "expert_bias")):
                held.uniform_(-0.2, 0.2)
            if name.endswith("layer_scalar"):
                held.uniform_(0.5, 1.5)
    for module in list(model.modules()):
        for name, child in module.named_children():
            if "gelu" in type(child).__name__.lower():
                setattr(module, name, Table())
    return model.eval()


def near(model: Any) -> float:
    """How far logits may be apart. A number that is rounded to 16 bits may be so up or down."""
    rounds = any(isinstance(module, Table) for module in model.modules())
    return (2e-4 if rounds else 3e-5) * float(logits_of(model).abs().max())


def fields_of(model: Any) -> dict[str, Any]:
    return json.loads(model.config.to_json_string(use_diff=False))


def write(path: Path, model: Any, dtype: Any = "F32", **config: Any) -> int:
    fields = {**fields_of(model), **config}
    return write_stock(path, fields, model.state_dict(), None, dtype=dtype, name="Tiny")


@pytest.mark.parametrize("case", CASES)
def test_llama_cpp_computes_the_same(case: str, tmp_path: Path) -> None:
    model_type, more = CASES[case]
    model = tiny(model_type, **more)
    write(tmp_path / "m.gguf", model)
    found = ask(tmp_path / "m.gguf")
    kind = found["meta"]["general.architecture"]
    own = ARCHITECTURES[model_type]
    assert kind == ("llama" if case in ("qwen2, wide", "phi3, wide") else own.name)
    assert found["meta"][f"{kind}.context_length"] == "128"
    assert difference(found, model) < near(model)


def test_every_type_has_a_case() -> None:
    assert {kind for kind, _ in CASES.values()} == ARCHITECTURES.keys() - {"llama", "mistral"}


@pytest.mark.parametrize("case", ["qwen3_moe", "stablelm 2", "gpt2"])
def test_f16(case: str, tmp_path: Path) -> None:
    """Against a model of the rounded weights; norms, routers and positions are not rounded."""
    model_type, more = CASES[case]
    model = tiny(model_type, **more)
    wide = write(tmp_path / "wide.gguf", model)
    assert write(tmp_path / "m.gguf", model, "F16") < wide
    whole = ("norm", "gate.weight", "wpe")
    for name, p in model.named_parameters():
        if p.dim() > 1 and not any(part in name for part in whole):
            p.data = p.data.half().float()
    assert difference(ask(tmp_path / "m.gguf"), model) < 5e-2
    kinds = {t.name: t.tensor_type.name for t in GGUFReader(tmp_path / "m.gguf").tensors}
    whole = ("norm", "_inp.weight", "position_embd", "bias")
    wrong = [name for name, k in kinds.items() if (k == "F32") != any(w in name for w in whole)]
    assert not wrong


WINDOWS = {
    "llama.cpp has no windows": ("starcoder2", {"sliding_window": 32}, "32"),
    "in other layers": (
        "gemma2",
        {"sliding_window": 32, "layer_types": ["full_attention"] + ["sliding_attention"] * 3},
        "32",
    ),
    "in none": ("gemma2", {"sliding_window": 4, "layer_types": ["full_attention"] * 4}, "128"),
}


@pytest.mark.parametrize("case", WINDOWS)
def test_the_context_ends_with_windows_that_llama_cpp_has_not(case: str, tmp_path: Path) -> None:
    model_type, more, context = WINDOWS[case]
    model = tiny(model_type, **more)
    write(tmp_path / "m.gguf", model)
    found = ask(tmp_path / "m.gguf")
    kind = found["meta"]["general.architecture"]
    assert found["meta"][f"{kind}.context_length"] == context
    assert difference(found, model) < near(model)


REFUSED = {
    "no architecture": ("opt", {}, "llama.cpp has not"),
    "rope": ("qwen3", {"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "'yarn'"),
    "llama3 rope": ("qwen3", {"rope_parameters": {"rope_type": "llama3"}}, "default and linear"),
    "activation": ("gemma", {"hidden_activation": "silu"}, "gelu_pytorch_tanh, not with 'silu'"),
    "biases": ("qwen3", {"attention_bias": True}, "only with attention_bias: False"),
    "half a head": ("smollm3", HALF, "rotates whole heads"),
    "dense layers": ("qwen3_moe", {"mlp_only_layers": [0]}, "mlp_only_layers"),
    "experts' weights": ("olmoe", {"norm_topk_prob": True}, "only with norm_topk_prob: False"),
    "rope by kind": (
        "gemma3_text",
        {"layer_types": ["sliding_attention", "full_attention"] * 3},
        "each 6th layer",
    ),
    "another base in layers with a window": (
        "gemma3_text",
        {
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e3},
                "full_attention": {"rope_type": "default", "rope_theta": 1e6},
            }
        },
        "a base of 10000, and here it is default rope with 1000",
    ),
    "layers without rope": ("smollm3", {"no_rope_layers": [1, 0, 1, 1]}, "each 4th layer"),
    "other layers": ("qwen2", {"layer_types": ["linear_attention"] * 4}, "linear_attention"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_llama_cpp_computes_otherwise_is_refused(case: str, tmp_path: Path) -> None:
    model_type, change, words = REFUSED[case]
    fields = {"model_type": model_type, **BASE, **ROUTED}
    if model_type == "olmoe":
        fields["num_key_value_heads"] = 6
    more = {"num_hidden_layers": 6} if model_type == "gemma3_text" else {}
    fields |= more
    if model_type != "opt":
        fine = {"norm_topk_prob": model_type == "qwen3_moe"}
        assert why_not({**fields, **fine}) == ""
        model = tiny(model_type, **{**ROUTED, **fine, **more})
        with pytest.raises(SourceError, match=words):
            write(tmp_path / "m.gguf", model, **change)
    assert words in why_not({**fields, **change})
    assert not list(tmp_path.iterdir())


CHANGED = {
    "ALiBi": ("falcon", {"alibi": True}, "only with alibi: False"),
    "one after another": ("falcon", {"parallel_attn": False}, "only with parallel_attn: True"),
    "norms behind": (
        "bloom",
        {"apply_residual_connection_post_layernorm": True},
        "only with apply_residual_connection_post_layernorm: False",
    ),
    "another limit": ("gpt_oss", {"swiglu_limit": 5.0}, "only with swiglu_limit: 7.0"),
    "a factor of YaRN": (
        "gpt_oss",
        {"rope_parameters": {**YARN, "attention_factor": 2.0}},
        "no attention_factor of YaRN",
    ),
    "groups by their best": (
        "deepseek_v2",
        {"topk_method": "group_limited_greedy"},
        "only with topk_method: greedy",
    ),
    "no latent queries": ("deepseek_v2", {"q_lora_rank": None}, "26 or 27 layers alone"),
    "YaRN by two scales": (
        "deepseek_v3",
        {"rope_parameters": {**YARN, "mscale": 1.0, "mscale_all_dim": 0.7}},
        "here they are 1 and 0.7",
    ),
    "halves": ("deepseek_v3", {"rope_interleave": False}, "only with rope_interleave: True"),
    "dense layers behind": (
        "glm4_moe_lite",
        {"mlp_layer_types": ["dense", "sparse", "dense", "sparse"]},
        "in front alone",
    ),
    "keys of several heads": ("dots1", {"num_key_value_heads": 3}, "own, and here 6 share 3"),
    "of mixtures, too": ("olmoe", {"num_key_value_heads": 3}, "own, and here 6 share 3"),
    "windows alone": (
        "olmo3",
        {"num_hidden_layers": 3, "layer_types": ["sliding_attention"] * 3},
        "none without in fewer than 4",
    ),
    "no biases": ("starcoder2", {"use_bias": False}, "only with use_bias: True"),
    "norms of heads": ("phi", {"qk_layernorm": True}, "only with qk_layernorm: False"),
    "biases of outputs": (
        "seed_oss",
        {"attention_out_bias": True},
        "only with attention_out_bias: False",
    ),
    "both ways": (
        "gemma3_text",
        {"use_bidirectional_attention": True},
        "only with use_bidirectional_attention: False",
    ),
    "an output matrix": (
        "cohere",
        {"tie_word_embeddings": False},
        "only with tie_word_embeddings: True",
    ),
    "each second layer": ("ernie4_5_moe", {"moe_layer_interval": 2}, "moe_layer_interval: 1"),
    "no experts at the end": ("ernie4_5_moe", {"moe_layer_end_index": 2}, "they end with layer 2"),
    "no convolution": ("lfm2", {"layer_types": ["full_attention"] * 4}, "both kinds alone"),
    "biases of convolutions": ("lfm2", {"conv_bias": True}, "only with conv_bias: False"),
    "a gate behind the norm": (
        "falcon_h1",
        {"mamba_norm_before_gate": True},
        "puts out behind its gate",
    ),
    "a least step": ("falcon_h1", {"time_step_limit": [0.1, math.inf]}, "time_step_limit"),
    "a largest step": ("falcon_h1", {"time_step_limit": [0.0, 3.0]}, "time_step_limit"),
    "no biases of taps": ("falcon_h1", {"mamba_conv_bias": False}, "mamba_conv_bias: True"),
    "a state that does not divide": ("falcon_h1", {"mamba_d_state": 6}, "6 does not divide"),
    "nor here": ("nemotron_h", {"ssm_state_size": 6}, "6 does not divide"),
    "experts of Nemotron-H": (
        "nemotron_h",
        {"layers_block_type": ["linear_attention", "full_attention", "moe", "mlp"]},
        "with experts are not written",
    ),
    "no attention": (
        "nemotron_h",
        {"layers_block_type": ["linear_attention", "mlp"] * 2},
        "state spaces and attention alone",
    ),
    "wide values": ("qwen3_next", {"linear_value_head_dim": 4}, "here they are 8 and 4"),
    "not each n-th": (
        "qwen3_next",
        {"layer_types": ["linear_attention", "full_attention", "full_attention"]},
        "each n-th of them",
    ),
    "not the last": (
        "qwen3_next",
        {"layer_types": ["full_attention", "linear_attention"] * 2},
        "each n-th of them",
    ),
    "experts of Gemma 4": ("gemma4_text", {"enable_moe_block": True}, "enable_moe_block: False"),
    "another vocabulary": (
        "gemma4_text",
        {"vocab_size_per_layer_input": 50},
        "they have 61 and 50",
    ),
    "windows everywhere": (
        "gemma4_text",
        {"layer_types": ["sliding_attention"] * 6},
        "layers of both kinds alone",
    ),
    "shared from others": (
        "gemma4_text",
        {
            "num_kv_shared_layers": 2,
            "layer_types": (["sliding_attention"] * 2 + ["full_attention"] * 2)
            + ["sliding_attention", "full_attention"],
        },
        "from the last two others",
    ),
    "rope of Gemma 4": (
        "gemma4_text",
        {
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 2.0},
                "sliding_attention": DEFAULT,
            }
        },
        "'linear' and 'default'",
    ),
    "experts in other layers": ("llama4_text", {"moe_layers": [0, 1]}, "in each 2th layer"),
    "no norms of queries": ("llama4_text", {"use_qk_norm": False}, "use_qk_norm: false"),
    "other chunks": (
        "llama4_text",
        {"attention_chunk_size": 4096, "max_position_embeddings": 16384},
        "attention_chunk_size: 8192",
    ),
    "rope in other layers": ("llama4_text", {"no_rope_layers": [1, 0, 1, 0]}, "each 4th layer"),
    "an odd part of heads": (
        "glm4",
        {"rope_parameters": {**DEFAULT, "partial_rotary_factor": 0.25}},
        "3 channels of a head rotate",
    ),
    "dense layers alone": ("glm4_moe", {"first_k_dense_replace": 4}, "all layers are dense"),
    "of latent attention": ("deepseek_v3", {"first_k_dense_replace": 4}, "all layers are dense"),
    "of LFM2": ("lfm2_moe", {"num_dense_layers": 4}, "all layers are dense"),
    "of ERNIE": ("ernie4_5_moe", {"moe_layer_start_index": 4}, "all layers are dense"),
    "of GLM 4 lite": ("glm4_moe_lite", {"mlp_layer_types": ["dense"] * 4}, "all layers are dense"),
    "scaled experts": ("lfm2_moe", {"routed_scaling_factor": 2.0}, "routed_scaling_factor: 1.0"),
}


@pytest.mark.parametrize("case", CHANGED)
def test_a_change_that_llama_cpp_would_not_compute_is_refused(case: str, tmp_path: Path) -> None:
    """Of a model that is written as it is."""
    model_type, change, words = CHANGED[case]
    own = next(more for kind, more in CASES.values() if kind == model_type)
    model = tiny(model_type, **own)
    assert why_not(fields_of(model)) == ""
    with pytest.raises(SourceError, match=words):
        write(tmp_path / "m.gguf", model, **change)
    assert not list(tmp_path.iterdir())


def test_an_older_file_numbers_the_layers_with_attention() -> None:
    fields = {"model_type": "lfm2", **BASE, "conv_L_cache": 3}
    assert why_not({**fields, "full_attn_idxs": [2]}) == ""
    assert "both kinds alone" in why_not({**fields, "full_attn_idxs": []})
    assert "both kinds alone" in why_not(fields)  # the class then has attention everywhere


def test_heads_that_must_fill_the_hidden_size(tmp_path: Path) -> None:
    model = tiny("olmo2", **WIDE)
    assert why_not(fields_of(model)) == ""
    assert "6 heads of 12 make 72 of 60" in why_not_sizes(fields_of(model))
    with pytest.raises(SourceError, match="72 of 60"):
        write(tmp_path / "m.gguf", model)


def test_a_weight_without_a_place_is_named(tmp_path: Path) -> None:
    model = tiny("qwen3")
    tensors = {**model.state_dict(), "model.layers.0.mlp.extra.weight": torch.ones(3, 3)}
    with pytest.raises(SourceError, match=r"layers\.0\.mlp\.extra\.weight.*no place"):
        write_stock(tmp_path / "m.gguf", fields_of(model), tensors, None, dtype="F32", name="Tiny")


@pytest.mark.parametrize(
    ("model_type", "more"),
    [("qwen2", {}), ("qwen3", {"head_dim": 128})],
)
def test_transformers_read_the_file_as_the_same_model(
    model_type: str, more: dict[str, Any], tmp_path: Path
) -> None:
    """Those whose header they read in full; they take heads of 128 for Qwen3 in any case, and no
    window for Gemma 2.
    """
    model = tiny(model_type, **more)
    write(tmp_path / "m.gguf", model)
    again: Any = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="m.gguf", dtype=torch.float32
    )
    assert again.config.model_type == model_type
    assert (logits_of(again) - logits_of(model)).abs().max() < 1e-5


def test_biases_that_transformers_would_drop_are_refused_as_a_source(tmp_path: Path) -> None:
    write(tmp_path / "m.gguf", tiny("qwen2", **WIDE))
    (tmp_path / "folder").mkdir()
    with pytest.raises(SourceError, match=r"attn_q\.bias"):
        convert(tmp_path / "m.gguf", tmp_path / "folder", label="x")

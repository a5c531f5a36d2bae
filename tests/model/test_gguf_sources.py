"""gguf files as sources: what transformers read as another model is refused, by its header."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFReader
from torch import nn

from effcompress.errors import SourceError
from effcompress.model.gguf.header import read_header
from effcompress.model.gguf.read import _open, convert
from effcompress.model.gguf.sources import READERS, require_readable, why_unreadable
from effcompress.model.source import config_of
from effcompress.spec import ModelSpec
from tests.model import by_llama_cpp
from tests.model.by_llama_cpp import logits_of
from tests.model.test_gguf_architectures import ALONE, CASES, HALF, Table, near, tiny, write

SQUARE: dict[str, Any] = {"head_dim": None}
GEMMA: dict[str, Any] = {"head_dim": 256, "query_pre_attn_scalar": 256, "sliding_window": 4}
"""The widths of the published models, of which transformers take what the header does not say."""
GEMMA3 = {**GEMMA, "head_dim": 12, "num_hidden_layers": 7}
QUARTER = {"hidden_size": 96, "head_dim": 16, "partial_rotary_factor": 0.25}
ROUTED: dict[str, Any] = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2}
SHARED = {"moe_intermediate_size": 1408, "shared_expert_intermediate_size": 5632}


def rope(theta: float, kind: str = "default", **more: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": theta, **more}}


READ: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama, wide, another base": ("llama", {"hidden_size": 60, "head_dim": 12, **rope(1e2)}),
    "qwen2": ("qwen2", rope(1e2)),
    "qwen3": ("qwen3", {"head_dim": 128, **rope(1e2)}),
    "qwen2_moe": ("qwen2_moe", {**ROUTED, **SHARED, "intermediate_size": 5632}),
    "qwen3_moe": (
        "qwen3_moe",
        {**ROUTED, "moe_intermediate_size": 768, "norm_topk_prob": True, "head_dim": 12},
    ),
    "phi3": ("phi3", {"vocab_size": 32100, **rope(1e2)}),
    "nemotron": ("nemotron", rope(1e2, partial_rotary_factor=0.5)),
    "gemma2": ("gemma2", GEMMA),
    "gemma3": ("gemma3_text", {**GEMMA, "num_hidden_layers": 7}),
    "starcoder2": ("starcoder2", {"sliding_window": None, "vocab_size": 49152}),
    "stablelm": ("stablelm", {**QUARTER, "use_qkv_bias": True, "use_parallel_residual": True}),
    "gpt2": ("gpt2", {**ALONE, "vocab_size": 50257, "max_position_embeddings": 1024}),
}
LLAMA3 = {"factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
OTHERWISE: dict[str, tuple[str, dict[str, Any], str]] = {
    "llama, linear rope": ("llama", rope(1e4, "linear", factor=4.0), "rope.scaling.type: linear"),
    "llama, llama3": (
        "llama",
        rope(1e4, "llama3", **LLAMA3, original_max_position_embeddings=32),
        "rope_freqs.weight, the divisors of rope",
    ),
    "qwen2, biases": ("qwen2", {"head_dim": 12, "hidden_size": 60}, r"attn_\w\.bias of a llama"),
    "qwen3, heads": ("qwen3", {"head_dim": 12}, "attention.key_length: 128 .* this states 12"),
    "phi3, half": (
        "phi3",
        {"vocab_size": 32100, **rope(1e4, partial_rotary_factor=0.5)},
        "rope.dimension_count: 8 .* this states 4",
    ),
    "nemotron, a quarter": ("nemotron", {**QUARTER, **rope(1e4, partial_rotary_factor=0.25)}, "8 "),
    "gemma2, scale": ("gemma2", {**GEMMA, "head_dim": 12}, "the root of 256 in every gemma2 file"),
    "gemma2, 46 layers": ("gemma2", {**GEMMA, "num_hidden_layers": 46}, "this model by that of 8"),
    "gemma2, caps": ("gemma2", {**GEMMA, "attn_logit_softcapping": None}, "attn_logit_softcapping"),
    "gemma3, scale": ("gemma3_text", GEMMA3, "and this model by that of 12"),
    "starcoder2, base": (
        "starcoder2",
        {"sliding_window": None, "vocab_size": 49152, **rope(1e2)},
        "rope.freq_base: 10000 for every starcoder2 file, and this states 100",
    ),
    "stablelm, half": ("stablelm", HALF, "rope.dimension_count: 2 .* this states 4"),
    "stablelm, base": ("stablelm", {**QUARTER, **rope(1e2)}, "rope.freq_base"),
    "stablelm, norms": (
        "stablelm",
        {**QUARTER, "qk_layernorm": True},
        "attn_[qk]_norm.weight of a",
    ),
}


def made(path: Path, model_type: str, more: dict[str, Any]) -> Any:
    """A tiny model, written to a file."""
    model = tiny(model_type, **more)
    if model_type == "llama":
        c = model.config
        layer = by_llama_cpp.LayerWidths(40, c.num_attention_heads, c.num_key_value_heads)
        by_llama_cpp.write(path, model, (layer,) * c.num_hidden_layers)
    else:
        write(path, model)
    return model


def apart(path: Path, model: Any) -> float:
    """How far transformers' logits of the file are from the model's, with llama.cpp's GELU."""
    again, missing = _open(path)
    assert not missing
    for module in list(again.modules()):
        for name, child in module.named_children():
            if "GELU" in type(child).__name__ and isinstance(child, nn.Module):
                setattr(module, name, Table())
    return float((logits_of(again) - logits_of(model)).abs().max())


@pytest.mark.parametrize("case", READ)
def test_what_is_read_is_the_same_model(case: str, tmp_path: Path) -> None:
    model = made(tmp_path / "m.gguf", *READ[case])
    require_readable(tmp_path / "m.gguf")
    assert apart(tmp_path / "m.gguf", model) < near(model)


def test_every_architecture_has_a_case() -> None:
    assert {case.partition(",")[0] for case in READ} == {
        {"qwen2moe": "qwen2_moe", "qwen3moe": "qwen3_moe"}.get(name, name) for name in READERS
    }


@pytest.mark.parametrize("case", OTHERWISE)
def test_what_they_read_as_another_model_is_refused(case: str, tmp_path: Path) -> None:
    """And without the refusal it would be another model, in silence."""
    model_type, more, words = OTHERWISE[case]
    model = made(tmp_path / "m.gguf", model_type, more)
    (tmp_path / "folder").mkdir()
    with pytest.raises(SourceError, match=words) as caught:
        convert(tmp_path / "m.gguf", tmp_path / "folder", label="x")
    assert "safetensors" in str(caught.value.fix)
    if case != "qwen3, heads":  # loud by itself: another shape
        assert apart(tmp_path / "m.gguf", model) > 100 * near(model)


@pytest.mark.parametrize("case", CASES)
def test_what_is_written_is_read_back_or_refused(case: str, tmp_path: Path) -> None:
    """Every model type that we write."""
    model = made(tmp_path / "m.gguf", *CASES[case])
    if why_unreadable(read_header(tmp_path / "m.gguf")):
        return
    try:
        found = apart(tmp_path / "m.gguf", model)
    except (RuntimeError, AssertionError, ValueError):  # it says itself that it cannot
        return
    assert found < near(model)


def test_the_header_is_what_gguf_reads(tmp_path: Path, tiny_gguf: Path) -> None:
    write(tmp_path / "m.gguf", tiny("gemma3_text", num_hidden_layers=6))
    for file in (tmp_path / "m.gguf", tiny_gguf):
        whole, found = GGUFReader(file), read_header(file)
        assert {t.name: tuple(reversed(t.shape.tolist())) for t in whole.tensors} == found.tensors
        stated = {k: f.contents() for k, f in whole.fields.items() if not k.startswith("GGUF.")}
        texts = {k for k, v in stated.items() if isinstance(v, list) and isinstance(v[0], str)}
        assert found.values == {k: v for k, v in stated.items() if k not in texts}
        assert texts <= {"tokenizer.ggml.tokens", "tokenizer.ggml.merges"}


def test_a_file_that_ends_in_its_header_is_damaged(tmp_path: Path, tiny_gguf: Path) -> None:
    for size in (6, 30, 900):
        (tmp_path / "cut.gguf").write_bytes(tiny_gguf.read_bytes()[:size])
        with pytest.raises(SourceError, match=r"cut\.gguf: this gguf file is damaged"):
            read_header(tmp_path / "cut.gguf")


def test_check_finds_it_without_torch(tmp_path: Path) -> None:
    model_type, more, words = OTHERWISE["stablelm, half"]
    made(tmp_path / "m.gguf", model_type, more)
    spec = ModelSpec(gguf=tmp_path / "m.gguf", tokenizer="bytes")
    with pytest.raises(SourceError, match=words):
        config_of(spec, tmp_path)
    code = "import sys; from pathlib import Path; import effcompress.model.source as s; "
    code += "from effcompress.spec import ModelSpec\n"
    code += f"try: s.config_of(ModelSpec(gguf=Path({str(tmp_path / 'm.gguf')!r})))\n"
    code += "except s.SourceError: print('torch' in sys.modules, 'gguf' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]

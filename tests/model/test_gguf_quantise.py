"""Quantised gguf files: what they hold is what transformers and llama.cpp read out of them."""

from __future__ import annotations

import copy
import importlib.util
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGUFReader
from transformers import AutoModelForCausalLM

from effcompress.errors import SourceError
from effcompress.model.gguf import quantise as module
from effcompress.model.gguf.quantise import OWN, quantise, read_back, require_quantiser
from effcompress.model.gguf.write import LayerWidths
from tests.model.by_llama_cpp import ask, logits_of, tiny, write
from tests.model.test_gguf_architectures import CASES
from tests.model.test_gguf_architectures import tiny as of_type
from tests.model.test_gguf_architectures import write as write_type

HEADS, KV = 8, 4


def wide(width: int, ffn: int, **more: Any) -> Any:
    fields = {"hidden_size": width, "intermediate_size": ffn, "head_dim": width // HEADS}
    heads = {"num_attention_heads": HEADS, "num_key_value_heads": KV}
    return tiny(**fields, **heads, **more)


def written(path: Path, model: Any, ffn: int) -> Path:
    write(path, model, [LayerWidths(ffn, HEADS, KV)] * 3)
    return path


def restored(model: Any, plain: Path, quantised: Path) -> Any:
    """The model with the values that the file holds."""
    other = copy.deepcopy(model)
    held = dict(other.named_parameters())
    with torch.no_grad():
        for name, values in read_back(held, plain, quantised):
            held[name].copy_(values)
    return other


@pytest.mark.parametrize("name", OWN)
def test_the_model_gets_what_transformers_reads_out_of_the_file(name: str, tmp_path: Path) -> None:
    model = wide(64, 96)
    plain = written(tmp_path / "plain.gguf", model, 96)
    kinds = quantise(plain, tmp_path / "q.gguf", name)
    ours = restored(model, plain, tmp_path / "q.gguf")
    theirs = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="q.gguf", dtype=torch.float32, local_files_only=True
    )
    for path, p in theirs.named_parameters():
        torch.testing.assert_close(ours.get_parameter(path), p, rtol=0, atol=1e-6)
    moved = ours.model.layers[1].mlp.down_proj.weight - model.model.layers[1].mlp.down_proj.weight
    assert (
        0
        < float(moved.detach().abs().max())
        < {"Q8_0": 0.01, "Q5_0": 0.06, "Q5_1": 0.06}.get(name, 0.1)
    )
    matrices = 3 * (64 * 64 * 2 + 64 * 32 * 2 + 3 * 96 * 64)
    embedding = 61 * 64
    assert kinds[name] == matrices + (embedding if name == "Q8_0" else 0)
    assert kinds["F32"] == sum(p.numel() for p in model.parameters() if p.dim() == 1)
    assert kinds["Q8_0"] == embedding + (matrices if name == "Q8_0" else 0), "the output matrix"


def test_an_output_matrix_of_its_own_is_the_finer_one(tmp_path: Path) -> None:
    plain = written(tmp_path / "plain.gguf", wide(64, 96, tie_word_embeddings=False), 96)
    quantise(plain, tmp_path / "q.gguf", "Q4_0")
    kinds = {t.name: t.tensor_type.name for t in GGUFReader(tmp_path / "q.gguf").tensors}
    assert kinds["output.weight"] == "Q8_0" and kinds["token_embd.weight"] == "Q4_0"
    assert kinds["output_norm.weight"] == "F32"


def test_rows_that_do_not_divide_stay_wide(tmp_path: Path) -> None:
    model = wide(64, 40)
    plain = written(tmp_path / "plain.gguf", model, 40)
    kinds = quantise(plain, tmp_path / "q.gguf", "Q8_0")
    assert kinds["F16"] == 3 * 64 * 40, "the rows of down_proj have 40 weights"
    ours = restored(model, plain, tmp_path / "q.gguf")
    half = model.model.layers[0].mlp.down_proj.weight.half().float()
    assert torch.equal(ours.model.layers[0].mlp.down_proj.weight, half)


def rms(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).square().mean().sqrt())


def test_llama_cpp_reads_the_file_and_agrees(tmp_path: Path) -> None:
    model = wide(64, 96)
    plain = written(tmp_path / "plain.gguf", model, 96)
    quantise(plain, tmp_path / "q.gguf", "Q4_0")
    found = torch.tensor(ask(tmp_path / "q.gguf")["steps"])
    ours, full = logits_of(restored(model, plain, tmp_path / "q.gguf")), logits_of(model)
    # Not equal: llama.cpp also quantises what a matrix reads.
    assert rms(found, ours) < rms(found, full) / 3
    quantise(plain, tmp_path / "fine.gguf", "Q8_0")
    fine = logits_of(restored(model, plain, tmp_path / "fine.gguf"))
    assert rms(fine, full) < rms(ours, full) / 4


@pytest.mark.skipif(not importlib.util.find_spec("cyllama"), reason="llama.cpp is not installed")
def test_mixtures_are_made_by_llama_cpp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # no llama-quantize
    model = wide(256, 256)
    plain = written(tmp_path / "plain.gguf", model, 256)
    kinds = quantise(plain, tmp_path / "q.gguf", "Q4_K_M")
    assert kinds["Q4_K"] > sum(kinds.values()) / 2 and kinds["Q6_K"] > 0
    found = torch.tensor(ask(tmp_path / "q.gguf")["steps"])
    ours = logits_of(restored(model, plain, tmp_path / "q.gguf"))
    assert rms(found, ours) < rms(found, logits_of(model)) / 3


@pytest.mark.skipif(not importlib.util.find_spec("cyllama"), reason="llama.cpp is not installed")
def test_llama_quantize_on_the_path_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A script of that name, which calls the library as the program does."""
    tool = tmp_path / "bin" / "llama-quantize"
    tool.parent.mkdir()
    numbers = {"Q4_K_M": 15}
    tool.write_text(
        f"#!{sys.executable}\nimport sys\n"
        f"sys.argv[3] = {numbers!r}[sys.argv[3]]\n{module._CALL}"
        f"open({str(tmp_path / 'called')!r}, 'w').close()\n"
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tool.parent))
    plain = written(tmp_path / "plain.gguf", wide(256, 256), 256)
    assert quantise(plain, tmp_path / "q.gguf", "Q4_K_M")["Q4_K"]
    assert (tmp_path / "called").exists()


def test_what_nothing_here_makes_is_refused_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _name: None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    for name in OWN:
        require_quantiser(name)
    with pytest.raises(SourceError, match="own quantiser, which is not") as caught:
        require_quantiser("Q4_K_M")
    assert "llama-quantize" in (caught.value.fix or "") and "Q8_0" in (caught.value.fix or "")


def test_a_row_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    model = wide(64, 96)
    plain = written(tmp_path / "plain.gguf", model, 96)
    quantise(plain, tmp_path / "q.gguf", "Q8_0")
    model.model.layers[2].self_attn.v_proj.weight.data[3, 5] += 1
    with pytest.raises(Exception, match=r"layers\.2\.self_attn\.v_proj\.weight"):
        restored(model, plain, tmp_path / "q.gguf")


@pytest.mark.parametrize("case", ["gpt_oss", "deepseek_v3", "lfm2"])
def test_what_is_laid_out_otherwise_is_found_again(case: str, tmp_path: Path) -> None:
    """Fused, turned and interleaved matrices, each within half a step of Q8_0."""
    model_type, own = CASES[case]
    more = {**own, "hidden_size": 96, "num_attention_heads": 12, "head_dim": 8}
    more |= {"intermediate_size": 32, "moe_intermediate_size": 32, "kv_lora_rank": 32}
    more |= {"q_lora_rank": 32, "qk_nope_head_dim": 32, "num_key_value_heads": 12}
    model = of_type(model_type, **more)
    write_type(tmp_path / "plain.gguf", model)
    quantise(tmp_path / "plain.gguf", tmp_path / "q.gguf", "Q8_0")
    ours, moved = restored(model, tmp_path / "plain.gguf", tmp_path / "q.gguf"), 0
    for name, p in model.named_parameters():
        apart = (ours.get_parameter(name) - p).abs().max()
        assert apart <= p.abs().max() / 200, name
        moved += int(apart > 0)
    assert moved > 10

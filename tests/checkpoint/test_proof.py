"""The proof must fail whenever the folder is not the model."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from effcompress.checkpoint import export, proof, prove
from effcompress.errors import RunError
from effcompress.model.containers import container
from effcompress.model.families import LLAMA
from effcompress.model.tokenizer import ByteTokenizer
from tests.conftest import shape, tiny, tokens

WIDTHS = {"hidden": 48, "ffn": 40, "attention": 3, "query": 2}


def exported(folder: Path, **widths: int) -> nn.Module:
    """A tiny model written as a folder; the model in memory comes back."""
    wide = {**WIDTHS, **widths}
    config = shape("gqa_tied", vocab_size=258)
    fields = LLAMA.resize(config, wide)
    model = tiny("gqa_tied", **{**config, **fields})
    shapes = {n: tuple(p.shape) for n, p in model.named_parameters()}
    built = container(LLAMA, {**model.config.to_dict(), "rms_norm_eps": 1e-5}, shapes)
    for module in model.modules():
        if hasattr(module, "variance_epsilon"):
            module.variance_epsilon = 1e-5
    params = {n: p.detach() for n, p in model.named_parameters()}
    folder.mkdir(exist_ok=True)
    size = export(built.skeleton, params, ByteTokenizer().save, folder)
    assert size == sum(f.stat().st_size for f in folder.iterdir())
    return model


@pytest.mark.fresh_process
def test_a_good_folder_is_proven(tmp_path: Path) -> None:
    model = exported(tmp_path / "out")
    proof = prove(tmp_path / "out", model, tokens(2, 10))
    assert proof.max_logit_difference <= 1e-5 and proof.tokens_equal and proof.cache_equal
    names = {f.name for f in (tmp_path / "out").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "generation_config.json"} <= names
    assert not [n for n in names if n.endswith((".bin", ".pt", ".pkl"))]


def test_changed_weights_fail(tmp_path: Path) -> None:
    model = exported(tmp_path)
    file = tmp_path / "model.safetensors"
    weights = {k: v.clone() for k, v in load_file(file).items()}
    weights["model.norm.weight"][3] += 0.01
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(RunError, match="logits differ by"):
        prove(tmp_path, model, tokens(2, 10))


def test_rounding_is_no_difference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Channels in another order: the same function, other sums. One weight: another function."""
    model = exported(tmp_path)
    file = tmp_path / "model.safetensors"
    weights = {k: v.clone() for k, v in load_file(file).items()}
    for name, dim in (("gate_proj", 0), ("up_proj", 0), ("down_proj", 1)):
        key = f"model.layers.0.mlp.{name}.weight"
        weights[key] = weights[key].flip(dim).contiguous()
    save_file(weights, file, metadata={"format": "pt"})
    monkeypatch.setattr(proof, "TOLERANCE", 0.0)
    shown = prove(tmp_path, model, tokens(2, 10))
    assert 0 < shown.max_logit_difference <= shown.tolerance < 2e-5
    weights["model.layers.0.mlp.down_proj.weight"][0, 0] += 0.01
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(RunError, match="logits differ by"):
        prove(tmp_path, model, tokens(2, 10))


@pytest.mark.fresh_process
def test_truncated_file_fails(tmp_path: Path) -> None:
    model = exported(tmp_path)
    file = tmp_path / "model.safetensors"
    os.truncate(file, file.stat().st_size - 100)
    with pytest.raises(RunError, match="does not load in a fresh process"):
        prove(tmp_path, model, tokens(2, 10))


@pytest.mark.fresh_process
def test_missing_tensor_fails(tmp_path: Path) -> None:
    model = exported(tmp_path)
    file = tmp_path / "model.safetensors"
    weights = {k: v.clone() for k, v in load_file(file).items()}
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(RunError, match="does not load cleanly"):
        prove(tmp_path, model, tokens(2, 10))


def test_a_shape_that_does_not_fit_the_class_is_named(tmp_path: Path) -> None:
    shapes = {n: tuple(p.shape) for n, p in tiny("gqa_tied").named_parameters()}
    built = container(LLAMA, tiny("gqa_tied").config.to_dict(), shapes)
    params = {n: p.detach() for n, p in tiny("gqa_tied").named_parameters()}
    params["model.norm.weight"] = torch.zeros(47)
    with pytest.raises(RunError, match=r"model\.norm\.weight: shape \(47,\)"):
        export(built.skeleton, params, ByteTokenizer().save, tmp_path)
    assert list(tmp_path.iterdir()) == []

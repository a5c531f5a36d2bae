"""The proof must fail whenever the folder is not the model."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoTokenizer, GenerationConfig

from effcompress.checkpoint import proof, prove, text_settings
from effcompress.errors import RunError
from effcompress.export.weights import Weights, unchanged
from effcompress.export.write import save
from effcompress.model.exact import container
from effcompress.model.families.llama import LLAMA
from effcompress.model.tokenizer import ByteTokenizer
from tests.conftest import shape, tiny, tokens
from tests.proving import FRESH, in_this_process

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
    params = Weights({n: unchanged(p) for n, p in model.named_parameters()})
    folder.mkdir(exist_ok=True)
    written = save(built.skeleton, params, ByteTokenizer().save, folder)
    assert written.bytes == sum(f.stat().st_size for f in folder.iterdir())
    return model


def test_the_seconds_of_a_proof_by_hand() -> None:
    """2 x 64 tokens in half a second: 16 greedy rows of 64 to 79 tokens are 8.9 such passes."""
    ids, gigabyte = torch.zeros(2, 64), 10**9
    greedy = (64 + 16) / 128
    wanted = 6 + 2 + 0.5 * (1 + 2 / 2 + greedy + greedy + 1 / 2 + 16 / 8)
    assert (
        proof.forecast(0.5, ids, gigabyte) == pytest.approx(wanted) == pytest.approx(10.9, abs=0.1)
    )


def test_what_is_left_is_told_before_the_fresh_process(tmp_path: Path) -> None:
    model, told = exported(tmp_path), list[float]()
    prove(tmp_path, model, tokens(2, 10), expect=told.append)
    assert len(told) == 1 and 6 < told[0] < 600


@pytest.mark.fresh_process
def test_a_good_folder_is_proven(tmp_path: Path) -> None:
    model = exported(tmp_path / "out")
    shown = prove(tmp_path / "out", model, tokens(2, 10))
    assert shown.max_logit_difference <= 1e-5 and shown.tokens_equal and shown.cache_equal
    assert shown.tolerance == 1e-5
    # What other tests compute in their own process is what the fresh one answers.
    fresh, here = (
        ask(tmp_path / "out", tokens(2, 10), "stock") for ask in (FRESH, in_this_process)
    )
    torch.testing.assert_close(here["logits_BTV"], fresh["logits_BTV"], rtol=0, atol=1e-6)
    assert torch.equal(here["cached_T"], fresh["cached_T"])
    names = {f.name for f in (tmp_path / "out").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "generation_config.json"} <= names
    assert not [n for n in names if n.endswith((".bin", ".pt", ".pkl"))]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("nothing", ""),
        ("a logit", "logits differ by"),
        ("no number", "logits differ by nan"),
        ("tokens", "greedy tokens equal: False, with and without cache equal: True"),
        ("cache", "greedy tokens equal: True, with and without cache equal: False"),
    ],
)
def test_every_answer_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str, says: str
) -> None:
    """Ten times the tolerance in one logit, or one token, and the folder is not the model."""
    model = exported(tmp_path)
    found = in_this_process(tmp_path, tokens(2, 10), False)
    if change in ("a logit", "no number"):
        found["logits_BTV"][1, 3, 7] += 1e-4 if change == "a logit" else torch.nan
    if change == "tokens":
        found["cached_T"][-1] += 1
    if change in ("tokens", "cache"):
        found["uncached_T"][-1] += 1
    monkeypatch.setattr(proof, "in_fresh_process", lambda *_: found)
    if not says:
        prove(tmp_path, model, tokens(2, 10))
        return
    with pytest.raises(RunError, match=says):
        prove(tmp_path, model, tokens(2, 10))


@pytest.mark.fresh_process
@pytest.mark.parametrize("policy", ["", "ACTIVE"])
def test_the_fresh_process_has_as_many_threads_and_they_wait_without_spinning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy: str
) -> None:
    """Spinning ones took a busy machine's time three times over; a user's own policy stays."""
    given: dict[str, str] = {}

    def started(command: list[str], *, env: dict[str, str], **_how: Any) -> CompletedProcess[str]:
        given.update(env)
        return CompletedProcess(command, 1, "", "as far as it goes")

    monkeypatch.setattr(proof.subprocess, "run", started)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    if policy:
        monkeypatch.setenv("OMP_WAIT_POLICY", policy)
    with pytest.raises(RunError, match="as far as it goes"):
        FRESH(tmp_path, tokens(2, 10), "stock")
    assert given["OMP_NUM_THREADS"] == "3"
    assert given["OMP_WAIT_POLICY"] == (policy or "PASSIVE")


@pytest.mark.parametrize("where", ["this process", "the fresh one"])
def test_no_space_for_the_files_of_a_proof(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    said = "Error while serializing: I/O error: No space left on device (os error 28)"

    def full(*_: Any, **__: Any) -> CompletedProcess[str]:
        if where == "this process":
            raise SafetensorError(said)
        return CompletedProcess([], 1, "", f"Traceback\nsafetensors_rust.SafetensorError: {said}\n")

    if where == "this process":
        monkeypatch.setattr(proof, "save_file", full)
    monkeypatch.setattr(proof.subprocess, "run", full)
    with pytest.raises(RunError, match="has no space for its files") as caught:
        FRESH(tmp_path, tokens(2, 10), "stock")
    assert "TMPDIR" in str(caught.value.fix)


def test_a_process_that_has_the_package_is_no_fresh_one(tmp_path: Path) -> None:
    exported(tmp_path / "out")
    source = tmp_path / "in.safetensors"
    save_file({"ids_BT": tokens(2, 10)}, source)
    with pytest.raises(SystemExit, match="not a fresh process: effcompress"):
        proof.script.main("stock", str(tmp_path / "out"), str(source), str(tmp_path / "answers"))
    assert not (tmp_path / "answers").exists()


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
    params = Weights({n: unchanged(p) for n, p in tiny("gqa_tied").named_parameters()})
    params.made["model.norm.weight"] = unchanged(torch.zeros(47))
    with pytest.raises(RunError, match=r"model\.norm\.weight: shape \(47,\)"):
        save(built.skeleton, params, ByteTokenizer().save, tmp_path)
    assert list(tmp_path.iterdir()) == []


def _edited(name: str, **change: object) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps({**json.loads(path.read_text()), **change}))

    return edit


def _other_template(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ messages }}!")


def _lost_template(folder: Path) -> None:
    shutil.rmtree(folder / "additional_chat_templates")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda _: None, ""),
        (_other_template, "tokenizer: chat template"),
        (_lost_template, "tokenizer: chat template"),
        (_edited("tokenizer_config.json", eos_token="a"), "tokenizer: special tokens"),
        (_edited("generation_config.json", temperature=0.5), "config: temperature was 0.7, is 0.5"),
        (_edited("generation_config.json", eos_token_id=[2, 5]), "config: eos_token_id was"),
    ],
)
def test_a_folder_that_talks_otherwise_is_none(
    tmp_path: Path, change: Callable[[Path], None], says: str
) -> None:
    """Equal logits are not enough: templates, special tokens and generation config are the
    source's.
    """
    model: Any = exported(tmp_path)
    backend: Any = AutoTokenizer.from_pretrained(tmp_path)
    backend.chat_template = {"default": "{{ messages }}", "tool_use": "{{ tools }}"}
    backend.save_pretrained(tmp_path)
    model.generation_config = GenerationConfig(eos_token_id=2, do_sample=True, temperature=0.7)
    model.generation_config.save_pretrained(tmp_path)
    wanted = text_settings(model.generation_config, backend)
    change(tmp_path)
    if not says:
        prove(tmp_path, model, tokens(2, 10), text_settings=wanted)
        backend.chat_template = {"default": "{{ messages }}"}
        one = text_settings(model.generation_config, backend)["tokenizer"]["chat template"]
        assert one == "{{ messages }}", "one template of the name `default` is stored as text"
        return
    with pytest.raises(RunError, match=says):
        prove(tmp_path, model, tokens(2, 10), text_settings=wanted)

"""``effcompress export --for``: the form that a software loads, and the reasons."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from effcompress import load_recipe, run
from effcompress.cli import main
from effcompress.commands.export import export
from effcompress.errors import SourceError
from tests.runner.toys import recipe

UNEQUAL = ["prune.space=[{name: ffn, scope: global}]", "prune.target={keep: 85%}"]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose layers end with different widths."""
    folder = tmp_path_factory.mktemp("software")
    changes = [*UNEQUAL, "prune.schedule={name: once, at: 256}", "export.form=exact"]
    path = recipe(folder, tokens=512)
    run(load_recipe(path, changes), output=folder / "out")
    return folder / "out"


def typed(*words: str) -> int:
    with pytest.raises(SystemExit) as exited:
        main([*words])
    return int(exited.value.code or 0)


def test_a_server_gets_the_stock_class_and_hears_why(
    done: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert len({w for _, w in _ffn(done)}) > 1, "the toy should have unequal layers"
    assert typed("export", str(done), "--for", "vllm", "--json") == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["form"] == "padded" and answer["for"] == "vllm"
    said = " ".join(answer["because"])
    assert said.startswith("For vLLM: padded.") and "Not uniform: layers differ" in said
    assert "Not exact: vLLM has a backend" in said and "Not gguf" in said
    assert answer["start"] == f"vllm serve {done / 'export-padded'}"
    module = AutoModelForCausalLM.from_pretrained(done / "export-padded")  # no trust_remote_code
    with torch.no_grad():
        assert module(torch.arange(8)[None]).logits.isfinite().all()


def _ffn(done: Path) -> list[tuple[str, int]]:
    lines = (done / "metrics.jsonl").read_text().splitlines()
    (end,) = (e for e in map(json.loads, lines) if e["event"] == "end")
    return [(name, width) for name, width in end["widths"].items() if name.startswith("ffn.")]


def test_what_was_not_tried_is_said_to_be_so(done: Path, tmp_path: Path) -> None:
    answer = export(done, software="sglang", output=tmp_path / "served")
    assert answer.notes[-1].endswith("(not tried here)") and "sglang.launch_server" in str(answer)
    answer = export(done, software="transformers", output=tmp_path / "plain")
    assert "not tried" not in " ".join(answer.notes)


def test_llama_cpp_gets_a_file(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert typed("export", str(done), "--for", "llama.cpp") == 0
    assert "For llama.cpp: gguf." in capsys.readouterr().out
    assert (done / "toy.gguf").read_bytes()[:4] == b"GGUF"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "say in which form"),
        (("--as", "uniform", "--for", "vllm"), "two answers to one question"),
        (("--for", "vllm", "--quantise", "Q8_0"), "only gguf files are quantised"),
    ],
)
def test_one_of_both_is_given(
    done: Path, words: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert typed("export", str(done), *words) == 2
    assert said in capsys.readouterr().err


def test_no_form_at_all_is_refused_with_every_reason(
    done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from effcompress.estimate import serving

    monkeypatch.setattr(serving, "why_not", lambda _config: "llama.cpp has no such model")
    with pytest.raises(SourceError, match="loads no form of this model") as caught:
        export(done, software="llama.cpp", output=tmp_path / "m.gguf")
    assert "not gguf: llama.cpp has no such model" in str(caught.value)
    assert "not uniform: llama.cpp reads gguf files" in str(caught.value)
    assert not (tmp_path / "m.gguf").exists()

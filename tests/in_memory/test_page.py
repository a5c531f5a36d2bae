"""The page and the notebook run as they are, on a tiny random model."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import effcompress as ec
from effcompress.model.tokenizer import ByteTokenizer
from tests.conftest import tiny

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.filterwarnings("ignore")
def test_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tiny("gqa_tied", vocab_size=258).save_pretrained("model")
    ByteTokenizer().save(Path("model"))
    Path("text.txt").write_text("\n\n".join(f"line {n} of some text" for n in range(60)))
    page = (DOCS / "python.md").read_text()
    names: dict[str, Any] = {}
    seen: list[ec.PruneResult] = []
    for block in re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL):
        exec(block, names)
        seen.append(names.get("result"))
    sizes = [r.after.params / r.before.params for r in (seen[1], seen[3], seen[4])]
    assert sizes == pytest.approx([0.8, 0.9, 0.7], rel=0.005)
    trained = names["callback"].result
    assert trained.after.params / trained.before.params == pytest.approx(0.8, rel=0.005)
    assert len(trained.cuts) > 2 and not trained.warnings
    loaded = AutoModelForCausalLM.from_pretrained(names["saved"].folder)
    assert sum(p.numel() for p in loaded.parameters()) == seen[1].after.params
    report: ec.Report = names["report"]
    assert report.after.params < report.before.params == 50_736
    assert {*report.before.perplexity} == {"own"} == {*report.after.perplexity}
    left = report.after.shape["intermediate_size"]
    assert sum(left) < 3 * 40 and report.before.shape["intermediate_size"] == 40
    assert report.after.perplexity == report.perplexity


def test_the_notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cells = json.loads((DOCS / "python.ipynb").read_text())["cells"]
    names: dict[str, Any] = {}
    shown = []
    torch.manual_seed(0)
    for cell in cells:
        if cell["cell_type"] == "code":
            *body, last = ast.parse("".join(cell["source"])).body
            assert isinstance(last, ast.Expr)
            exec(compile(ast.Module(body, []), "cell", "exec"), names)
            shown.append(eval(compile(ast.Expression(last.value), "cell", "eval"), names))
    groups, result, saved = shown
    assert "<table>" in groups._repr_html_()
    assert result._repr_html_().count("<svg") == len(result.pictures()) >= 2
    assert saved.form == "exact" and (tmp_path / "smaller" / "config.json").exists()

"""Declarations from plugin files: those that tracing writes are used as they are, to the end of a
run; those that are wrong are refused with file and line.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from effcompress import load_recipe, run
from effcompress.errors import PluginError, SourceError
from effcompress.estimate.inspect import inspect, template_of
from effcompress.groups.tracing import trace
from effcompress.model import families
from effcompress.model.modeling_pruned import silent
from effcompress.model.small import build
from effcompress.network.axis_map import family_for
from effcompress.registry import REGISTRY
from tests.groups.test_traced_families import COMMON, config_of
from tests.runner.toys import events, texts

RECIPE = """\
name: toy
model: {{folder: model, tokenizer: bytes}}
plugins: [mine.py]
data:
  sequence_length: 24
  domains:
    letters: {{jsonl: letters.jsonl, holdout: 20%}}
    numbers: {{jsonl: numbers.jsonl, holdout: 20%}}
prune:
  target: {{keep: 90%}}
  space: [{space}]
  criterion: magnitude
  measure: {{source: calibration, sequences: 4}}
  schedule: {{name: once, at: 0}}
evaluate: {{sequences: 2, new_tokens: 4}}
export: {{form: exact}}
"""
SOURCES: dict[str, dict[str, Any]] = {
    name: config_of(name) for name in ("apertus", "qwen3_next", "deepseek_v3", "falcon_h1")
}
SOURCES |= {name: {"model_type": name, **COMMON} for name in ("granite", "phi")}
SOURCES["phi"].pop("head_dim")
HELIUM = {"model_type": "helium", **COMMON}
WIDTHS = "{name: ffn, scope: per_layer}, {name: attention, scope: per_layer}, hidden"


@pytest.fixture(autouse=True)
def _in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tracing and proofs run here, and no architecture of these tests is declared."""
    others = [f for f in families.FAMILIES if not SOURCES.keys() & {*f.model_types}]
    monkeypatch.setattr(families, "FAMILIES", tuple(others))
    torch.set_num_threads(1)

    def report(question: Mapping[str, Any], *_: Any) -> trace.Report:
        said: trace.Report = {}
        state = torch.get_rng_state()
        trace.answer(question, build, silent, said.update)
        torch.set_rng_state(state)
        return said

    monkeypatch.setattr(trace, "_report", report)


def folder_of(model_type: str, folder: Path) -> Path:
    torch.manual_seed(0)
    model: Any = build({**SOURCES, "helium": HELIUM}[model_type], "given")
    for p in model.parameters():
        p.data.uniform_(0.5, 1.5) if p.dim() == 1 else p.data.normal_(0, 0.2)
    model.save_pretrained(folder / "model")
    return folder / "model"


def use(text: str, folder: Path, space: str) -> None:
    """Writes a plugin file, inspects the model with it, and runs a recipe to the end."""
    (folder / "mine.py").write_text(text)
    texts(folder)
    (folder / "toy.yaml").write_text(RECIPE.format(space=space))
    loaded = load_recipe(folder / "toy.yaml")
    seen: Any = inspect(folder / "model").data
    assert not seen["traced"] and {"ffn", "attention", "hidden"} <= seen["kinds"].keys()
    run(loaded, output=folder / "out")
    (end,), (begin,) = (events(folder / "out", kind) for kind in ("end", "run"))
    assert end["status"] == "success"
    assert end["params"] == pytest.approx(0.9 * begin["params"], rel=0.005)


@pytest.mark.parametrize("model_type", SOURCES)
def test_the_written_file_is_used_as_it_is(model_type: str, tmp_path: Path) -> None:
    use(
        template_of(folder_of(model_type, tmp_path)),
        tmp_path,
        f"{WIDTHS}, {{name: layer, minimum: 2}}",
    )


def test_the_declaration_in_the_docs_is_used_as_it_is(tmp_path: Path) -> None:
    page = Path(__file__).parents[2] / "docs" / "plugins.md"
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL)
    (text,) = (block for block in blocks if "@family" in block)
    assert len(text.splitlines()) <= 40
    folder_of("helium", tmp_path)
    use(text, tmp_path, f"{WIDTHS}, {{name: layer, minimum: 2}}, mlp_block")


# --------------------------------------------------------------- declarations that are not true


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trace, "_report", _traced_once)
        return template_of(folder_of("apertus", tmp_path_factory.mktemp("apertus")))


def _traced_once(question: Mapping[str, Any], *_: Any) -> trace.Report:
    said: trace.Report = {}
    trace.answer(question, build, silent, said.update)
    return said


def refused(text: str, tmp_path: Path) -> PluginError:
    (tmp_path / "mine.py").write_text(text)
    REGISTRY.load_file(tmp_path / "mine.py")
    with pytest.raises(PluginError) as caught:
        family_for(SOURCES["apertus"])
    assert str(caught.value.where).startswith(f"{tmp_path}/mine.py:")
    assert len(str(caught.value).splitlines()) <= 3
    return caught.value


def line_of(text: str, words: str) -> int:
    return next(n for n, line in enumerate(text.splitlines(), 1) if words in line)


DOWN = '            Axis("model.layers.{i}.mlp.down_proj.weight", 1, "ffn.{i}"),\n'
QUERY = 'q_proj.weight", 0, "attention.{i}/query.{i}", "head"'
CASES = {
    "no axis": ('            Axis("model.norm.weight", 0, "hidden"),\n', "", "no axis of family"),
    "a side": (DOWN, "", r"declares axes on \[0\]"),
    "no such parameter": ("mlp.up_proj", "mlp.upper_proj", "this parameter"),
    "other units": ('c["intermediate_size"]', 'c["intermediate_size"] + 1', r"computes \(41, 48\)"),
    "no such field": ('c["intermediate_size"]', 'c["ffn_size"]', "reads 'ffn_size'"),
    "another axis": (
        'down_proj.weight", 1, "ffn',
        'down_proj.weight", 1, "vain',
        "no `units` of 'vain'",
    ),
    "heads in another order": (
        QUERY,
        'q_proj.weight", 0, "query.{i}/attention.{i}", "head"',
        "not proven for 'query': masked and removed differ",
    ),
    "another norm": ('("attention_layernorm",)', '("feedforward_layernorm",)', "for depth"),
    "no attributes": ('{"num_key_value_groups": w["query"]}', "{}", "not proven for 'query'"),
    "no family": ("    return Family(", "    Family(", "returned NoneType"),
    "another type": ('model_types=("apertus",)', 'model_types=("other",)', "a family of other"),
    "a mistake": ("    return Family(", "    1 / 0\n    return Family(", "ZeroDivisionError"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_wrong_declaration_is_refused_with_file_and_line(
    case: str, written: str, tmp_path: Path
) -> None:
    old, new, words = CASES[case]
    assert old in written
    error = refused(written.replace(old, new), tmp_path)
    assert re.search(words, error.what), error.what


def test_the_line_is_that_of_the_parameter(written: str, tmp_path: Path) -> None:
    text = written.replace(DOWN, "")
    error = refused(text, tmp_path)
    assert str(error.where).endswith(f":{line_of(text, 'mlp.down_proj')}")


def test_experts_that_are_guessed_from_sizes_are_named_and_stay(tmp_path: Path) -> None:
    text = template_of(folder_of("deepseek_v3", tmp_path))
    (line,) = (n for n in text.splitlines() if 'experts.gate_up_proj", 0' in n)
    assert '"expert.{i}"' in line and line.endswith("# expert: by its size, not proven")
    twice = [n for n in text.splitlines() if 'experts.gate_up_proj", 1, "expert_ffn.{i}"' in n]
    assert len(twice) == 2, "gate and up, one behind the other"
    assert 'router="model.layers.{i}.mlp.gate"' in text
    assert '"expert",' in text.partition("fixed=(")[2]
    assert 'lambda c, i: i >= c["first_k_dense_replace"]' in text


def test_what_is_declared_is_replaced_only_if_that_is_said(
    written: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    apertus = family_for(SOURCES["apertus"])  # as if it were declared in the package
    monkeypatch.setattr(families, "FAMILIES", (*families.FAMILIES, apertus))
    error = refused(written, tmp_path)
    assert "is declared by effcompress, too" in error.what
    assert "replaces=True" in (error.fix or "")
    with pytest.raises(SourceError, match="is declared already"):
        monkeypatch.setattr(REGISTRY, "_plugins", {**REGISTRY._plugins, "family": {}})
        template_of(folder_of("apertus", tmp_path))
    other = tmp_path / "other.py"
    other.write_text(written.replace('@family("apertus")', '@family("apertus", replaces=True)'))
    REGISTRY.load_file(other)
    assert not family_for(SOURCES["apertus"]).traced


def test_the_command_line_writes_and_reads_a_file(tmp_path: Path) -> None:
    """In processes of their own, and without weights: none are read."""
    (tmp_path / "model").mkdir()
    with torch.device("meta"):
        model: Any = build(SOURCES["apertus"], "given")
    model.config.save_pretrained(tmp_path / "model")
    called = [sys.executable, "-m", "effcompress", "inspect", "model"]
    made = subprocess.run(
        [*called, "--template", "mine.py"], cwd=tmp_path, capture_output=True, text=True
    )
    assert made.returncode == 0, made.stderr
    seen = subprocess.run(
        [*called, "--plugins", "mine.py", "--json"], cwd=tmp_path, capture_output=True, text=True
    )
    assert seen.returncode == 0, seen.stderr
    found = json.loads(seen.stdout)
    assert not found["traced"] and {"ffn", "layer", "mlp_block"} <= found["kinds"].keys()
    again = subprocess.run(
        [*called, "--template", "mine.py"], cwd=tmp_path, capture_output=True, text=True
    )
    assert again.returncode and "is there already" in again.stderr

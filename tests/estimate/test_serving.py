"""What loads the result of a recipe, told before training."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from effcompress import load_recipe
from effcompress.estimate.check import check
from effcompress.estimate.feasibility import sized_model
from effcompress.estimate.forecast import plan
from effcompress.estimate.serving import FORMS, NAMES, loading, serving
from tests.runner.toys import recipe

ONCE = "prune.schedule={name: once, at: 256}"


def told(folder: Path, *changes: str) -> list[str]:
    lines = check(load_recipe(recipe(folder), [*changes, ONCE])).lines
    return [line.removeprefix("serving: ") for line in lines if line.startswith("serving: ")]


@pytest.mark.parametrize(
    ("software", "forms"),
    [
        ("transformers", ["uniform", "padded", "exact"]),
        ("vllm", ["uniform", "padded"]),
        ("sglang", ["uniform", "padded"]),
        ("llama.cpp", ["gguf"]),
    ],
)
def test_every_software_has_its_forms(software, forms) -> None:
    llama = {"model_type": "llama", "hidden_act": "silu"}
    found = [loading(llama, software, form) for form in FORMS]
    assert [one.form for one in found if one.loads] == forms
    assert all(one.why for one in found if not one.loads)


def test_an_architecture_that_a_software_lacks(tmp_path: Path) -> None:
    found = loading({"model_type": "helium"}, "vllm", "uniform")
    assert found.loads and "Transformers backend" in found.why and found.said == "not tried"
    none = loading({"model_type": "helium"}, "llama.cpp", "gguf")
    assert not none.loads and "helium" in none.why and none.said == "no"


def test_check_says_what_loads_where_and_why_not(tmp_path: Path) -> None:
    alike = told(tmp_path)
    assert alike[0] == "transformers loads uniform, padded, exact"
    assert alike[1].startswith("vLLM and SGLang load uniform, padded (not tried); no exact")
    assert alike[2] == "llama.cpp loads gguf"
    unequal = told(tmp_path, "prune.space=[{name: ffn, scope: global}]", "prune.target={keep: 85%}")
    assert "uniform only if it comes out so: layers may differ in 'ffn'" in unequal
    fields = "model_type: opt, hidden_size: 32, ffn_dim: 64, num_hidden_layers: 2"
    fields += ", num_attention_heads: 4, word_embed_proj_dim: 32, max_position_embeddings: 64"
    narrow = "prune.space=[ffn]", "prune.target={keep: 85%}"
    lines = told(tmp_path, *narrow, f"model.shape={{{fields}}}")
    assert any(line.startswith("no gguf: ") and "opt" in line for line in lines)
    assert "llama.cpp loads nothing of it" in lines


def test_a_form_that_certainly_cannot_be_is_not_offered(tmp_path: Path) -> None:
    loaded = load_recipe(recipe(tmp_path), ["prune.target={shape: {ffn: 33}}", "prune.space=[ffn]"])
    found = sized_model(loaded)
    assert found is not None
    served = serving(loaded, found)
    assert served.made["uniform"].possible is True
    odd = ["prune.target={shape: {hidden: 30}}", "prune.space=[hidden]"]
    loaded = load_recipe(recipe(tmp_path), odd)
    found = sized_model(loaded)
    assert found is not None
    made = serving(loaded, found).made
    assert made["exact"].possible is True


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["prune.space=[ffn]", "prune.target={keep: 85%}"],
         "on 1, 2, 4 GPUs (4 heads, 2 KV heads)"),
        (["prune.target={shape: {attention: 1}}", "prune.space=[attention]"],
         "on 1, 2 GPUs (2 heads, 1 KV heads)"),
        ([], None),
    ],
)  # fmt: skip
def test_tensor_parallel_divides_heads(tmp_path: Path, changes: list[str], said) -> None:
    lines = [line for line in told(tmp_path, *changes) if "tensor parallel" in line]
    assert lines == ([f"tensor parallel {said}"] if said else [])


def test_the_plan_has_a_table(tmp_path: Path) -> None:
    answer = plan(load_recipe(recipe(tmp_path)))
    (table,) = [one for one in answer.sheets if one.title == "What loads the result"]
    assert table.columns == ("form", "can be made", *NAMES.values())
    assert [row[0] for row in table.rows] == [*FORMS]
    rows = {row[0]: row[2:] for row in table.rows}
    assert rows["exact"] == ("yes", "no", "no", "no")
    assert rows["gguf"] == ("no", "no", "no", "yes")
    assert answer.data["serving"]["uniform"]["vllm"] == "not tried"


def test_it_needs_no_torch() -> None:
    code = "import sys, effcompress.estimate.serving; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)

"""A pruned model as a gguf file: llama.cpp computes what the model in memory does, and `check` says
before training where it would not.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import PreTrainedTokenizerFast

from effcompress import load_recipe, run
from effcompress.errors import RecipeError, RunError, SourceError
from effcompress.estimate.check import check
from effcompress.export import gguf
from effcompress.model.gguf.architectures import ARCHITECTURES
from effcompress.model.gguf.header import read_header
from effcompress.model.tokenizer import ByteTokenizer
from effcompress.network.pruned_model import PrunedModel
from tests.contract.test_more_families import NORM_GAIN, few, opened
from tests.contract.test_more_families import cut as cut_of_the_zoo
from tests.export.test_forms import cut
from tests.model.by_llama_cpp import IDS, ask, difference, logits_of
from tests.model.test_gguf_architectures import CASES as ARCHITECTURE_CASES
from tests.model.test_gguf_architectures import ROUTED, YARN, Table, tiny
from tests.runner.toys import events, recipe

CASES = {
    # (model type, change, widths of layers) -> llama.cpp's architecture, and whether it is padded
    ("qwen3", "width", "uniform"): ("qwen3", False),
    ("qwen3", "both", "padded"): ("qwen3", True),
    ("qwen2", "depth", "uniform"): ("qwen2", False),
    ("qwen2", "width", "uniform"): ("llama", False),
    ("qwen2", "both", "padded"): ("deci", False),
    ("phi3", "both", "padded"): ("llama", True),
    ("gemma2", "width", "padded"): ("gemma2", True),
    ("mixtral", "width", "uniform"): ("llama", False),
    ("mixtral", "both", "padded"): ("llama", True),
    ("gpt2", "depth", "uniform"): ("gpt2", False),
    ("gpt_oss", "width", "uniform"): ("gpt-oss", False),
    ("gpt_oss", "both", "padded"): ("gpt-oss", True),
}
OF_THE_ZOO = {
    ("falcon", "width", "uniform"): ("falcon", False),
    ("bloom", "depth", "uniform"): ("bloom", False),
    ("deepseek_v3", "width", "uniform"): ("deepseek2", False),
    ("deepseek_v3", "both", "padded"): ("deepseek2", True),
    ("glm4_moe_lite", "depth", "uniform"): ("deepseek2", False),
    ("minimax_m2", "both", "padded"): ("minimax-m2", True),
}
BY_PLAN = {
    # case of the architectures -> units that go of every group set of a kind
    "lfm2": {"hidden": 16, "conv_channel": 16, "attention": 1, "ffn": 8},
    "lfm2_moe": {"ffn": 8, "expert": 1, "expert_ffn": 8},
    "ernie4_5_moe": {"hidden": 4, "ffn": 8, "expert": 1, "attention": 1, "layer": 1},
    "deepseek_v2": {"hidden": 8, "ffn": 8, "attention": 2},
    "falcon_h1": {"hidden": 4, "ffn": 8, "attention": 1, "ssm_group": 1, "layer": 1},
    "nemotron_h": {"ffn": 8, "attention": 1, "ssm_group": 1},
    "qwen3_next": {"hidden": 4, "expert": 1, "expert_ffn": 8, "attention": 1, "linear_head": 1},
    "gemma4, shared": {"hidden": 4, "ffn": 8, "attention": 1},
    "llama4": {"hidden": 4, "ffn": 8, "expert": 1, "attention": 1},
    "dots1": {"hidden": 4, "ffn": 8, "attention": 1},
}


def as_llama_cpp(module: nn.Module) -> nn.Module:
    """With llama.cpp's GELU."""
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if "gelu" in type(child).__name__.lower():
                setattr(parent, name, Table())
    return module.eval()


@pytest.mark.parametrize("case", [*CASES, *OF_THE_ZOO], ids=" ".join)
def test_a_pruned_model(case: tuple[str, str, str], tmp_path: Path) -> None:
    architecture, padded = {**CASES, **OF_THE_ZOO}[case]
    pruned = cut_of_the_zoo(*case) if case in OF_THE_ZOO else cut(*case)
    _same_in_llama_cpp(pruned, architecture, padded, tmp_path)


@pytest.mark.parametrize("case", BY_PLAN)
def test_a_model_cut_by_a_plan(case: str, tmp_path: Path) -> None:
    model_type, own = ARCHITECTURE_CASES[case]
    counts = BY_PLAN[case]
    tables = {"vocab_size": 258, "vocab_size_per_layer_input": 258}
    pruned = opened(tiny(model_type, **{**own, **tables}), *counts)
    plan = {s.name: few(s, counts.get(s.kind, 0), s.layer or 0) for s in pruned.sets}
    plan = {name: units for name, units in plan.items() if units and name[:6] != "layer."}
    pruned.mask({**plan, **({"layer.2": [0]} if "layer" in counts else {})}, repairs=NORM_GAIN)
    pruned.commit()
    assert {s.kind for s in pruned.parent_sets if s.name in plan} == counts.keys() - {"layer"}
    _same_in_llama_cpp(pruned, ARCHITECTURES[model_type].name, False, tmp_path)


def test_a_ramp_that_llama_cpp_rounds_is_said(tmp_path: Path) -> None:
    rope = {**YARN, "truncate": False}
    model = tiny("gpt_oss", **{**ROUTED, "rope_parameters": rope, "vocab_size": 258})
    made = gguf.write(opened(model), ByteTokenizer(), tmp_path / "m.gguf", "F32", "Whole")
    assert "rounds the ends of YaRN's ramp" in made.why
    told = "{rope_type: yarn, factor: 4.0, original_max_position_embeddings: 32, truncate: false}"
    stated = (f"model.shape.rope_parameters={told}", "model.shape.sliding_window=16")
    width = ("prune.space=[ffn]", "prune.target={shape: {expert_ffn: 32}}")
    said = check(changed(tmp_path, "gpt_oss", *stated, *width)).lines
    assert any("rounds the ends of YaRN's ramp" in line for line in said)
    assert not any("context of 16 tokens" in line for line in said)
    depth = ("prune.space=[layer]", "prune.target={shape: {layer: 1}}")
    said = check(changed(tmp_path, "gpt_oss", *stated, *depth)).lines
    assert any("a context of 16 tokens, the window" in line for line in said)


def _same_in_llama_cpp(
    pruned: PrunedModel, architecture: str, padded: bool, tmp_path: Path
) -> None:
    made = gguf.write(pruned, ByteTokenizer(), tmp_path / "m.gguf", "F32", "Pruned")
    assert made.bytes == (tmp_path / "m.gguf").stat().st_size
    assert ("padded with" in made.why) == padded
    header = read_header(tmp_path / "m.gguf")
    assert header.architecture == architecture
    ids = IDS[: header.get("context_length")]
    found = ask(tmp_path / "m.gguf", ids)
    module: Any = as_llama_cpp(pruned.module)
    near = 2e-4 if any(isinstance(m, Table) for m in module.modules()) else 3e-5
    assert difference(found, module, ids) < near * float(logits_of(module, ids).abs().max())


def test_layers_that_rotate_by_their_number_stay(tmp_path: Path) -> None:
    kinds = ["sliding_attention"] * 5 + ["full_attention"]
    pruned = cut("gemma3_text", "depth", "uniform", num_hidden_layers=6, layer_types=kinds)
    with pytest.raises((SourceError, RunError), match="each 6th layer"):
        gguf.write(pruned, ByteTokenizer(), tmp_path / "m.gguf", "F32", "Pruned")
    assert not list(tmp_path.iterdir())


def changed(folder: Path, model_type: str, *more: str) -> Any:
    path = recipe(folder, schedule="{name: once, at: 256}", tokens=512)
    said = [f"model.shape.model_type={model_type}", "export.gguf=F32", *more]
    return load_recipe(path, said)


def test_a_run_writes_the_file_that_its_recipe_asks_for(tmp_path: Path) -> None:
    loaded = changed(
        tmp_path, "qwen3", "prune.space=[{name: ffn, scope: global}]", "prune.target={keep: 90%}"
    )
    assert any("the gguf file is then padded" in line for line in check(loaded).lines)
    run(loaded, output=tmp_path / "out")
    (made,) = events(tmp_path / "out", "gguf")
    assert made["file"] == "toy.gguf" and made["dtype"] == "F32"
    assert made["bytes"] == (tmp_path / "out/toy.gguf").stat().st_size
    found = ask(tmp_path / "out/toy.gguf", texts=["a b"])
    assert found["tokens"] == [list(b"a b")]
    from transformers import AutoModelForCausalLM

    module: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    assert difference(found, module) < 1e-4 * float(logits_of(module).abs().max())


NO_PAD = "model.shape.pad_token_id=null"
SPACE = "prune.space=[{name: attention, scope: lockstep}, hidden]"
REFUSED = {
    "no architecture": (
        ("helium", NO_PAD),
        "export.gguf: gguf files are not written for 'helium' models",
    ),
    "no such rope": (
        ("qwen3", "model.shape.rope_parameters={rope_type: yarn, factor: 2.0}"),
        "export.gguf: rope of the kind 'yarn'",
    ),
    "layers by number": (
        (
            "smollm3",
            "model.shape.pad_token_id=null",
            "prune.space=[layer]",
            "prune.target={shape: {layer: 1}}",
        ),
        "no rope by their numbers",
    ),
    "heads do not fill": (
        ("olmo2", SPACE, "prune.target={shape: {attention: 1, hidden: 24}}"),
        "2 heads of 8 make 16 of 24",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_check_refuses_before_training(case: str, tmp_path: Path) -> None:
    changes, words = REFUSED[case]
    with pytest.raises(RecipeError, match=words) as caught:
        check(changed(tmp_path, *changes))
    assert "Remove `gguf`" in str(caught.value)
    check(changed(tmp_path, *changes, "export.gguf=null"))


def test_check_says_where_it_depends(tmp_path: Path) -> None:
    said = check(changed(tmp_path, "olmo2", SPACE, "prune.target={params: 18623}")).lines
    assert any("whose heads fill the hidden size alone" in line for line in said)
    fine = ("olmo2", SPACE, "prune.target={shape: {attention: 1, hidden: 16}}")
    said = check(changed(tmp_path, *fine)).lines
    assert not any("whose heads fill the hidden size" in line for line in said)


def test_a_tokenizer_that_llama_cpp_has_not_is_found_before_training(tmp_path: Path) -> None:
    words = {"<s>": 0, "</s>": 1, **{chr(97 + i): i + 2 for i in range(26)}}
    rust = Tokenizer(models.WordLevel(vocab=words, unk_token="<s>"))
    rust.pre_tokenizer = pre_tokenizers.Whitespace()
    backend = PreTrainedTokenizerFast(
        tokenizer_object=rust, bos_token="<s>", eos_token="</s>", unk_token="<s>"
    )
    backend.save_pretrained(tmp_path / "words")
    loaded = changed(
        tmp_path, "llama", f"model.tokenizer={tmp_path / 'words'}", "model.shape.vocab_size=64"
    )
    with pytest.raises(SourceError, match="WordLevel"):
        run(loaded, output=tmp_path / "out")
    assert not events(tmp_path / "out", "step")

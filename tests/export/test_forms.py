"""Every family x {width, depth, both} x {uniform, padded, exact}: written as a folder, loaded again
in a fresh process that has transformers only, and found to be the same model.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from effcompress import checkpoint
from effcompress.errors import RunError
from effcompress.export.forms import NAMES, Form, Name, form
from effcompress.export.write import save
from effcompress.groups.tracing import search
from effcompress.groups.tracing.draft import family_from
from effcompress.model.modeling_pruned import silent
from effcompress.model.small import build
from effcompress.model.tokenizer import ByteTokenizer
from effcompress.network.pruned_model import PrunedModel
from effcompress.registry import REGISTRY, Bound
from tests.conftest import FAMILIES, MIXTURES, PLAIN, shape, tiny, tokens

CHANGES = ("width", "depth", "both")
IMPOSSIBLE = {
    # A LayerNorm subtracts a mean, which zeros would move; and the stock classes derive the width
    # of a head, so that an odd hidden size has no stock class at all.
    (model_type, change, "padded"): "no stock class accepts"
    for model_type in PLAIN
    for change in ("width", "both")
}
SCRIPT = Path(checkpoint.__file__).with_name("prove.py")


def cut(model_type: str, change: str, name: str, **own: Any) -> PrunedModel:
    """A tiny model without some of its units: equally many in every layer for ``uniform``."""
    more: dict[str, Any] = {"model_type": model_type, "vocab_size": 258, **own}
    if model_type in ("qwen3_moe", "glm4_moe"):
        more |= {"moe_intermediate_size": 32}  # kernels want eights
    config, model = shape("gqa_tied", **more), tiny("gqa_tied", **more)
    for p in model.parameters():
        p.data *= 0.5 if p.dim() > 1 else 1.0  # logits of a usual size
    space = ["ffn", "attention", "hidden", "layer", "attention_block", "mlp_block"]
    space += ["expert"] if model_type in MIXTURES else []
    pruned = PrunedModel(model, config, [Bound(REGISTRY.get("space", s)) for s in space])
    plan: dict[str, list[int]] = {}
    if change != "depth":
        plan |= _even(pruned) if name == "uniform" else _uneven(pruned)
    if change != "width":
        plan |= {"layer.1": [0]}
        if name != "uniform":
            plan |= {"attention_block.0": [0], "mlp_block.2": [0]}
    repairs = [Bound(REGISTRY.get("repair", "norm_gain"))]
    pruned.mask(plan, repairs=repairs)
    pruned.commit()
    return pruned


def _even(pruned: PrunedModel) -> dict[str, list[int]]:
    """Whole heads and eights, so that every stock class takes the result."""
    count = {"hidden": 8, "ffn": 8, "attention": 1, "expert": 1, "expert_ffn": 0}
    plan = {s.name: list(range(2, 2 + count.get(s.kind, 0))) for s in pruned.sets}
    for s in pruned.sets:
        if s.parts > 1:  # one expert of each group
            plan[s.name] = [p * s.size // s.parts + p for p in range(s.parts)]
        # GLM's class derives the width of shared experts, which stay, from that of the others.
        if s.kind == "expert_ffn" and pruned.family.name != "glm4_moe":
            plan[s.name] = list(range(s.size % 8 or 8))
    return {n: [u for u in units if u < _size(pruned, n)] for n, units in plan.items() if units}


def _size(pruned: PrunedModel, name: str) -> int:
    return pruned.parent.widths[name]


def _uneven(pruned: PrunedModel) -> dict[str, list[int]]:
    plan: dict[str, list[int]] = {"hidden": [0, 9, 18, 27, 36]}
    for s in pruned.sets:
        if s.layer is not None and s.kind in ("ffn", "expert_ffn"):
            plan[s.name] = list(range(3 * s.layer + 1))
        elif s.kind == "attention" and s.layer:
            plan[s.name] = [s.layer - 1]
        elif s.kind == "expert":  # equally many: no zeros can stand for an expert
            each = s.size // s.parts
            plan[s.name] = [p * each + ((s.layer or 0) + p) % each for p in range(s.parts)]
    return plan


def write(pruned: PrunedModel, made: Form, folder: Path) -> None:
    skeleton: Any = made.skeleton
    skeleton.generation_config = pruned.module.generation_config
    save(skeleton, made.tensors, ByteTokenizer().save, folder, made.files)


def fresh(classes: str, root: Path, folders: list[Path]) -> None:
    """Look at all of them in one process."""
    triples = [[f, root / "ids", f / "seen.safetensors"] for f in folders]
    flat = [str(path) for triple in triples for path in triple]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(root / "modules")}
    command = [sys.executable, "-I", str(SCRIPT), classes, *flat]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


@torch.no_grad()
def expected(model: nn.Module, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    model.eval()
    logits = model(input_ids=ids, use_cache=False).logits
    row = ids[:1]
    for _step in range(16):
        step = model(input_ids=row, use_cache=False).logits[:, -1]
        step[:, model.generation_config.eos_token_id] = -torch.inf
        row = torch.cat([row, step.argmax(-1, keepdim=True)], 1)
    return logits, row[0, ids.shape[1] :]


@pytest.mark.parametrize("name", NAMES)
def test_every_folder_is_the_same_model_again(
    name: Name, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    found: list[tuple[str, str, str, float | str]] = []
    ids = tokens(vocab=258)
    save_file({"ids_BT": ids}, tmp_path / "ids")
    wanted: dict[Path, tuple[torch.Tensor, torch.Tensor]] = {}
    for model_type, change in itertools.product(FAMILIES, CHANGES):
        pruned = cut(model_type, change, name)
        if reason := IMPOSSIBLE.get((model_type, change, name)):
            with pytest.raises(RunError, match=reason):
                form(pruned, name)
            found.append((model_type, change, name, reason))
            continue
        folder = tmp_path / f"{model_type}-{change}"
        folder.mkdir()
        write(pruned, form(pruned, name), folder)
        wanted[folder] = expected(pruned.module, ids)
    fresh("own-class" if name == "exact" else "stock", tmp_path, list(wanted))
    for folder, (logits, greedy) in wanted.items():
        seen = load_file(folder / "seen.safetensors")
        difference = float((seen["logits_BTV"] - logits).abs().max())
        assert difference <= 1e-5, f"{folder.name}: {difference}"
        found.append((*folder.name.split("-"), name, difference))
        assert torch.equal(seen["cached_T"], greedy), folder.name
        assert torch.equal(seen["uncached_T"], greedy), folder.name
        config = json.loads((folder / "config.json").read_text())
        derived = ("gpt_neox", "opt", "gpt2")
        assert config.get("head_dim") == 8 or folder.name.startswith(derived)
    record_property("forms", found)


def test_auto_takes_the_plainest_form_that_is_possible() -> None:
    assert form(cut("llama", "both", "uniform"), "auto").name == "uniform"
    padded = form(cut("llama", "width", "padded"), "auto")
    assert padded.name == "padded" and padded.count > cut("llama", "width", "padded").params
    assert "zeros" in padded.why and "layers differ" in padded.why
    assert form(cut("gpt2", "width", "padded"), "auto").name == "exact"


def test_what_cannot_be_had_is_said() -> None:
    with pytest.raises(RunError, match=r"layers differ: 2 units on axis 'attention\.1', 3 on"):
        form(cut("llama", "width", "padded"), "uniform")
    with pytest.raises(RunError, match="layers differ: attention_block of layer 0 is gone"):
        form(cut("llama", "depth", "padded"), "uniform")


def test_what_is_not_the_model_fails_loudly(tmp_path: Path) -> None:
    pruned, other = cut("llama", "both", "exact"), cut("llama", "both", "exact")
    for p in other.module.parameters():
        p.data += 0.01
    ids = tokens(vocab=258)
    for folder, model in (("own", pruned), ("foreign", other)):
        (tmp_path / folder).mkdir()
        write(model, form(model, "exact"), tmp_path / folder)
    checkpoint.prove(tmp_path / "own", pruned.module, ids, classes="own-class")
    with pytest.raises(RunError, match="logits differ by"):
        checkpoint.prove(tmp_path / "foreign", pruned.module, ids, classes="own-class")
    weights = tmp_path / "own" / "model.safetensors"
    os.truncate(weights, weights.stat().st_size - 100)
    with pytest.raises(RunError, match="does not load in a fresh process"):
        checkpoint.prove(tmp_path / "own", pruned.module, ids, classes="own-class")


@pytest.mark.parametrize("kind", ["attention_block", "mlp_block"])
def test_a_model_without_any_block_of_a_kind_can_be_had(kind: str) -> None:
    config, model = shape("gqa_tied"), tiny("gqa_tied")
    pruned = PrunedModel(model, config, [Bound(REGISTRY.get("space", kind))])
    pruned.mask({f"{kind}.{i}": [0] for i in range(3)})
    pruned.commit()
    padded, exact = form(pruned, "padded"), form(pruned, "exact")
    assert padded.count == sum(p.numel() for p in tiny("gqa_tied").parameters())
    assert exact.count == pruned.params


def test_a_traced_family_without_norms_over_what_is_cut() -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 2, "vocab_size": 61}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    built = AutoConfig.for_model("cohere", **sizes, **heads, bos_token_id=1, eos_token_id=2)
    model = AutoModelForCausalLM.from_config(built).eval()
    config = json.loads(built.to_json_string(use_diff=False))
    traced = family_from(search.propose(config, build, silent))
    pruned = PrunedModel(model, config, [Bound(REGISTRY.get("space", "ffn"))], family=traced)
    assert pruned.norms() == []
    pruned.mask({"ffn.0": [1], "ffn.1": [2]})
    pruned.commit()
    made = form(pruned, "uniform")
    assert made.model_type == "cohere" and made.count == pruned.params

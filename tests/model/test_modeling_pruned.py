"""Layers with widths of their own: the class that is shipped, against its parent with zeros in the
holes, and against itself in a fresh process that has transformers and nothing of us.
"""

from __future__ import annotations

import ast
import copy
import inspect
import json
import math
import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModelForCausalLM

from effcompress import groups
from effcompress.errors import SourceError
from effcompress.model import modeling_pruned
from effcompress.model.exact import (
    FILE,
    PER_LAYER,
    exact_config,
    exact_skeleton,
    modelling_source,
    open_exact,
)
from effcompress.model.families import family_of
from effcompress.model.lineage import is_pruned
from effcompress.removal.modules import attributes
from effcompress.types import DEPTH, AxisMap, Depth, Family, Widths
from tests.conftest import shape, tokens

TIED = ("llama", "qwen2", "qwen3", "smollm3", "gemma2", "gemma3_text", "qwen3_moe")
CASES = {
    **{f"llama_{kind}": ("llama", kind) for kind in ("gqa_untied", "mha_tied", "mha_untied")},
    **{name: (name, "gqa_tied") for name in TIED},
    **{
        name: (name, "gqa_untied")
        for name in ("mistral", "phi3", "olmo2", "mixtral", "gpt_oss", "glm4_moe")
    },
    **{name: (name, "mha_tied") for name in ("opt", "gpt2")},
    "gpt_neox": ("gpt_neox", "mha_untied"),
}
"""Name -> architecture, and a shape of the toys."""
ABSENT = frozenset({"attention_block.0", "mlp_block.2"})
EPSILON = 1e-2
"""Large enough to be seen."""


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Models this small only wait for further ones."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@dataclass(frozen=True)
class Case:
    """A pruned model as data: the parent's configuration, what differs, the values."""

    parent: dict[str, Any]
    pruned: dict[str, Any]
    values: dict[str, Tensor]
    places: dict[str, list[Tensor]]
    """Parameter -> for each dimension, where in the parent its positions were."""
    buffers: dict[str, Tensor]
    shrunk: dict[str, float]
    """Gain of a norm -> channels left over channels before."""

    @property
    def config(self) -> dict[str, Any]:
        return exact_config(self.parent, self.pruned, {})


def make_case(name: str, *, rigid: bool, **more: Any) -> Case:
    """Random widths, an odd hidden size, a layer without attention, one without feed-forward.
    ``rigid``: also the sizes that no zeros can fill up in the parent.
    """
    model_type, kind = CASES[name]
    fields = shape(kind, model_type=model_type, **more)
    if "rms_norm_eps" in AutoConfig.for_model(model_type).to_dict():
        fields["rms_norm_eps"] = EPSILON
    parent = json.loads(AutoConfig.for_model(**fields).to_json_string(use_diff=False))
    full = groups.from_config(family_of(parent), parent)
    left = _widths(full, random.Random(name), rigid)
    wanted = groups.shapes_at(full, left).items()
    shapes = {n: list(size) for n, size in wanted if ABSENT.isdisjoint(full.gates[n])}
    depth = Depth(full.depth.layers, ABSENT)
    shrunk = {n: shapes[n][0] / full.shapes[n][0] for n in shapes if _averages(full.family, n)}
    draw = torch.Generator().manual_seed(4)
    buffers = {
        name: torch.rand(shapes[beside][0], generator=draw) / 5
        for name, _ in _on_meta(parent).named_buffers()
        if (beside := name.replace("e_score_correction_bias", "weight")) in shapes
    }
    pruned = {
        "shapes": shapes,
        "buffers": {name: list(b.shape) for name, b in buffers.items()},
        "absent": _absent(full.family),
        "attributes": attributes(groups.from_shapes(full.family, parent, shapes, depth), parent),
        "epsilons": {n.removesuffix(".weight"): EPSILON / s for n, s in shrunk.items() if s != 1},
    }
    places = {n: [_places(full, left, n, dim) for dim in range(len(shapes[n]))] for n in shapes}
    return Case(parent, pruned, _values(shapes), places, buffers, shrunk)


def _on_meta(parent: dict[str, Any]) -> Any:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(**parent))


def _widths(full: AxisMap, rng: random.Random, rigid: bool) -> dict[str, int]:
    whole = {*full.family.fixed, *DEPTH, *(() if rigid else full.family.rigid)}
    left = dict(full.widths)
    for name, units in left.items():
        kind = name.split(".")[0]
        least = max(full.floors.get(kind, units // 2), 1)
        if kind not in whole and units > least:
            left[name] = 47 if kind == "hidden" else rng.randint(least, units - 1)
            left[name] -= left[name] % full.parts.get(kind, 1)
    return left


def _absent(family: Family) -> dict[int, list[list[Any]]]:
    found = {}
    for name in sorted(ABSENT):
        kind, layer = name.split(".")
        part = family.sublayers[kind]
        found[int(layer)] = [[part.silent, part.outputs], *([t, 0] for t in part.through)]
    return found


def _averages(family: Family, name: str) -> bool:
    """Whether it is the gain of a norm that divides by the number of its channels."""
    return not family.centred and re.sub(r"\.\d+\.", ".{i}.", name) in family.norms


def _places(full: AxisMap, left: Widths, param: str, dim: int) -> Tensor:
    found = []
    for segment in (s for s in full.by_param[param] if s.dim == dim):
        wide = [*(full.widths[axis] for axis in segment.names), segment.positions_per_unit]
        kept = tuple(slice(left[axis]) for axis in segment.names)
        found.append(torch.arange(math.prod(wide)).view(wide)[kept].flatten() + segment.start)
    return torch.cat(found)


def _values(shapes: dict[str, list[int]]) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(3)
    found = {n: torch.randn(s, generator=draw) / 5 for n, s in shapes.items()}
    return {n: v + 1 if v.dim() == 1 else v for n, v in found.items()}


def built(case: Case) -> Any:
    """The model on the CPU, by the packaged class."""
    config_class, model_class = modeling_pruned.make(case.parent["model_type"])
    with torch.random.fork_rng():
        model = model_class(config_class.from_dict(case.config)).eval()
    _fill(model, {**case.values, **case.buffers})
    return model


def _fill(model: Any, values: dict[str, Tensor]) -> None:
    found = model.load_state_dict(values, strict=False, assign=True)
    assert not found.unexpected_keys
    model.tie_weights()


def in_parent(case: Case) -> Any:
    """The parent with the same values, and zeros where something is gone."""
    with torch.random.fork_rng():
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**case.parent)).eval()
    offset = family_of(case.parent).gain_offset
    for name, value in case.buffers.items():
        model.get_buffer(name).copy_(value)
    for name, p in model.named_parameters():
        p.data.zero_()
        if name in case.values:
            value = (case.values[name] + offset) * case.shrunk.get(name, 1.0) ** 0.5
            value = value - offset if name in case.shrunk else case.values[name]
            p.data[torch.meshgrid(*case.places[name], indexing="ij")] = value
    return model


def write(case: Case, folder: Path) -> None:
    """The folder as the export writes it: from shapes alone, then the values."""
    skeleton: Any = exact_skeleton(case.config)
    assert {n: list(p.shape) for n, p in skeleton.named_parameters()} == case.pruned["shapes"]
    _fill(skeleton, {**case.values, **case.buffers})
    skeleton.save_pretrained(folder)
    (folder / FILE).write_text(modelling_source(case.parent["model_type"]))


@torch.no_grad()
def logits(model: Any) -> Tensor:
    return model(input_ids=tokens(), use_cache=False).logits


def steps(model: Any, ids: Any, **how: Any) -> Any:
    """Logits of every token that is generated after the first row."""
    row, new = ids[:1], 12
    how |= {"do_sample": False, "max_new_tokens": new, "min_new_tokens": new, "pad_token_id": 0}
    mask = torch.ones_like(row)
    how |= {"attention_mask": mask, "output_logits": True, "return_dict_in_generate": True}
    return torch.cat(model.generate(row, **how).logits)


@pytest.mark.parametrize("name", CASES)
def test_it_is_its_parent_with_zeros_in_the_holes(name: str) -> None:
    case = make_case(name, rigid=False)
    parent, model = in_parent(case), built(case)
    # Only eager attention asks how many queries share a key; it is the only one for Gemma 2.
    for how in {parent.config._attn_implementation, "eager"}:
        parent.set_attn_implementation(how)
        model.set_attn_implementation(how)
        want = logits(parent)
        assert want.abs().max() > 0.5
        torch.testing.assert_close(logits(model), want, rtol=0, atol=2e-5)


SCRIPT = """
import os, sys, torch
from typing import Any
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
root = sys.argv[1]
torch.set_num_threads(1)
ids = load_file(f"{root}/ids.safetensors")["ids"]
found = {}
def open_(folder):
    return AutoModelForCausalLM.from_pretrained(
        folder, trust_remote_code=True, dtype=torch.float32, output_loading_info=True)
for name in sorted(os.listdir(f"{root}/models")):
    folder = f"{root}/models/{name}/model"
    model, info = open_(folder)
    assert not any(info.values()), (name, info)
    with torch.no_grad():
        found[f"{name}/logits"] = model(input_ids=ids, use_cache=False).logits
        for key, how in {"dynamic": {}, "static": {"cache_implementation": "static"},
                         "none": {"use_cache": False}}.items():
            found[f"{name}/{key}"] = steps(model, ids, **how)
        if name in ("llama", "gpt_neox", "mixtral", "phi3"):  # whoever trains on saves again
            model.save_pretrained(f"{root}/again/{name}")
            again, info = open_(f"{root}/again/{name}")
            assert not any(info.values()), (name, info)
            found[f"{name}/again"] = again(input_ids=ids, use_cache=False).logits
try:
    open_(f"{root}/truncated")
except Exception as error:
    print("truncated:", type(error).__name__, error)
assert not [m for m in sys.modules if m.split(".")[0] == "effcompress"]
save_file({k: v.contiguous() for k, v in found.items()}, f"{root}/found.safetensors")
"""


@dataclass(frozen=True)
class Fresh:
    """What a process without effcompress made of the folders."""

    root: Path
    cases: dict[str, Case]
    found: dict[str, Tensor]
    said: str

    def folder(self, name: str) -> Path:
        return self.root / "models" / name / "model"


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Fresh:
    root = tmp_path_factory.mktemp("exact")
    cases = {name: make_case(name, rigid=True) for name in CASES}
    for name, case in cases.items():
        write(case, root / "models" / name / "model")
    shutil.copytree(root / "models" / "llama" / "model", root / "truncated")
    weights = root / "truncated" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    save_file({"ids": tokens()}, root / "ids.safetensors")
    (root / "script.py").write_text(
        f"from __future__ import annotations\n{inspect.getsource(steps)}\n{SCRIPT}"
    )
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "HF_MODULES_CACHE": str(root / "modules"),
        "TRANSFORMERS_VERBOSITY": "error",
    }
    command = [sys.executable, "-I", str(root / "script.py"), str(root)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return Fresh(root, cases, load_file(root / "found.safetensors"), done.stdout)


@pytest.mark.parametrize("name", CASES)
def test_a_fresh_process_says_the_same(fresh: Fresh, name: str) -> None:
    model = built(fresh.cases[name])
    found = {key: fresh.found[f"{name}/{key}"] for key in ("logits", "dynamic", "static", "none")}
    assert float((found["logits"] - logits(model)).abs().max()) <= 1e-5
    expected = steps(model, tokens(), use_cache=False)
    for key in ("dynamic", "static", "none"):
        assert float((found[key] - expected).abs().max()) <= 2e-5, key
    if f"{name}/again" in fresh.found:
        assert torch.equal(fresh.found[f"{name}/again"], fresh.found[f"{name}/logits"])


@pytest.mark.parametrize("name", CASES)
def test_it_opens_through_the_packaged_class(fresh: Fresh, name: str) -> None:
    folder, case = fresh.folder(name), fresh.cases[name]
    model: Any = open_exact(folder)
    assert type(model).__module__ == modeling_pruned.__name__
    assert {n: list(p.shape) for n, p in model.named_parameters()} == case.pruned["shapes"]
    assert all(torch.equal(p, case.values[n]) for n, p in model.named_parameters())
    assert float((logits(model) - logits(built(case))).abs().max()) <= 1e-5
    assert is_pruned(json.loads((folder / "config.json").read_text()))
    tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert tied == case.parent["tie_word_embeddings"]


@pytest.mark.parametrize("name", CASES)
def test_it_trains(name: str) -> None:
    model = built(make_case(name, rigid=True)).train()
    model(input_ids=tokens(), labels=tokens()).loss.backward()
    assert not [n for n, p in model.named_parameters() if p.grad is None]


def test_plain_transformers_refuses_without_trust(fresh: Fresh) -> None:
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        AutoModelForCausalLM.from_pretrained(fresh.folder("llama"), trust_remote_code=False)


def test_damage_is_loud(fresh: Fresh, tmp_path: Path) -> None:
    assert fresh.said.startswith("truncated: SafetensorError")
    with pytest.raises(SourceError, match=r"has \d+ bytes instead of"):
        open_exact(fresh.root / "truncated")
    shutil.copytree(fresh.folder("llama"), tmp_path / "m")
    (tmp_path / "m" / "config.json").unlink()
    with pytest.raises(SourceError, match=r"config.json is missing"):
        open_exact(tmp_path / "m")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda p: p["shapes"].update({"model.norm.weight": [46]}), "mismatched keys model.norm"),
        (lambda p: p["shapes"].update({"model.norm.weight": [49]}), "too small for"),
        (lambda p: p["shapes"].pop("model.norm.weight"), "no shape for model.norm.weight"),
        (lambda p: p["shapes"].update({"model.other": [3]}), "other"),
        (lambda p: p.update(absent={}), "config.json has no shape for"),
        (lambda p: p.update(parent="../../evil"), "no causal language model"),
        (lambda p: p.pop("epsilons"), "epsilons"),
        (lambda p: p["attributes"].update({"model": {"forward": "x"}}), "'forward' is no size"),
        (lambda p: p["attributes"].update({"model": {"__class__": 1}}), "'__class__' is no size"),
    ],
)
def test_a_config_that_lies_is_refused(
    fresh: Fresh, tmp_path: Path, change: Any, said: str
) -> None:
    shutil.copytree(fresh.folder("llama"), tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    change(config["pruned"])
    (tmp_path / "m" / "config.json").write_text(json.dumps(config))
    with pytest.raises(SourceError, match=said):
        open_exact(tmp_path / "m")


def test_code_in_the_folder_is_not_ours_to_run(fresh: Fresh, tmp_path: Path) -> None:
    shutil.copytree(fresh.folder("llama"), tmp_path / "m")
    (tmp_path / "m" / FILE).write_text("raise SystemExit('executed')\n")
    open_exact(tmp_path / "m")


class LargestTensor(TorchDispatchMode):
    """Notes the most elements that a tensor in memory has; those on the meta device have none.

    To ask for a tensor of the parent's size is no error: the system hands out memory that it does
    not have until somebody writes to it.
    """

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for one in made if isinstance(made, list | tuple) else [made]:
            if isinstance(one, Tensor) and one.device.type != "meta":
                self.numel = max(self.numel, one.numel())
        return made


def test_the_parents_size_is_never_allocated(tmp_path: Path) -> None:
    case = make_case("llama", rigid=True, intermediate_size=40)
    huge = replace(case, parent={**case.parent, "intermediate_size": 10**10})
    write(huge, tmp_path)
    largest = LargestTensor()
    with largest:
        model = open_exact(tmp_path)
    assert 0 < largest.numel <= max(p.numel() for p in model.parameters())
    assert torch.equal(logits(model), logits(built(case)))


def test_what_changes_in_the_configuration_later_reaches_every_module(fresh: Fresh) -> None:
    model: Any = open_exact(fresh.folder("phi3"))
    before = logits(model)
    model.set_attn_implementation("eager")
    attention = model.model.layers[1].self_attn
    assert attention.config._attn_implementation == "eager"
    assert attention.config.num_attention_heads != model.config.num_attention_heads
    torch.testing.assert_close(logits(model), before, rtol=0, atol=1e-5)
    assert torch.equal(logits(copy.deepcopy(model)), logits(model))


def test_experts_of_whole_rows_keep_their_kernels() -> None:
    parent = make_case("mixtral", rigid=False).parent
    shapes = {n: list(s) for n, s in groups.from_config(family_of(parent), parent).shapes.items()}
    shapes["model.layers.1.mlp.experts.down_proj"][2] = 39
    shapes["model.layers.1.mlp.experts.gate_up_proj"][1] = 78
    skeleton: Any = exact_skeleton(exact_config(parent, {"shapes": shapes}, {}))
    used = [x.mlp.experts.config._experts_implementation for x in skeleton.model.layers]
    assert used == ["grouped_mm", "eager", "grouped_mm"]


def test_the_shipped_file_stands_alone() -> None:
    text = modelling_source("gpt_neox")
    assert 'PARENT = "gpt_neox"' in text
    roots = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom):
            roots.add((node.module or "").split(".")[0])
        if isinstance(node, ast.Import):
            roots |= {alias.name.split(".")[0] for alias in node.names}
    assert roots == {"__future__", "functools", "inspect", "typing", "torch", "transformers"}
    with pytest.raises(SourceError, match="no causal language model"):
        modelling_source('llama"\nimport os#')


def test_widths_are_recorded_for_other_readers() -> None:
    case = make_case("llama", rigid=True)
    widths = {"intermediate_size": [40, 33, 17], "num_key_value_heads": [3, 2, 3]}
    config = exact_config(case.parent, case.pruned, widths)
    assert config[PER_LAYER] == {
        "0": {"skip": ["attention"]},
        "1": {"intermediate_size": 33, "num_key_value_heads": 2},
        "2": {"intermediate_size": 17, "skip": ["mlp"]},
    }
    with pytest.raises(ValueError, match="layers"):
        exact_config(case.parent, case.pruned, {**widths, "num_key_value_heads": [3]})


def test_a_pruned_parent_may_be_pruned_again() -> None:
    case = make_case("llama", rigid=True)
    assert exact_config(case.config, case.pruned, {}) == case.config

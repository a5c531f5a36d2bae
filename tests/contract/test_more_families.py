"""The contract of the families in ``zoo``: sizes from the configuration, masked equals removed in
fp64, training and generation after cuts, exports opened by plain transformers, operations counted.
"""

from __future__ import annotations

import copy
import functools
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from effcompress import groups
from effcompress.errors import CoverageError, RunError
from effcompress.estimate.flops import Flops
from effcompress.export.forms import NAMES, form
from effcompress.model.families import family_of
from effcompress.model.families.rotated import refusal
from effcompress.network.pruned_model import PrunedModel
from effcompress.registry import REGISTRY, Bound
from effcompress.types import GroupSet
from tests.conftest import tokens, unrounded
from tests.contract.test_mask_equals_removal import logits, works
from tests.contract.zoo import CHANGES, DEPTH, VOCABULARY, config_of, sources
from tests.estimate.test_flops import counted
from tests.export.test_forms import expected, fresh, write
from tests.network.test_rotated import sliced

FAMILIES = tuple(sources())
CASES = [(model_type, kind) for model_type in FAMILIES for kind in sources()[model_type].kinds]
WITHIN = ("ffn", "expert_ffn", "shared_ffn", "attention", "query")
WITHIN += ("linear_head", "conv_channel", "ssm_group")
"""Kinds whose units do nothing but add to the stream: without them the rest is as before."""
SPACES: Mapping[str, tuple[str, dict[str, Any]]] = {
    "query": ("attention", {"unit": "q_per_group"}),
    "expert_ffn": ("ffn", {}),
    **dict.fromkeys(("linear_head", "conv_channel", "ssm_group", "ssm_channel"), ("mixer", {})),
    "ssm_head": ("mixer", {"unit": "head"}),
    "shared_ffn": ("ffn", {}),
}
"""Kind -> the pruning space that cuts it; others have one of their own name."""
Plan = dict[str, list[int]]
NORM_GAIN = [Bound(REGISTRY.get("repair", "norm_gain"))]


@functools.cache
def _built(model_type: str) -> nn.Module:
    config: Any = AutoConfig.for_model(**config_of(model_type))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: Any = AutoModelForCausalLM.from_config(config)
        for p in model.parameters():
            p.data.uniform_(0.5, 1.5) if p.dim() == 1 else p.data.normal_(0, 0.2)
        for name, buffer in model.named_buffers():
            if "correction_bias" in name:  # of a router's selection
                buffer.data.uniform_(-0.1, 0.1)
            elif "layer_scalar" in name:
                buffer.data.uniform_(0.5, 1.5)
    return model.eval()


def tiny(model_type: str, dtype: torch.dtype = torch.float64) -> Any:
    """A random tiny model; gains, biases and constants are random too."""
    model: Any = copy.deepcopy(_built(model_type)).to(dtype)
    able = getattr(model, "_can_set_experts_implementation", lambda: False)
    if dtype == torch.float64 and able():
        model.set_experts_implementation("eager")  # grouped kernels know no fp64
    return model


def opened(model: Any, *kinds: str) -> PrunedModel:
    """The model with everything of these kinds free to go."""
    spaces: list[tuple[str, dict[str, Any]]] = []
    for kind in kinds:
        spaces += [one for one in [SPACES.get(kind, (kind, {}))] if one not in spaces]
    bound = [Bound(REGISTRY.get("space", name), knobs) for name, knobs in spaces]
    return PrunedModel(model, model.config.to_dict(), bound)


def few(s: GroupSet, count: int, first: int) -> list[int]:
    """So many units of a set, spread out, from another one on in every layer; of each part equally
    many, and none of those that must stay.
    """
    size, least = s.size // s.parts, -(-s.minimum // s.parts)
    order = [(first + k) % size for k in range(size)]
    chosen = (order[::2] + order[1::2])[: min(count, size - least)]
    return sorted(part * size + unit for part in range(s.parts) for unit in chosen)


def plan_for(pruned: PrunedModel, kind: str, even: bool) -> Plan:
    """About a third of the units of every layer, or another number in each; of layers and blocks
    the one in the middle, or the first one and, of blocks, the last.
    """
    sets = [s for s in pruned.sets if s.kind == kind]
    assert sets, f"nothing of the kind '{kind}'"
    if kind in DEPTH:
        ends = [sets[0], *([sets[-1]] if kind != "layer" else [])]
        return {s.name: [0] for s in ([sets[len(sets) // 2]] if even else ends)}
    counts = [max(1, s.size // s.parts // 3) if even else n + 1 for n, s in enumerate(sets)]
    plan = {s.name: few(s, counts[n], n) for n, s in enumerate(sets)}
    return {name: units for name, units in plan.items() if units}


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the library computes in fp32 on its way, norms and routers, it computes in fp64."""
    unrounded(monkeypatch)
    stock = torch.Tensor.to

    def to(x: torch.Tensor, *args: Any, **named: Any) -> torch.Tensor:
        if x.dtype == torch.float64:
            wide = {torch.float32: torch.float64}
            args = tuple(wide.get(a, a) if isinstance(a, torch.dtype) else a for a in args)
            named = {k: wide.get(v, v) if k == "dtype" else v for k, v in named.items()}
        return stock(x, *args, **named)

    monkeypatch.setattr(torch.Tensor, "to", to)


@torch.no_grad()
def silenced(model: nn.Module, pruned: PrunedModel, plan: Plan) -> nn.Module:
    """A copy whose projections into the stream do not read the units of the plan."""
    quiet = copy.deepcopy(model)
    held = dict(quiet.named_parameters())
    for s in (s for s in pruned.parent_sets if s.name in plan):
        for member in s.members:
            p, along = held[member.param], pruned.parent.by_param[member.param]
            inputs = pruned.family.expert_inputs if p.dim() == 3 else pruned.family.inputs
            writes = any(a.names == ("hidden",) and a.dim != member.dim for a in along)
            if writes and member.dim == inputs and p.dim() > 1:
                p.index_fill_(member.dim, member.index_GB[plan[s.name]].flatten(), 0)
    return quiet


def relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).abs().max() / wanted.abs().max())


@pytest.mark.parametrize("model_type", FAMILIES)
def test_sizes_are_those_of_the_class(model_type: str) -> None:
    """Of the tiny configuration and of the class's own, of which only sizes are stated."""
    source = sources()[model_type]
    family = family_of(config_of(model_type))
    stated = [config_of(model_type, **more) for more in ({}, *source.others)]
    named = {"model_type": stated[0]["model_type"], **source.stated}
    plain = AutoConfig.for_model(num_hidden_layers=4, **named).to_dict()
    # Some classes have no value for a field that they need.
    least = {name: plain[name] or config_of(model_type)[name] for name in family.required}
    stated.append(named | least)
    for config in stated:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))
        wanted = {name: tuple(p.shape) for name, p in model.named_parameters()}
        assert dict(groups.from_config(family, config).shapes) == wanted
        assert dict(groups.from_config(family, model.config.to_dict()).shapes) == wanted


@pytest.mark.parametrize(("model_type", "kind"), CASES)
def test_masked_and_removed_are_the_same(
    model_type: str, kind: str, exact: None, record_property: Callable[[str, object], None]
) -> None:
    source, ids, apart = sources()[model_type], tokens(vocab=VOCABULARY), 0.0
    for even in (True, False):
        repairs = [] if even else NORM_GAIN
        model = tiny(model_type)
        pruned = opened(model, kind)
        plan = plan_for(pruned, kind, even)
        before = logits(model, ids)
        exactly = kind in WITHIN and kind not in pruned.family.approximate
        quiet = silenced(model, pruned, plan) if exactly else None
        pruned.mask(plan, repairs=repairs)
        masked = logits(model, ids)
        assert relative(masked, before) > 1e-4
        if quiet is not None:
            assert relative(masked, logits(quiet, ids)) < source.tolerance
        pruned.commit()
        removed = logits(model, ids)
        assert relative(removed, masked) < source.tolerance
        assert sum(p.numel() for p in model.parameters()) == pruned.params
        assert not pruned.ledger.pending()
        apart = max(apart, float((removed - masked).abs().max()))
    record_property("family", model_type)
    record_property("kind", kind)
    record_property("difference", apart)
    record_property("approximate", kind in pruned.family.approximate)


def kinds_of(model_type: str) -> list[str]:
    """The kinds that have widths, and layers where they can go."""
    return [k for k in sources()[model_type].kinds if k not in ("query", *DEPTH[1:])]


@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_cut_model_trains_and_generates(model_type: str, exact: None) -> None:
    """Everything at once: eager and sdpa agree, every parameter has a gradient, and the cache
    changes no token.
    """
    model = tiny(model_type)
    pruned = opened(model, *kinds_of(model_type))
    plan: Plan = {}
    for kind in kinds_of(model_type):
        plan |= plan_for(pruned, kind, even=kind in DEPTH)
    pruned.mask(plan)
    pruned.commit()
    works(model, tokens(vocab=VOCABULARY))


@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_rotation_of_the_stream_keeps_the_function_or_is_refused(
    model_type: str, exact: None
) -> None:
    model, ids = tiny(model_type), tokens(vocab=VOCABULARY)
    pruned, before = PrunedModel(model, model.config.to_dict()), logits(model, ids)
    width = pruned.parent.widths["hidden"]
    if why := refusal(pruned.family, pruned.config):
        with pytest.raises(CoverageError, match=re.escape(why)):
            sliced(model, model.config.to_dict(), ids, width)
        return
    sliced(model, model.config.to_dict(), ids, width)
    assert relative(logits(model, ids), before) < sources()[model_type].tolerance
    works(model, ids)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_operations_are_those_that_are_counted(model_type: str) -> None:
    model = tiny(model_type, torch.float32)
    model.config._attn_implementation = "eager"  # Falcon cannot be told to change it
    model.config._experts_implementation = "eager"  # fused kernels of experts are not counted
    widths = [kind for kind in sources()[model_type].kinds if kind not in ("query", *DEPTH)]
    pruned = opened(model, *widths)
    # Causal attention costs half the pairs: those of twice the length are all of them.
    bare = replace(pruned.parent, family=replace(pruned.family, recurrence={}))
    flops = Flops(bare, model.config.to_dict(), 24)
    assert flops.per_token({}) == pytest.approx(3 * counted(model), rel=1e-12)
    plan: Plan = {}
    for kind in widths:
        plan |= plan_for(pruned, kind, even=False)
    pruned.mask(plan)
    pruned.commit()
    after = flops.per_token(pruned.ledger.widths())
    assert after == pytest.approx(3 * counted(pruned.module), rel=1e-12)


@dataclass(frozen=True)
class Folder:
    """An exported folder, and what the model in memory says."""

    path: Path
    change: str
    form: str
    logits_BTV: torch.Tensor
    greedy_T: torch.Tensor


def cut(model_type: str, change: str, name: str) -> PrunedModel:
    """A tiny model without some of its units: equally many in every layer for ``uniform``, in
    eights where kernels want them; else other numbers in each.
    """
    model = tiny(model_type, torch.float32)
    for p in model.parameters():
        p.data *= 0.5 if p.dim() > 1 else 1.0  # logits of a usual size
    pruned = opened(model, *(k for k in sources()[model_type].kinds if k != "query"))
    plan: Plan = {}
    source = sources()[model_type]
    stay = {"uniform": source.uncut, "padded": source.unpadded}.get(name, ())
    for s in pruned.sets if change != "depth" else ():
        if s.kind not in DEPTH:
            plan[s.name] = few(s, 0 if s.kind in stay else _count(s, name), s.layer or 0)
    there = [s.name for s in pruned.sets if s.kind == "layer"] if change != "width" else []
    plan |= {name: [0] for name in there[1:2]}
    if change != "width" and name != "uniform":
        blocks = {s.name: [0] for s in pruned.sets if s.kind in DEPTH[1:]}
        ends = (f"attention_block.{there[0][6:]}", f"mlp_block.{there[-1][6:]}") if there else ()
        if not there:  # no layer can go: the first and the last block
            ends = (next(iter(blocks)), list(blocks)[-1])
        plan |= {block: [0] for block in ends if block in blocks}
    pruned.mask({name: units for name, units in plan.items() if units}, repairs=NORM_GAIN)
    pruned.commit()
    return pruned


def _count(s: GroupSet, name: str) -> int:
    if s.kind == "expert" or name == "uniform":  # no zeros can stand for an expert
        eights = dict.fromkeys(("hidden", "conv_channel", "ffn"), 8)
        return {**eights, "expert_ffn": s.size % 8 or 8}.get(s.kind, 1)
    return 5 if s.kind == "hidden" else (s.layer or 0) + 1


@pytest.fixture(scope="module")
def folders(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Mapping[str, list[Folder]]:
    """The exports of all families that are asked for, all opened in one fresh process."""
    root = tmp_path_factory.mktemp("folders")
    ids = tokens(vocab=VOCABULARY)
    save_file({"ids_BT": ids}, root / "ids")
    asked = [i for i in request.session.items if getattr(i, "originalname", "") == EXPORTED]
    wanted = dict.fromkeys(i.callspec.params["model_type"] for i in asked)  # type: ignore[attr-defined]
    found = {model_type: [*_exported(model_type, root, ids)] for model_type in wanted}
    paths = [folder.path for each in found.values() for folder in each]
    try:
        fresh("own-class", root, paths)
    except AssertionError as error:  # each test looks for its own folders
        (root / "error").write_text(str(error))
    return found


def _exported(model_type: str, root: Path, ids: torch.Tensor) -> Iterator[Folder]:
    refused = sources()[model_type].refused
    for name in NAMES:
        # Both at once, if possible, are enough.
        possible = [change for change in reversed(CHANGES) if (name, change) not in refused]
        for change in possible[:1] if "both" in possible else possible:
            pruned = cut(model_type, change, name)
            path = root / f"{model_type}-{name}-{change}"
            path.mkdir()
            write(pruned, form(pruned, name), path)
            yield Folder(path, change, name, *expected(pruned.module, ids))


EXPORTED = "test_every_form_is_the_same_model_in_plain_transformers"


@pytest.mark.parametrize("model_type", FAMILIES)
def test_every_form_is_the_same_model_in_plain_transformers(
    model_type: str,
    folders: Mapping[str, list[Folder]],
    record_property: Callable[[str, object], None],
) -> None:
    found: list[tuple[str, str, str, float | str]] = []
    for folder in folders[model_type]:
        file = folder.path / "seen.safetensors"
        error = folder.path.parent / "error"
        assert file.exists(), error.read_text()
        seen = load_file(file)
        assert relative(seen["logits_BTV"], folder.logits_BTV) < 1e-5, folder.path.name
        assert torch.equal(seen["cached_T"], folder.greedy_T), folder.path.name
        assert torch.equal(seen["uncached_T"], folder.greedy_T), folder.path.name
        config = json.loads((folder.path / "config.json").read_text())
        assert ("auto_map" in config) == (folder.form == "exact")
        apart = float((seen["logits_BTV"] - folder.logits_BTV).abs().max())
        found.append((model_type, folder.change, folder.form, apart))
    for (name, change), words in sources()[model_type].refused.items():
        with pytest.raises(RunError, match=words):
            form(cut(model_type, change, name), name)  # type: ignore[arg-type]
        found.append((model_type, change, name, words))
    record_property("forms", found)

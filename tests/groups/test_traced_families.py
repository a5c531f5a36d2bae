"""Architectures that are traced: hybrids, latent attention, mixtures, scales of layers. What is
proven is cut by the engine, uneven between layers, and exported to plain transformers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from effcompress.errors import RunError
from effcompress.export.forms import form
from effcompress.export.rehearse import rehearse
from effcompress.export.write import save
from effcompress.groups.tracing import search
from effcompress.groups.tracing.draft import Draft, draft_from_json, family_from
from effcompress.model.modeling_pruned import silent
from effcompress.model.silence import quietly
from effcompress.model.small import build, plain_of
from effcompress.model.tokenizer import ByteTokenizer
from effcompress.network.pruned_model import PrunedModel
from effcompress.network.shapes import apart as stated_apart
from effcompress.registry import REGISTRY, Bound
from effcompress.types import UNTOUCHED_EXPERTS, axis_layer
from tests.conftest import tokens

COMMON = {"vocab_size": 258, "hidden_size": 48, "intermediate_size": 40, "num_hidden_layers": 3}
COMMON |= {"num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 8}
COMMON |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None}
ROUTED = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 12}
ROUTED |= {"n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "n_shared_experts": 1}
LATENT = {"q_lora_rank": 20, "kv_lora_rank": 28, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4}
LATENT |= {"v_head_dim": 6, "num_key_value_heads": 6, "head_dim": 4}
MAMBA = {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 5}
SOURCES: dict[str, dict[str, Any]] = {
    "apertus": {"rms_norm_eps": 1e-3},
    "axk1": {**ROUTED, **LATENT},
}
KINDS = {
    "apertus": {"attention", "ffn", "hidden"},
    "axk1": {"attention", "ffn", "hidden"},
}
"""At least these are proven."""
FORMS = ("exact", "padded", "uniform")
NORM_GAIN = [Bound(REGISTRY.get("repair", "norm_gain"))]
BLOCKS = ["layer", "attention_block", "mlp_block"]
DEPTH = {
    "apertus": BLOCKS,
    "falcon_h1": ["layer", "mlp_block"],
    "axk1": BLOCKS,
    "qwen3_next": BLOCKS,
}
"""What is proven of depth."""
HYBRID = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 6}
HYBRID |= {"linear_value_head_dim": 10, "layer_types": ["linear_attention", "full_attention"] * 2}
HYBRID |= {"num_hidden_layers": 4, "num_experts": 0}
DECLARED: dict[str, dict[str, Any]] = {"qwen3_next": HYBRID, "deepseek_v3": {**ROUTED, **LATENT}}
DECLARED["falcon_h1"] = {**MAMBA, "rms_norm_eps": 1e-3}
"""Traced here though they are declared: nothing that is not has layers or heads like theirs."""
DEEP = [name for name in SOURCES if DEPTH[name]]


def config_of(model_type: str) -> dict[str, Any]:
    return {"model_type": model_type, **COMMON, **(SOURCES | DECLARED)[model_type]}


@functools.cache
def draft(model_type: str) -> Draft:
    torch.set_num_threads(1)
    return search.propose(config_of(model_type), build, silent)


def cut(
    model_type: str,
    dtype: torch.dtype,
    *,
    width: bool = True,
    depth: bool = False,
    even: bool = False,
) -> tuple[PrunedModel, torch.Tensor]:
    """A tiny model that lost units of every proven kind of width, a layer and two blocks, and its
    logits when they were masked. ``even``: without another number in some layers, no blocks, and
    nothing that a stock class cannot be without.
    """
    config = config_of(model_type)
    torch.manual_seed(0)
    model: Any = build(config, "given").to(dtype)
    for p in model.parameters():
        p.data.uniform_(0.5, 1.5) if p.dim() == 1 else p.data.normal_(0, 0.2)
    for name, b in model.named_buffers():
        if b.numel() and ("layer_scalar" in name or "correction_bias" in name):
            b.data.uniform_(0.5, 1.5)
    kinds = {*draft(model_type).kinds} - {*draft(model_type).kept} - {"query"} if width else {*()}
    kinds |= {*DEPTH[model_type]} if depth else set()
    spaces = [Bound(REGISTRY.get("space", kind), {}) for kind in sorted(kinds)]
    family = family_from(draft_from_json(draft(model_type).to_json()))
    pruned = PrunedModel(model, plain_of(model.config), spaces, family=family)
    wide = [s for s in pruned.sets if s.kind not in BLOCKS]
    plan = {s.name: [0, *([s.size - 1] if (s.layer or 0) % 2 else [])] for s in wide}
    gone = shorter(pruned) if depth else []
    if even:
        stays = stated_apart(pruned.parent, pruned.config)
        eights = family.multiples.get("hidden", 1)
        plan = {s.name: [*range(eights)] if s.kind == "hidden" else [0] for s in wide}
        plan = {name: units for name, units in plan.items() if name not in stays}
        gone = [name for name in gone if name.startswith("layer.")]
    plan = {n: units for n, units in plan.items() if axis_layer(n) not in gone_layers(gone)}
    plan = {name: units[: pruned.parent.widths[name] - 1] for name, units in plan.items()}
    plan |= {name: [0] for name in gone}
    pruned.mask(plan, repairs=NORM_GAIN if width else [])
    masked = logits(model)
    pruned.commit()
    return pruned, masked


def shorter(pruned: PrunedModel) -> list[str]:
    """A layer in the middle, the attention block of the first layer and the last feed-forward."""
    names = [s.name for s in pruned.sets if s.kind == "layer"]
    gone = [names[len(names) // 2]]
    for kind, at in (("attention_block", 0), ("mlp_block", -1)):
        there = [s for s in pruned.sets if s.kind == kind and s.layer not in gone_layers(gone)]
        gone += [there[at].name] if there else []
    return gone


def gone_layers(names: list[str]) -> set[int | None]:
    return {axis_layer(name) for name in names if name.startswith("layer.")}


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model(input_ids=tokens(), use_cache=False).logits


@pytest.mark.parametrize("model_type", SOURCES)
def test_kinds_are_proven_and_cut(
    model_type: str, record_property: Callable[[str, object], None]
) -> None:
    found = draft(model_type)
    assert KINDS[model_type] <= {*found.kinds} - {*found.kept}, found.left_out
    pruned, masked = cut(model_type, torch.float64)
    # The library's norms, routers and gates compute in fp32 on their way.
    apart = float((logits(pruned.module) - masked).abs().max()) / float(masked.abs().max())
    assert apart < 5e-5
    record_property("traced", model_type)
    record_property("kinds", [kind for kind in found.kinds if kind not in found.kept])
    record_property("apart", apart)
    assert sum(p.numel() for p in pruned.module.parameters()) == pruned.params


@pytest.mark.parametrize("model_type", DEEP)
def test_layers_and_blocks_are_proven_and_go(
    model_type: str, record_property: Callable[[str, object], None]
) -> None:
    found = draft(model_type)
    assert not found.no_depth
    assert ["layer", *found.sublayers] == DEPTH[model_type]
    pruned, masked = cut(model_type, torch.float64, width=False, depth=True)
    assert len(pruned.depth.layers) == len(pruned.module.model.layers) < 3  # type: ignore[union-attr]
    apart = float((logits(pruned.module) - masked).abs().max()) / float(masked.abs().max())
    assert apart < 5e-5
    assert sum(p.numel() for p in pruned.module.parameters()) == pruned.params
    assert torch.equal(generated(pruned.module, True), generated(pruned.module, False))
    record_property("traced", model_type)
    record_property("depth", DEPTH[model_type])
    record_property("apart", apart)


def test_the_last_layer_that_counts_positions_stays() -> None:
    pruned, _ = cut("qwen3_next", torch.float32, width=False, depth=True)
    there = {s.name for s in pruned.parent_sets}
    assert "layer.1" in there and "mlp_block.3" in there
    assert not {"layer.3", "attention_block.3"} & there, "the last one with full attention"


@torch.no_grad()
def generated(model: Any, cache: bool) -> torch.Tensor:
    how: Any = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "use_cache": cache}
    return model.eval().generate(tokens(1, 7), **how)


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("model_type", SOURCES)
def test_an_export_is_the_same_model_in_plain_transformers(
    model_type: str, name: Any, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    deep, even = bool(DEPTH[model_type]), name == "uniform"
    pruned, _ = cut(model_type, torch.float32, depth=deep, even=even)
    made = form(pruned, name)
    skeleton: Any = made.skeleton
    skeleton.generation_config = pruned.module.generation_config
    with quietly():
        save(skeleton, made.tensors, ByteTokenizer().save, tmp_path, made.files)
        opened: nn.Module = AutoModelForCausalLM.from_pretrained(
            tmp_path,
            trust_remote_code=name == "exact",
            dtype=torch.float32,
            attn_implementation="eager",
        ).eval()
    held = dict(opened.named_buffers())
    for path, buffer in pruned.buffers().items() if name != "padded" else ():
        assert torch.equal(held[path], buffer), path
    wanted = logits(pruned.module)
    apart = float((logits(opened) - wanted).abs().max()) / float(wanted.abs().max())
    assert apart < 1e-5
    assert torch.equal(generated(opened, True), generated(opened, False))
    record_property("traced", model_type)
    record_property(name, apart)


def rehearsal(model_type: str) -> None:
    with torch.device("meta"):
        config: Any = build(config_of(model_type), "given").config
    family = family_from(draft(model_type))
    rehearse(plain_of(config), family, [Bound(REGISTRY.get("space", "ffn"), {})])


@pytest.mark.parametrize("model_type", SOURCES)
def test_the_export_is_tried_without_weights(model_type: str) -> None:
    rehearsal(model_type)


def test_an_export_that_would_crash_is_found_without_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    true = PrunedModel.buffers
    monkeypatch.setattr(PrunedModel, "buffers", lambda p: {n: b[None] for n, b in true(p).items()})
    with pytest.raises(RunError, match=r"could not be exported: .*too many indices"):
        rehearsal("apertus")


def test_experts_that_stay_are_named() -> None:
    said = draft("axk1").left_out[UNTOUCHED_EXPERTS]
    assert "model.layers.{i}.mlp.experts stay as they are" in said
    assert "`ffn` is the dense or shared feed-forward beside them alone" in said
    assert UNTOUCHED_EXPERTS not in draft("apertus").left_out
    why = " ".join(draft("axk1").left_out.values())
    assert "torch-pruning names more channels of model.layers." in why and "Error:" not in why


@pytest.mark.parametrize("model_type", ["qwen3_next", "falcon_h1"])
def test_layers_of_two_kinds_and_queries_with_a_gate_are_found(model_type: str) -> None:
    """Rows of a query head are followed by those of its output gate, in some layers alone; or
    attention and a state space read the same norm.
    """
    found = draft(model_type)
    assert {"attention", "ffn", "hidden", "query"} <= {*found.kinds} - {*found.kept}
    pruned, masked = cut(model_type, torch.float64)
    apart = float((logits(pruned.module) - masked).abs().max()) / float(masked.abs().max())
    assert apart < 5e-5

"""Architectures that nobody declared: traced, proven and cut by the engine, or refused with a place
and a declaration to start from.
"""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig

from effcompress import groups
from effcompress.errors import CoverageError, SourceError
from effcompress.groups.tracing import graph as trace_graph
from effcompress.groups.tracing import search
from effcompress.groups.tracing.anatomy import norms_of
from effcompress.groups.tracing.draft import Draft, draft_from_json, family_from
from effcompress.groups.tracing.probe import Report
from effcompress.groups.tracing.trace import answer, trace_family
from effcompress.groups.tracing.verify import Unproven, cover, prove
from effcompress.model.families import family_of
from effcompress.model.modeling_pruned import silent
from effcompress.model.small import build
from effcompress.network.axis_map import family_for
from effcompress.network.pruned_model import PrunedModel
from effcompress.registry import REGISTRY, Bound
from effcompress.types import UNTOUCHED_EXPERTS, Axis, Family
from tests.conftest import shape, tiny, tokens

STARCODER2 = {"model_type": "starcoder2", "hidden_size": 48, "intermediate_size": 40}
STARCODER2 |= {"num_hidden_layers": 3, "num_attention_heads": 6, "num_key_value_heads": 3}
STARCODER2 |= {"vocab_size": 61, "bos_token_id": 1, "eos_token_id": 2}
APERTUS = {**STARCODER2, "model_type": "apertus"}
FALCON = {"model_type": "falcon", "hidden_size": 48, "num_hidden_layers": 3, "vocab_size": 61}
FALCON |= {"num_attention_heads": 6, "bos_token_id": 1, "eos_token_id": 2}
SOURCES = {"starcoder2": STARCODER2, "falcon": FALCON}
SOURCES |= {name: {"model_type": name} for name in ("stablelm", "glm", "exaone4", "gemma", "olmoe")}
SOURCES |= {"mamba": {"model_type": "mamba"}}
SOURCES |= {"llama4_text": {"model_type": "llama4_text", "num_hidden_layers": 4}}
SOURCES["llama4_text"] |= {"hidden_size": 48, "intermediate_size": 40, "intermediate_size_mlp": 44}
SOURCES["llama4_text"] |= {"num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 8}
SOURCES["llama4_text"] |= {"vocab_size": 258, "num_local_experts": 4, "pad_token_id": None}
SOURCES["llama4_text"] |= {"interleave_moe_layer_step": 2, "bos_token_id": 1, "eos_token_id": 2}
DOWN = "model.layers.{i}.mlp.c_proj.weight"


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@functools.cache
def draft(model_type: str) -> Draft:
    """Traced in this process."""
    return search.propose(SOURCES[model_type], build, silent)


def proven(draft: Draft) -> list[str]:
    return sorted(kind for kind in draft.kinds if kind not in draft.kept)


def cut(config: dict[str, Any], family: Family, plan: dict[str, list[int]]) -> None:
    """The engine masks and removes, and both are the same function."""
    built = AutoConfig.for_model(**config).to_dict()
    model = build(built, "given").double()
    for p in model.parameters():
        p.data.uniform_(0.5, 1.5) if p.dim() == 1 else p.data.normal_(0, 0.2)
    spaces = [Bound(REGISTRY.get("space", kind), {}) for kind in ("ffn", "attention", "hidden")]
    pruned = PrunedModel(model, config, spaces, family=family)
    before = pruned.params
    pruned.mask(plan)
    with torch.no_grad():
        masked = model(input_ids=tokens(), use_cache=False).logits
        pruned.commit()
        removed = model(input_ids=tokens(), use_cache=False).logits
    torch.testing.assert_close(removed, masked, rtol=0, atol=1e-4)
    assert sum(p.numel() for p in model.parameters()) == pruned.params < before


def test_an_undeclared_architecture_works_from_end_to_end() -> None:
    family = family_for(APERTUS, timeout=100)
    assert family.traced
    assert family is family_for(dict(APERTUS), timeout=100)  # traced once
    assert not {"ffn", "attention", "query", "hidden"} & set(family.fixed)
    axes = groups.from_config(family, APERTUS)
    assert [axes.widths[n] for n in ("hidden", "ffn.2", "attention.0", "query.0")] == [48, 40, 3, 2]
    plan = {"ffn.0": [3], "ffn.2": [0, 39], "attention.1": [1], "hidden": [0, 7, 40]}
    cut(APERTUS, family, plan)
    cut(APERTUS, family, {f"attention.{i}": [2] for i in range(3)})


@pytest.mark.parametrize(
    ("model_type", "kinds"),
    [
        ("stablelm", ["attention", "ffn", "hidden"]),
        ("glm", ["attention", "ffn", "hidden", "query"]),  # gate and up in one matrix
        ("exaone4", ["attention", "ffn", "hidden"]),  # norms within each head
        ("falcon", ["attention", "ffn", "hidden"]),  # one KV head, in one matrix with the queries
        ("gemma", ["attention", "ffn"]),
        ("olmoe", ["attention", "hidden"]),  # routed experts: the stream by its width
    ],
)
def test_what_can_be_proven_is_kept(model_type: str, kinds: list[str]) -> None:
    found = draft(model_type)
    assert proven(found) == kinds
    assert draft_from_json(found.to_json()) == found
    assert {"ffn", "attention", "hidden"} - set(kinds) <= found.left_out.keys()
    assert not set(kinds) & found.left_out.keys()


def test_a_reason_is_kept_for_what_is_left_out() -> None:
    said = draft("gemma").left_out["hidden"]
    assert "built at a smaller size, the class computes something else" in said
    assert "model.layers.{i}.mlp.experts stay" in draft("olmoe").left_out[UNTOUCHED_EXPERTS]
    assert "ffn" not in draft("olmoe").left_out[UNTOUCHED_EXPERTS]


def test_the_engine_cuts_a_traced_model_with_fused_queries() -> None:
    family = family_from(draft("falcon"))
    cut(FALCON, family, {"attention.0": [0], "attention.2": [1, 5], "ffn.1": [7], "hidden": [9]})


def test_declared_families_are_not_traced() -> None:
    config = shape("gqa_tied")
    assert family_for(config, timeout=0) is family_of(config)


def stuck(*_: Any) -> None:
    raise Unproven("it is stuck")


def test_what_cannot_be_followed_is_named_with_a_declaration(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(search, "prove_layers", stuck)
    said: Report = {}
    with pytest.raises(
        CoverageError, match=r"neither heads .* nor depth \(.*it is stuck\)"
    ) as caught:
        search.propose({"model_type": "mamba"}, build, silent, said.update)
    assert caught.value.where == "backbone.layers.0.mixer.in_proj"
    text = said.get("declaration", "")
    assert 'Axis("backbone.layers.{i}.mixer.in_proj.weight", 1, "hidden")' in text
    ast.parse(text)


def test_a_model_of_mixers_alone_loses_layers() -> None:
    found = draft("mamba")
    assert not found.no_depth and not found.sublayers
    assert {"hidden"} >= {*proven(found)}
    assert found.left_out.keys() >= {"attention", "ffn"}


def test_a_model_whose_graph_cannot_be_built_is_guessed_from_sizes() -> None:
    """Llama 4's router is a linear layer that returns two tensors, which torch-pruning trips on."""
    assert {"attention", "ffn"} <= {*proven(draft("llama4_text"))}


def test_code_that_comes_with_a_model_is_answered_in_words() -> None:
    config = {"model_type": "mine", "auto_map": {"AutoModelForCausalLM": "modeling.Mine"}}
    with pytest.raises(SourceError, match=r"has none of that name: its code comes with the model"):
        family_for(config)


def test_a_parameter_that_no_axis_reaches_is_named() -> None:
    config = {"model_type": "stablelm", "qk_layernorm": True}  # one norm for each head, in a list
    with pytest.raises(CoverageError, match="this parameter") as caught:
        search.propose(config, build, silent)
    assert "_layernorm.norms." in (caught.value.where or "")
    assert "Declare it in a plugin file" in (caught.value.fix or "")


def test_a_model_that_does_not_run_in_fp64_is_refused_in_words() -> None:
    """XGLM's attention mask overflows there, so nothing about it can be proven."""
    said: list[Report] = []
    answer({"config": AutoConfig.for_model("xglm").to_dict()}, build, silent, said.append)
    error = said[-1].get("error")
    assert (
        error is not None
        and error["kind"] == "SourceError"
        and "fp64" in error["what"]
        and error["fix"]
    )


class OfHeads(nn.Module):
    """A norm that wants a dimension of heads, as xLSTM's."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(12)), 1e-6

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, tokens_, heads, width = x.shape
        return x * self.weight.view(heads, width) + batch * tokens_


def test_a_norm_of_another_input_is_passed_over() -> None:
    model = nn.ModuleDict({"heads": OfHeads(), "stream": nn.LayerNorm(12)})
    assert [norm.gain for norm in norms_of(model)] == ["stream.weight"]


def test_an_error_of_the_models_own_code_is_answered_in_words() -> None:
    def breaks(config: Any, size: str) -> nn.Module:
        raise ValueError("not enough values to unpack")

    said: list[Report] = []
    answer({"config": APERTUS}, breaks, silent, said.append)
    error = said[-1].get("error")
    assert error is not None and error["kind"] == "CoverageError" and error["where"] == "model"
    words = (
        r"tracing 'apertus' fails in test_trace\.py:\d+: ValueError: not enough values to unpack"
    )
    assert re.fullmatch(words, error["what"])


def test_no_end_is_an_error_that_names_the_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "endless.py").write_text(
        "import json, time\n"
        "print(json.dumps({'declaration': 'X = Family()'}))\n"
        "print(json.dumps({'at': 'model.layers.0.self_attn'}), flush=True)\n"
        "print('{\"at', end='', flush=True)\n"
        "time.sleep(600)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(CoverageError, match="gave no answer in 5 s") as caught:
        trace_family(STARCODER2, entry="endless", timeout=5)
    assert caught.value.where == "model.layers.0.self_attn"
    assert "X = Family()" in (caught.value.fix or "")


def test_a_process_that_dies_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "dying.py").write_text("raise SystemExit('no memory')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(CoverageError, match="ended without an answer: no memory"):
        trace_family(STARCODER2, entry="dying", timeout=60)


def test_a_question_without_end_leaves_out_its_module(monkeypatch: pytest.MonkeyPatch) -> None:
    # Two query heads per KV head and rotary embeddings as they are written.
    monkeypatch.setattr(trace_graph, "_traceable_operations", nullcontext)
    monkeypatch.setattr(trace_graph, "SECONDS_PER_QUERY", 0.2)
    model: Any = tiny("gqa_untied", num_hidden_layers=2)
    model.set_attn_implementation("eager")
    traced = trace_graph.trace(model, tokens(1, 7))
    assert "model.layers.0.self_attn.k_proj" in traced.silent
    assert "does not come back" in traced.silent["model.layers.0.self_attn.k_proj"]


def test_models_that_cannot_be_built_are_a_source_error() -> None:
    with pytest.raises(SourceError, match="cannot build 'no_such_model'"):
        search.propose({"model_type": "no_such_model"}, build, silent)


# --------------------------------------------------------------- proposals that are not true


def other(axes: Sequence[Axis], param: str, dim: int, *instead: Axis) -> tuple[Axis, ...]:
    found = []
    for axis in axes:
        found += instead if (axis.param, axis.dim) == (param, dim) else [axis]
    return tuple(found)


@functools.cache
def subject() -> tuple[dict[str, Any], torch.nn.Module]:
    model = build(STARCODER2, "given").double()
    for p in model.parameters():
        p.data.uniform_(0.5, 1.5) if p.dim() == 1 else p.data.normal_(0, 0.2)
    return model.config.to_dict(), model  # type: ignore[union-attr, operator]


def test_the_truth_passes() -> None:
    config, model = subject()
    for kind in proven(draft("starcoder2")):
        prove(family_from(draft("starcoder2")), config, model, kind, tokens())


def test_overlap_is_refused_by_name() -> None:
    true = draft("starcoder2")
    twice = (Axis(DOWN, 1, "ffn.{i}"), Axis(DOWN, 1, "ffn.{i}"))
    lie = replace(true, axes=other(true.axes, DOWN, 1, *twice))
    with pytest.raises(CoverageError) as caught:
        cover(family_from(lie), *subject())
    assert caught.value.where in (DOWN.replace("{i}", "0"), "model.layers.0.mlp.c_fc.weight")


def test_a_parameter_without_axes_is_refused_by_name() -> None:
    true = draft("starcoder2")
    lie = replace(true, axes=other(other(true.axes, DOWN, 0), DOWN, 1))
    with pytest.raises(CoverageError, match="no axis") as caught:
        cover(family_from(lie), *subject())
    assert caught.value.where == DOWN.replace("{i}", "0")


def test_a_missing_side_is_found_out() -> None:
    true = draft("starcoder2")
    lie = replace(true, axes=other(true.axes, DOWN, 1, Axis(DOWN, 1, "elsewhere.{i}")))
    with pytest.raises(Unproven, match="the model fails"):
        prove(family_from(lie), *subject(), "ffn", tokens())


def test_the_wrong_heads_are_found_out() -> None:
    """Shapes fit and the smaller model runs, but its queries have changed their KV heads."""
    true, query = draft("starcoder2"), "model.layers.{i}.self_attn.q_proj.weight"
    mixed = Axis(query, 0, "query.{i}/attention.{i}", "head")
    lie = replace(true, axes=other(true.axes, query, 0, mixed))
    with pytest.raises(Unproven, match="masked and removed differ"):
        prove(family_from(lie), *subject(), "attention", tokens())


def test_a_tracer_that_lies_about_everything_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    true = search.trace

    def lying(*args: Any) -> trace_graph.Trace:
        traced = true(*args)
        torn = [
            {p: at for p, at in one.items() if "c_proj" not in p[0] and "o_proj" not in p[0]}
            for one in traced.coupled
        ]
        return replace(traced, coupled=tuple(torn))

    monkeypatch.setattr(search, "trace", lying)
    for guess in ("channels_by_size", "heads_by_size"):  # which would find the truth
        monkeypatch.setattr(search, guess, lambda *_: ())
    monkeypatch.setattr(search, "prove_layers", stuck)
    with pytest.raises(CoverageError, match="neither heads nor feed-forward channels") as caught:
        search.propose(STARCODER2, build, silent)
    assert (caught.value.where or "").startswith("model.layers.0.")

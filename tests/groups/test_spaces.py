"""Spaces: which mini-groups they offer, and the constraints that they carry."""

from __future__ import annotations

from dataclasses import replace

import pytest

from effcompress import groups
from effcompress.errors import CoverageError
from effcompress.model.families import family_of
from effcompress.registry import REGISTRY, Bound
from effcompress.selection.budget import Budget, simulate
from effcompress.selection.candidates import candidates_of, least
from effcompress.types import AxisMap, GroupSet
from tests.conftest import shape


def axes(model_type: str = "llama", name: str = "gqa_tied", **more: object) -> AxisMap:
    config = shape(name, model_type=model_type, **more)
    return groups.from_config(family_of(config), config)


def find(of: AxisMap, name: str, **knobs: object) -> list[GroupSet]:
    return groups.find(of, [Bound(REGISTRY.get("space", name), knobs)])


def test_units_of_attention() -> None:
    shared, own = axes(), axes(name="mha_tied")
    assert [s.name for s in find(shared, "attention")] == [f"attention.{i}" for i in range(3)]
    (first, *_) = find(shared, "attention", unit="q_per_group")
    assert (first.name, first.size) == ("query.0", 2)
    index = {m.param.split(".")[-2]: m.index_GB for m in first.members}
    assert index.keys() == {"q_proj", "o_proj"}  # keys and values stay
    assert index["q_proj"][1].tolist() == [h * 8 + k for h in (1, 3, 5) for k in range(8)]
    assert find(own, "attention", unit="head")[0].size == 4
    with pytest.raises(CoverageError, match="2 query heads share a KV head"):
        find(shared, "attention", unit="head")
    with pytest.raises(CoverageError, match="every query head has a KV head of its own"):
        find(own, "attention", unit="q_per_group")


def test_serving_on_several_devices_wants_multiples() -> None:
    of = axes(num_key_value_heads=6)
    assert {s.round_to for s in find(of, "ffn", round_to=3, serve_tp=2)} == {6}
    assert {s.round_to for s in find(of, "attention", serve_tp=2)} == {2}
    # 3 KV heads on 2 devices: the query heads of each must make up for it.
    assert {s.round_to for s in find(axes(), "attention", unit="q_per_group", serve_tp=2)} == {2}
    b = Budget(of, candidates_of(find(of, "attention", serve_tp=2)), {}, 1)
    simulate(b)
    assert b.widths["attention.0"] == 2


def test_layers_to_skip_count_from_either_end() -> None:
    kept = find(axes(), "ffn", skip_layers=(0, -1))
    assert [s.name for s in kept] == ["ffn.1"]
    assert [s.name for s in find(axes(), "layer", skip_layers=(-2,))] == ["layer.0", "layer.2"]


def test_layers_are_one_pool_with_a_floor() -> None:
    of = axes(num_hidden_layers=6)
    sets = find(of, "layer", minimum=4)
    assert {(s.scope, s.minimum, s.floor, s.size) for s in sets} == {("global", 0, 4, 1)}
    b = Budget(of, candidates_of(sets), {}, 1)
    removed = simulate(b)
    assert removed == {"layer": 2}
    assert b.params == least(of, sets) == of.count({"layer.0": 0, "layer.1": 0})
    assert b.removed(0) == pytest.approx(1 / 3)


def test_a_layer_does_not_take_the_last_block_of_its_kind_along() -> None:
    of = axes(num_hidden_layers=4)
    sets = [*find(of, "attention_block"), *find(of, "layer")]
    gone = {f"attention_block.{i}": 0 for i in (1, 2, 3)}
    b = Budget(of, candidates_of(sets), gone, 1)
    assert [b.candidates[k].sets[0] for k in b.open()] == ["layer.1", "layer.2", "layer.3"]


def test_layers_that_differ_cannot_reach_multiples_together() -> None:
    of = axes()
    uneven = replace(of, widths={**of.widths, "ffn.1": 38})
    with pytest.raises(CoverageError, match="ffn: layers that differ in width"):
        find(uneven, "ffn", round_to=4)
    assert len(find(uneven, "ffn", round_to=4, scope="per_layer")) == 3


def test_skipping_a_layer_that_is_not_there_is_an_error() -> None:
    for i in (3, -4):
        with pytest.raises(CoverageError, match=f"skip_layers names {i}, but the model has 3"):
            find(axes(), "ffn", skip_layers=(i,))


def test_experts_stay_as_many_as_a_token_is_sent_to() -> None:
    sets = find(axes("mixtral"), "expert")
    assert {(s.size, s.minimum) for s in sets} == {(5, 2)}
    sparse = find(axes("qwen3_moe"), "expert")
    assert [s.name for s in sparse] == ["expert.0", "expert.2"]  # layer 1 is dense
    kinds = [s.name for s in find(axes("qwen3_moe"), "ffn")]
    assert kinds == ["ffn.1", "expert_ffn.0", "expert_ffn.2"]


def test_what_a_family_cannot_lose_is_said() -> None:
    with pytest.raises(CoverageError, match="residual stream itself is normalised"):
        find(axes("opt", do_layer_norm_before=False), "layer")
    with pytest.raises(CoverageError, match="scaled by the number of the layer"):
        find(axes("gpt2", scale_attn_by_inverse_layer_idx=True), "layer")
    with pytest.raises(CoverageError, match="space 'expert' finds nothing"):
        find(axes(), "expert")


@pytest.mark.parametrize("kind", ["layer", "attention_block", "mlp_block"])
def test_a_module_frees_all_that_lives_in_it(kind: str) -> None:
    of = axes("gemma2")
    inside = {"attention_block": "self_attn", "mlp_block": "mlp"}.get(kind, "")
    wanted = sum(
        of.numel(param, of.widths)
        for param in of.shapes
        if param.startswith(f"model.layers.1.{inside}")
    )
    freed = of.freed(f"{kind}.1", of.widths)
    # The norms around a block go with it.
    assert freed == wanted + (2 * 48 if inside else 0)


def test_a_minimum_above_the_width_cuts_nothing() -> None:
    sets = find(axes(), "ffn", minimum=10**6)
    assert all(s.minimum == s.size for s in sets)
    b = Budget(axes(), candidates_of(sets), {}, 1)
    assert not b.open()


def test_an_experts_minimum_is_the_larger_one() -> None:
    assert {s.minimum for s in find(axes("mixtral"), "expert", minimum=1)} == {2}
    assert {s.minimum for s in find(axes("mixtral"), "expert", minimum=3)} == {3}


def test_every_limit_reaches_its_sets() -> None:
    limits = {"minimum": 3, "round_to": 2, "finish_on": 3, "after": 0.1, "until": 0.4}
    for kind in ("ffn", "hidden"):
        for s in find(axes(), kind, **limits):
            assert {name: getattr(s, name) for name in limits} == limits
            assert (s.scope, s.multiple) == ("lockstep", 6)
    for kind in ("attention", "layer", "attention_block", "mlp_block"):
        for s in find(axes(), kind, after=0.1, until=0.4):
            assert (s.after, s.until) == (0.1, 0.4)
    assert {s.scope for s in find(axes(), "attention", scope="global")} == {"global"}


def test_an_empty_range_is_an_error() -> None:
    with pytest.raises(CoverageError, match="after 40% is not below until 40%"):
        find(axes(), "ffn", after=0.4, until=0.4)

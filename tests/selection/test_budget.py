"""Arithmetic of what may still go."""

from __future__ import annotations

import cProfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from effcompress import groups
from effcompress.model.families import family_of
from effcompress.model.families.llama import LLAMA
from effcompress.registry import REGISTRY, Bound
from effcompress.selection.budget import Budget, simulate
from effcompress.selection.candidates import candidates_of, least, positions
from effcompress.selection.reachability import TOLERANCE
from tests.conftest import shape

BIG = shape("gqa_tied", vocab_size=512, hidden_size=96, intermediate_size=400)


def budget(target: float, scope: str = "lockstep", **knobs: int) -> Budget:
    axes = groups.from_config(LLAMA, BIG)
    space = [
        Bound(REGISTRY.get("space", "attention"), {"scope": scope}),
        Bound(REGISTRY.get("space", "ffn"), {"scope": scope, **knobs}),
        Bound(REGISTRY.get("space", "hidden")),
    ]
    sets = groups.find(axes, space)
    return Budget(axes, candidates_of(sets), {}, round(target * axes.count()))


def test_lockstep_kinds_are_one_line_each() -> None:
    lines = budget(0.5).candidates
    assert [(line.kind, len(line.sets)) for line in lines] == [
        ("attention", 3),
        ("ffn", 3),
        ("hidden", 1),
    ]
    assert len(budget(0.5, "per_layer").candidates) == 7


@settings(max_examples=30, deadline=None)
@given(
    target=st.floats(0.35, 0.98),
    scope=st.sampled_from(["lockstep", "per_layer"]),
    order=st.lists(st.integers(0, 6), max_size=60),
)
def test_any_order_of_cuts_is_priced_exactly_and_meets_the_target(
    target: float, scope: str, order: list[int]
) -> None:
    b = budget(target, scope)
    for k in order:
        if k in b.open():
            b.take(k)
            assert b.params == b.axes.count(b.widths)
    simulate(b)
    assert b.params == b.axes.count(b.widths)
    assert b.params >= b.target * (1 - TOLERANCE)
    assert b.reached


def test_sets_of_a_candidate_may_have_other_widths() -> None:
    """What a unit frees follows from the width of each layer; equal ones are one variable."""
    b = budget(0.5)
    widths = {"ffn.1": 300, "attention.2": 3}
    own = Budget(b.axes, b.candidates, widths, b.target)
    while (choices := own.open()) and own.params > own.target:
        for k in choices[:3]:
            freed, before = own.freed(k), own.params
            own.take(k)
            assert own.params == before - freed == own.axes.count(own.widths)
    assert own.widths["ffn.1"] == own.widths["ffn.0"] - 100


@pytest.mark.parametrize(("target", "met"), [(1 / 1.0045, True), (1 / 1.0055, False)])
def test_a_size_within_half_a_percent_is_the_target(target: float, met: bool) -> None:
    assert budget(target).reached == met


def test_what_has_begun_is_promised_and_kept() -> None:
    """One channel commits to the whole stride; until it is gone the target is not reached."""
    b = budget(0.9, finish_on=8)
    k = next(k for k, c in enumerate(b.candidates) if c.kind == "ffn")
    assert (b.step(k), b.promised(k), b.promises) == (1, 0, False)
    b.take(k)
    assert (b.promised(k), b.promises, b.reached) == (7, True, False)
    before = b.next_size
    for left in range(6, -1, -1):
        assert k in b.open()
        b.take(k)
        assert b.promised(k) == left and (left == 0 or b.next_size == before)
    assert not b.promises and b.widths["ffn.0"] == 392


def test_minimum_is_kept() -> None:
    b = budget(0.3, minimum=300)
    simulate(b)
    assert min(b.widths[f"ffn.{i}"] for i in range(3)) == 300


def test_simulate_is_proportional_and_counts() -> None:
    b = budget(0.6)
    removed = simulate(b, groups=200)
    assert sum(removed.values()) <= 200
    shares = [b.removed(k) for k in range(3)]
    assert max(shares) - min(shares) <= 1 / 3 + 1e-9  # a third: the coarsest unit


def test_stops_at_an_intermediate_size() -> None:
    b = budget(0.5)
    wanted = round(0.8 * b.params)
    simulate(b, params=wanted)
    assert wanted - b.freed(0) <= b.params <= wanted


def test_a_large_unit_does_not_overshoot() -> None:
    b = budget(0.98)  # a head in every layer is more than 2 %
    assert b.params - b.freed(0) < b.target * (1 - TOLERANCE)
    assert 0 not in b.open()
    simulate(b)
    assert b.widths["attention.0"] == 3
    assert b.params == pytest.approx(b.target, rel=TOLERANCE)


@settings(max_examples=20, deadline=None)
@given(target=st.floats(0.5, 0.95), multiple=st.sampled_from([4, 8, 16]))
def test_round_to_keeps_every_width_on_the_way_a_multiple(target: float, multiple: int) -> None:
    axes = groups.from_config(LLAMA, {**BIG, "intermediate_size": 403})
    space = [
        Bound(REGISTRY.get("space", "ffn"), {"round_to": multiple}),
        Bound(REGISTRY.get("space", "hidden"), {"round_to": 2}),
    ]
    sets = groups.find(axes, space)
    b = Budget(axes, candidates_of(sets), {}, round(target * axes.count()))
    while b.open():
        b.take(min(b.open(), key=b.removed))
        assert b.params == axes.count(b.widths)
        assert b.widths["ffn.0"] == 403 or b.widths["ffn.0"] % multiple == 0
        assert b.widths["hidden"] % 2 == 0
    assert b.params >= b.target * (1 - TOLERANCE)


def test_the_size_that_was_asked_for_is_enough() -> None:
    """Not one mini-group less, and none more."""
    b = budget(0.5)
    assert b.satisfies(b.params) and b.satisfies(b.params + 1)
    assert not b.satisfies(b.params - 1) and not b.satisfies(None)


def test_what_always_remains_ends_on_multiples() -> None:
    """A minimum of 10 that ends on multiples of 8 is 16; the other kinds go down to one."""
    axes = groups.from_config(LLAMA, BIG)
    bound = Bound(REGISTRY.get("space", "ffn"), {"minimum": 10, "finish_on": 8})
    sets = groups.find(axes, [bound])
    assert least(axes, sets) == axes.count({s.name: 16 for s in sets})


def test_columns_that_a_unit_owns() -> None:
    """Three KV heads of two queries, heads of 8, 400 channels: in the projections back."""
    axes = groups.from_config(LLAMA, BIG)
    names = (
        ("attention", {}),
        ("attention", {"unit": "q_per_group"}),
        ("ffn", {}),
        ("hidden", {}),
        ("attention_block", {}),
        ("mlp_block", {}),
        ("layer", {}),
    )
    found: dict[str, int] = {}
    for name, knobs in names:
        found |= positions(axes, groups.find(axes, [Bound(REGISTRY.get("space", name), knobs)]))
    wanted = {"attention": 16, "query": 24, "ffn": 1, "hidden": 1}
    assert found == wanted | {"attention_block": 48, "mlp_block": 400, "layer": 448}


@pytest.mark.parametrize("scope", ["lockstep", "per_layer", "global"])
@pytest.mark.parametrize(
    "knobs",
    [{}, {"minimum": 37}, {"round_to": 16}, {"round_to": 16, "minimum": 30}, {"finish_on": 64}],
    ids=str,
)
def test_what_is_left_is_what_can_be_taken(scope: str, knobs: dict[str, int]) -> None:
    """Counted by taking: nothing but FFN channels may go, and the target is out of reach."""
    axes = groups.from_config(LLAMA, BIG)
    space = [Bound(REGISTRY.get("space", "ffn"), {"scope": scope, **knobs})]
    b = Budget(axes, candidates_of(groups.find(axes, space)), {}, 1)
    for _ in range(3):
        b.take(b.open()[0])
    expected, taken = b.left, 0
    while b.open():
        b.take(b.open()[0])
        taken += 1
    assert expected == {"ffn": taken}
    assert taken and b.left == {"ffn": 0}


def test_of_layers_of_two_sizes_that_goes_which_leads_to_the_target() -> None:
    """A dense layer in front of a mixture: one of the two may go, and only one has the size."""
    config = {
        **shape("gqa_tied", model_type="glm4_moe"),
        **{"num_hidden_layers": 2, "first_k_dense_replace": 1},
    }
    axes = groups.from_config(family_of(config), config)
    sets = groups.find(axes, [Bound(REGISTRY.get("space", "layer"))])
    for goes, stays in (("layer.0", "layer.1"), ("layer.1", "layer.0")):
        target = axes.count({goes: 0})
        assert target != axes.count({stays: 0})
        b = Budget(axes, candidates_of(sets), {}, target)
        assert [b.candidates[k].sets for k in b.open()] == [(goes,)]
        assert not b.goes_whole
        simulate(b)
        assert b.reached


SMOLLM2_135M = {
    **{"model_type": "llama", "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536},
    **{"num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3},
    **{"head_dim": 64, "tie_word_embeddings": True},
}


@pytest.mark.parametrize(
    "space",
    [
        {"layer": {}, "attention_block": {}, "mlp_block": {}},
        {
            "attention": {"scope": "per_layer"},
            "ffn": {"scope": "per_layer", "round_to": 512},
            "layer": {},
        },
    ],
)
def test_large_strides_are_planned_within_seconds(space: dict[str, dict[str, object]]) -> None:
    """No small strides lead to the target, so what may go is searched for at every cut. Calls are
    counted, a few million to the second: how busy the machine is does not matter.
    """
    axes = groups.from_config(LLAMA, SMOLLM2_135M)
    spaces = [Bound(REGISTRY.get("space", name), knobs) for name, knobs in space.items()]
    sets = groups.find(axes, spaces)
    budget = Budget(axes, candidates_of(sets), {}, round(0.4 * axes.count()))
    assert not budget.bridged
    with cProfile.Profile() as calls:
        simulate(budget)
    assert budget.reached
    assert sum(entry.callcount for entry in calls.getstats()) < 3_000_000

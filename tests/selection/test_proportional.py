"""The same fraction of every kind, rounded down: no coarse kind runs ahead of the finer ones."""

from __future__ import annotations

import random
from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from effcompress import groups
from effcompress.model.families.llama import LLAMA
from effcompress.registry import REGISTRY, Bound
from effcompress.selection.budget import Budget, simulate
from effcompress.selection.candidates import candidates_of
from effcompress.selection.choose import choose
from effcompress.types import AxisMap, Due, GroupSet
from tests.conftest import examples

PROPORTIONAL = Bound(REGISTRY.get("selector", "proportional"))
SMOLLM2_135M = {
    "model_type": "llama",
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "tie_word_embeddings": True,
}
SMALL = {
    **SMOLLM2_135M,
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 180,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "head_dim": 8,
}


def space(**kinds: dict[str, object]) -> list[Bound]:
    return [Bound(REGISTRY.get("space", name), knobs) for name, knobs in kinds.items()]


def cut(axes: AxisMap, sets: list[GroupSet], keep: float, due: Due | None = None) -> dict[str, int]:
    """Widths after a cut by the selector, with saliency that says nothing."""
    generator = torch.Generator().manual_seed(0)
    scores = {s.name: torch.rand(s.size, generator=generator) for s in sets}
    target = round(keep * axes.count())
    return dict(choose(sets, axes, scores, due or Due(params=target), target, PROPORTIONAL).widths)


@pytest.mark.parametrize(
    ("params", "heads", "ffn"),
    [(121_000_000, 3, 1536 * 2 // 3), (94_000_000, 2, 1536 // 2)],
)
def test_llm_pruner_takes_what_its_authors_take(params: int, heads: int, ffn: int) -> None:
    """Three KV groups to a layer, layers 3 to 28: at 121M a third would be too many heads, and none
    goes; at 94M one of three goes and about half of the channels, not two and 39 %.
    """
    axes = groups.from_config(LLAMA, SMOLLM2_135M)
    skip = {"skip_layers": (0, 1, 2, -1)}
    sets = groups.find(axes, space(attention=skip, ffn=skip))
    widths = cut(axes, sets, params / axes.count())
    assert {widths[f"attention.{i}"] for i in range(3, 29)} == {heads}
    assert {widths[f"ffn.{i}"] for i in range(3, 29)} <= set(range(ffn - 90, ffn + 220))
    assert widths["ffn.3"] > 1536 * (heads - 1) / 3  # another head is not due


@pytest.mark.parametrize("scope", ["lockstep", "per_layer", "global"])
@examples(25)
@given(seed=st.integers(0, 10**6))
def test_fractions_differ_by_at_most_one_unit_of_the_coarsest(scope: str, seed: int) -> None:
    """At every size on the way, for any widths, multiples and floors; and who is behind is so by
    less than one step: no candidate was taken that would pass another's next step.
    """
    rng = random.Random(seed)
    kv = rng.randint(2, 7)
    config = SMALL | {
        "num_key_value_heads": kv,
        "num_attention_heads": kv * rng.randint(1, 3),
        "hidden_size": rng.randint(48, 120),
        "intermediate_size": rng.randint(90, 300),
        "num_hidden_layers": rng.randint(2, 4),
    }
    axes = groups.from_config(LLAMA, config)
    ffn = {"scope": scope, "round_to": rng.choice([1, 4]), "finish_on": rng.choice([4, 16, 32])}
    kinds: dict[str, dict[str, object]] = {"attention": {"scope": scope}, "ffn": ffn}
    if rng.random() < 0.5:
        kinds["hidden"] = {"finish_on": rng.choice([1, 8])}
    sets = groups.find(axes, space(**kinds))
    widths = cut(axes, sets, 0.3, Due(params=round(rng.uniform(0.6, 0.98) * axes.count())))
    assert_level(axes, sets, widths)


def assert_level(axes: AxisMap, sets: list[GroupSet], widths: dict[str, int]) -> None:
    """Holds the fractions of all candidates (of pools: of all their sets) against each other, in
    exact arithmetic: ``gone`` is what went or is promised, ``behind`` that and one stride more.
    """
    together: dict[str, list[GroupSet]] = {}
    for s in sets:
        together.setdefault(s.name if s.scope == "per_layer" else s.kind, []).append(s)
    gone, behind = {}, {}
    for name, members in together.items():
        size = sum(s.size for s in members)
        left = sum(_finished(s, widths[s.name]) for s in members)
        s = members[0]
        strides = len(members) if s.scope == "lockstep" else 1
        gone[name] = 1 - Fraction(left, size)
        behind[name] = 1 - Fraction(left - strides * s.multiple, size)
    assert max(gone.values()) <= min(behind.values())
    coarsest = max(behind[name] - gone[name] for name in gone)
    assert max(gone.values()) - min(gone.values()) <= coarsest


def _finished(s: GroupSet, width: int) -> int:
    """The width once the stride that was begun is finished."""
    return width if width == s.size else width // s.multiple * s.multiple


def test_a_stride_is_begun_only_when_all_of_it_is_due() -> None:
    """`finish_on: 60` makes channels as coarse as a third: the first one promises the other 59."""
    axes = groups.from_config(LLAMA, SMALL)
    sets = groups.find(axes, space(ffn={"finish_on": 60}, hidden={}))
    first = cut(axes, sets, 0.15, Due(groups=20))
    assert (first["ffn.0"], first["hidden"]) == (180, 44)  # 31 %, and 60 channels are 33 %
    later = cut(axes, sets, 0.15, Due(groups=21 + 30))
    assert (later["ffn.0"], later["hidden"]) == (180 - 30, 43)
    assert cut(axes, sets, 0.15, Due(groups=21 + 60 + 5))["ffn.0"] == 120


def test_layers_of_unlike_widths_count_with_all_their_units() -> None:
    """In lockstep 12 of 60 and 12 of 180 are 10 % of the kind, not 20 %."""
    axes = groups.from_config(LLAMA, SMALL)
    axes = replace(axes, widths={**axes.widths, "ffn.0": 60, "ffn.1": 60})
    sets = groups.find(axes, space(ffn={}, hidden={}))
    budget = Budget(axes, candidates_of(sets), {}, axes.count() // 3)
    simulate(budget, groups=24)
    gone = 1 - sum(budget.widths[f"ffn.{i}"] for i in range(4)) / (2 * 60 + 2 * 180)
    assert gone == pytest.approx(1 - budget.widths["hidden"] / 64, abs=1 / 64)


def test_the_adaptive_selector_begins_a_stride_when_all_of_it_is_due() -> None:
    """A layer of a low rate does not begin 60 channels for the fraction of the first."""
    axes = groups.from_config(LLAMA, SMALL)
    sets = groups.find(axes, space(ffn={"finish_on": 60, "scope": "per_layer"}))
    adaptive = Bound(REGISTRY.get("selector", "adaptive"))
    scores = {s.name: torch.ones(s.size) for s in sets}
    influence = {"0": [0.9, 1], "1": [0.5, 1], "2": [0.5, 1], "3": [0.1, 1]}
    target = axes.count() - 60 * axes.freed("ffn.3", axes.widths)
    found = choose(sets, axes, scores, Due(groups=90), target // 2, adaptive, influence)
    assert found.widths["ffn.0"] == 180
    assert found.widths["ffn.3"] == 180 - 60

"""Levels of a set, what is filled up between two of them, and the plan that a choice is."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from effcompress.errors import CoverageError
from effcompress.groups import find, from_config
from effcompress.model.families import family_of
from effcompress.registry import REGISTRY, Bound
from effcompress.selection.allocate import chosen, errors_of, units_gone
from effcompress.selection.levels import Module, filled, held_back, modules_of, widths_of
from effcompress.types import AxisMap, GroupSet
from tests.conftest import shape


def found(
    kinds: tuple[str, ...] = ("attention", "ffn"), **limits: object
) -> tuple[AxisMap, list[GroupSet]]:
    config = shape("gqa_tied")
    axes = from_config(family_of(config), config)
    per_layer = {"attention": {"scope": "per_layer"}, "ffn": {"scope": "per_layer", **limits}}
    space = [Bound(REGISTRY.get("space", k), per_layer.get(k, {})) for k in kinds]
    return axes, find(axes, space)


def test_ffn_widths_fall_by_a_tenth_in_multiples() -> None:
    (one, *_) = modules_of(found(("ffn",), round_to=4)[1], 0.9)
    # 40 * 0.9^k: 36, 32.4, 29.2, 26.2, 23.6, 21.3, 19.1, 17.2, ...
    assert one.widths == (40, 36, 32, 28, 24, 20, 16, 12, 8, 4)
    (one, *_) = modules_of(found(("ffn",), round_to=8, minimum=16)[1], 0.5)
    assert one.widths == (40, 24, 16)


def test_every_number_of_heads_is_a_level_and_blocks_go_whole_where_they_may() -> None:
    sets = found(("attention", "ffn", "attention_block"))[1]
    modules = {m.name: m for m in modules_of(sets, 0.9)}
    assert modules["attention.1"].widths == (3, 2, 1, 0)
    assert modules["attention.1"].block == "attention_block.1"
    assert modules["ffn.1"].widths[-1] == 1 and not modules["ffn.1"].block
    assert set(modules) == {f"{kind}.{i}" for kind in ("attention", "ffn") for i in range(3)}


@given(st.integers(2, 300), st.integers(1, 16), st.floats(0.05, 0.99))
def test_widths_fall_and_are_multiples(size: int, multiple: int, shrink: float) -> None:
    one = GroupSet("ffn.0", "ffn", 0, size, (), minimum=1, round_to=multiple)
    (module,) = modules_of([one], shrink)
    assert module.size == size
    assert list(module.widths) == sorted(set(module.widths), reverse=True)
    assert module.widths[-1] in (size, multiple)
    assert all(w % multiple == 0 and w >= 1 for w in module.widths[1:])


def test_other_kinds_and_scopes_are_refused() -> None:
    with pytest.raises(CoverageError, match="not of 'hidden'"):
        modules_of(found(("ffn", "hidden"))[1], 0.9)
    lockstep = [replace(s, scope="lockstep") for s in found(("ffn",))[1]]
    with pytest.raises(CoverageError, match="scope lockstep"):
        modules_of(lockstep, 0.9)


MODULES = [
    Module("ffn.0", "ffn", (8, 4, 2), "", 1),
    Module("ffn.1", "ffn", (8, 4, 0), "mlp_block.1", 1),
]


def test_blocks_are_cut_with_their_units_or_not_at_all() -> None:
    with pytest.raises(CoverageError, match="none of its 'attention' units is left") as said:
        modules_of(found(("ffn", "attention_block"))[1], 0.9)
    assert "{name: attention, scope: per_layer}" in str(said.value)
    with pytest.raises(CoverageError, match="'attention' units"):
        modules_of(found(("attention_block", "mlp_block"))[1], 0.9)


def test_the_block_that_makes_most_of_a_difference_is_held_back() -> None:
    modules = [Module(f"ffn.{i}", "ffn", (8, 4, 0), f"mlp_block.{i}", 1, 2) for i in range(3)]
    modules.append(Module("attention.0", "attention", (2, 1, 0), "attention_block.0", 1, 0))
    errors = [[0.0, 0.5, 0.6], [0.0, 0.1, 0.9], [0.0, 0.1, 0.2], [0.0, 0.1, 9.0]]
    assert held_back(modules, [2, 2, 1, 2], errors) == [1, 0]
    assert held_back(modules, [2, 1, 1, 2], errors) == []


def test_errors_add_up_what_goes() -> None:
    scores = {"ffn.0": torch.tensor([8.0, 1, 7, 2, 6, 3, 5, 4]), "ffn.1": torch.arange(8.0)}
    plain = Bound(REGISTRY.get("criterion", "magnitude"), {})
    assert errors_of(MODULES, scores, plain) == [[0, 10, 21], [0, 6, 28]]
    whole = Bound(REGISTRY.get("criterion", "ziplm"), {})
    assert errors_of(MODULES, scores, whole) == [[0, 4, 6], [0, 3, 7]]
    assert units_gone(MODULES[0], scores["ffn.0"], 4) == [1, 3, 5, 7]


def test_what_a_level_leaves_is_filled_where_the_error_falls_most() -> None:
    errors, costs = [[0.0, 4.0, 9.0], [0.0, 1.0, 9.0]], [[80.0, 40.0, 20.0], [80.0, 40.0, 0.0]]
    # Both at 4 of 8: a channel costs 10. The first gains 0.1 per parameter, the second 0.025.
    assert filled(MODULES, [1, 1], errors, costs, 35.0) == [7, 4]
    assert filled(MODULES, [1, 1], errors, costs, 55.0) == [7, 6]
    assert filled(MODULES, [0, 2], errors, costs, 55.0) == [8, 0]
    assert filled(MODULES, [1, 1], errors, costs, 9.9) == [4, 4]
    # In a table of times a narrower block may take as long.
    assert filled(MODULES, [1, 1], errors, [[40.0, 40.0, 20.0], costs[1]], 35.0) == [4, 7]
    assert filled(MODULES, [1, 1], errors, [[40.0, 40.0, 20.0]] * 2, 0.0) == [4, 4]


def test_a_choice_is_a_plan_of_the_least_salient() -> None:
    axes, sets = found(("attention", "ffn", "mlp_block"))
    modules = modules_of(sets, 0.5)
    scores = {s.name: torch.arange(float(s.size)).flip(0) for s in sets}
    width_M = [2 if m.name == "attention.1" else m.size for m in modules]
    width_M[[m.name for m in modules].index("ffn.0")] = 38
    width_M[[m.name for m in modules].index("ffn.2")] = 0
    choice = chosen(sets, modules, width_M, scores, axes)
    assert choice.plan == {"attention.1": [2], "ffn.0": [38, 39], "mlp_block.2": [0]}
    assert choice.scores["ffn.0"] == [1.0, 0.0]
    assert choice.removed == {"attention": 1, "ffn": 2, "mlp_block": 1}
    assert choice.units == {"attention": 1, "ffn": 2, "mlp_block": 40}
    widths = widths_of(modules, width_M)
    assert widths["mlp_block.2"] == 0 and "ffn.2" not in widths
    assert choice.params == axes.count({"attention.1": 2, "ffn.0": 38, "mlp_block.2": 0})
    assert choice.widths["ffn.2"] == 0 and choice.widths["mlp_block.2"] == 0
    assert choice.exhausted

"""Kinds that go only in a range of sizes, and widths that end on a multiple."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from effcompress import groups
from effcompress.errors import CoverageError
from effcompress.model.families import LLAMA
from effcompress.registry import REGISTRY, Bound
from effcompress.selection.budget import Budget, simulate
from effcompress.selection.lines import lines_of, positions
from tests.conftest import shape

BIG = shape("gqa_tied", vocab_size=512, hidden_size=96, intermediate_size=400)
AXES = groups.from_config(LLAMA, BIG)


def budget(target: float, **spaces: dict[str, Any]) -> Budget:
    space = [Bound(REGISTRY.get("space", name), knobs) for name, knobs in spaces.items()]
    return Budget(AXES, lines_of(groups.find(AXES, space)), {}, round(target * AXES.count()))


def kinds(b: Budget) -> set[str]:
    return {b.lines[k].kind for k in b.open()}


def test_a_kind_waits_until_enough_is_gone() -> None:
    b = budget(0.4, ffn={"minimum": 40}, hidden={"after": 0.3})
    while kinds(b) == {"ffn"}:
        b.take(b.open()[0])
    gone = 1 - b.params / b.start
    unit = 3 * 3 * 96 / b.start  # one FFN channel of three layers
    assert 0.3 <= gone < 0.3 + unit
    assert kinds(b) == {"ffn", "hidden"}


def test_a_kind_stops_when_enough_is_gone() -> None:
    b = budget(0.4, ffn={"until": 0.2}, hidden={})
    seen: list[tuple[float, set[str]]] = []
    while b.open():
        seen.append((1 - b.params / b.start, kinds(b)))
        b.take(b.open()[0])
    assert all(("ffn" in now) == (gone < 0.2) for gone, now in seen)


def test_an_empty_range_is_an_error() -> None:
    with pytest.raises(CoverageError, match="after"):
        budget(0.5, ffn={"after": 0.5, "until": 0.5})


@pytest.mark.parametrize("scope", ["lockstep", "per_layer", "global"])
@settings(max_examples=25, deadline=None)
@given(target=st.floats(0.45, 0.95), multiple=st.sampled_from([4, 8, 16]), seed=st.integers(0, 99))
def test_widths_end_on_multiples_in_any_order(
    scope: str, target: float, multiple: int, seed: int
) -> None:
    b = budget(target, ffn={"scope": scope, "finish_on": multiple}, hidden={"finish_on": 4})
    order, ones = random.Random(seed), 0
    while choices := b.open():
        before = b.params
        k = order.choice(choices)
        assert b.block(k) == 1
        freed = b.freed(k)
        b.take(k)
        ones += 1
        assert before - b.params == freed and b.params == AXES.count(b.widths)
    for name in ("ffn.0", "ffn.1", "ffn.2"):
        assert b.widths[name] % multiple == 0
    assert b.widths["hidden"] % 4 == 0
    assert not b.promises and ones > 0
    # Blocks are coarse on a toy: the size is met, or the next block would pass it.
    assert b.reached or b.target < b.params < b.target + 2 * multiple * 3 * 3 * 96


def test_a_width_that_is_not_cut_may_be_odd() -> None:
    odd = groups.from_config(LLAMA, {**BIG, "intermediate_size": 401})
    space = [Bound(REGISTRY.get("space", "ffn"), {"scope": "per_layer", "finish_on": 8})]
    target = odd.count({"ffn.0": 400})
    b = Budget(odd, lines_of(groups.find(odd, space)), {}, target)
    simulate(b)
    assert sorted(b.widths[f"ffn.{i}"] for i in range(3)) == [400, 401, 401] or b.reached


def test_positions_of_a_unit() -> None:
    space = [Bound(REGISTRY.get("space", n)) for n in ("attention", "ffn", "hidden", "layer")]
    found = positions(AXES, groups.find(AXES, space))
    each = 6 // 3 * 8  # two query heads of eight for every KV head
    assert found == {"attention": each, "ffn": 1, "hidden": 1, "layer": 3 * each + 400}

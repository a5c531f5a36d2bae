"""Schedules are pure functions of where the run is."""

from __future__ import annotations

import tracemalloc

import pytest

from effcompress.registry import REGISTRY, Bound
from effcompress.types import Due

PLACE = {
    "step": 0,
    "tokens": 0,
    "total_tokens": 1000,
    "start_params": 100,
    "params": 100,
    "target_params": 50,
    "groups_cut": 0,
    "removed": {},
    "left": {},
    "positions": {"attention": 24, "ffn": 1, "hidden": 1},
    "prune_from": 0,
    "prune_until": 1000,
}


def bound(name: str, **knobs: object) -> Bound:
    return Bound(REGISTRY.get("schedule", name), knobs)


def test_once_is_due_until_the_target_is_met() -> None:
    once = Bound(REGISTRY.get("schedule", "once"), {"at": 200})
    assert once(**PLACE) is None
    assert once(**{**PLACE, "tokens": 200}) == Due(params=50)
    assert once(**{**PLACE, "tokens": 300, "params": 50}) is None


def test_continuous_every_n_steps_from_a_token() -> None:
    every = Bound(REGISTRY.get("schedule", "continuous"), {"every": 3, "start": 70, "groups": 2})
    due = [s for s in range(20) if every(**{**PLACE, "step": s, "tokens": 10 * s})]
    assert due == [9, 12, 15, 18]
    assert every(**{**PLACE, "step": 9, "tokens": 90}) == Due(groups=2)


def test_stage_borders_hold_unless_knobs_say_otherwise() -> None:
    stage = {**PLACE, "prune_from": 100, "prune_until": 300, "step": 10}
    for name in ("once", "continuous", "cost_aware", "constant_rate", "cubic", "interleaved"):
        assert bound(name)(**{**stage, "tokens": 99}) is None
        assert bound(name)(**{**stage, "tokens": 100}) is not None
    assert bound("continuous", start=0)(**{**stage, "tokens": 50}) == Due(groups=1)


def test_cost_law() -> None:
    """The next cut comes when every * (1 ffn + 2 hidden + 24 heads) steps are behind."""
    schedule, removed = (
        bound("cost_aware", every=2, start=30),
        {"attention": 0, "ffn": 0, "hidden": 0},
    )
    kinds = ["ffn", "hidden", "attention", "ffn", "ffn"]
    due: list[int] = []
    for step in range(200):
        if schedule(**{**PLACE, "step": step, "tokens": 10 * step, "removed": removed}) is None:
            continue
        due.append(step)
        if len(due) > len(kinds):
            break
        removed[kinds[len(due) - 1]] += 1
    assert due == [3, 3 + 2, 3 + 2 + 4, 3 + 2 + 4 + 48, 3 + 2 + 4 + 48 + 2, 3 + 2 + 4 + 48 + 4]


def test_the_cost_law_begins_with_the_first_step_behind_its_start() -> None:
    """Ten tokens a step from token 35 on: the first cut comes behind step 4, not 3, and the pause
    counts from there.
    """
    schedule = bound("cost_aware", start=35, every=3)
    place = [{**PLACE, "step": s, "tokens": 10 * s, "removed": {"ffn": 0}} for s in range(20)]
    assert next(at["step"] for at in place if schedule(**at)) == 4
    gone = [{**at, "removed": {"ffn": 1}} for at in place]
    assert next(at["step"] for at in gone if schedule(**at)) == 4 + 3
    odd = bound("cost_aware", start=64, every=1)
    steps = [{**PLACE, "step": s, "tokens": 7 * s, "removed": {"hidden": 1}} for s in range(40)]
    assert next(at["step"] for at in steps if odd(**at)) == 10 + 2  # 70 tokens, the first from 64


def test_costs_can_be_named() -> None:
    schedule = bound("cost_aware", attention=5, hidden=3)
    place = {**PLACE, "tokens": 10, "removed": {"attention": 2, "hidden": 1}}
    assert [bool(schedule(**{**place, "step": step})) for step in (12, 13)] == [False, True]


def test_constant_rate_is_a_line_and_cubic_is_cubic() -> None:
    for tokens in (0, 130, 500, 770, 1000):
        place = {**PLACE, "step": tokens // 10, "tokens": tokens}
        line = bound("constant_rate", start=0, end=800)(**place)
        assert line == Due(params=round(100 - 50 * min(1, tokens / 800)))
        curve = bound("cubic", start=0, end=800)(**place)
        assert curve == Due(params=round(50 + 50 * (1 - min(1, tokens / 800)) ** 3))


def test_end_is_exact_whatever_the_step() -> None:
    place = {**PLACE, "step": 81, "tokens": 810}
    for name in ("constant_rate", "cubic"):
        assert bound(name, every=10, end=800)(**place) == Due(params=50)
        assert bound(name, every=10, end=900)(**place) is None


def test_once_in_rounds_ends_at_the_target_in_equal_steps() -> None:
    """Also where mini-groups overshoot a round's size, or land on it but for rounding."""
    bound = Bound(REGISTRY.get("schedule", "once"), {"at": None, "rounds": 3})
    for overshoot in (0, 1, 7, 60):
        params, asked = 1000, []
        while (
            due := bound(
                tokens=0, start_params=1000, params=params, target_params=800, prune_from=0
            )
        ) is not None:
            assert due.params is not None and due.params < params
            asked.append(due.params)
            assert due.again == (due.params > 800)
            params = max(800, due.params - overshoot)
        assert params == 800 and len(asked) <= 3
        if overshoot == 0:
            assert asked == [933, 867, 800]


def test_interleaved_cuts_in_front_of_every_shard() -> None:
    """Four stages from 100 to 60; 1000 tokens in shards of 1, 2, 3 and 4 tenths."""
    place = {**PLACE, "target_params": 60}
    linear = bound("interleaved", stages=4)
    borders = {0: 90, 99: 90, 100: 80, 299: 80, 300: 70, 599: 70, 600: 60, 1000: 60}
    for tokens, params in borders.items():
        assert linear(**{**place, "tokens": tokens, "params": params + 10}) == Due(params=params)
        assert linear(**{**place, "tokens": tokens, "params": params}) is None
    equal = bound("interleaved", stages=4, shards="equal", start=200, end=600)
    assert equal(**{**place, "tokens": 199}) is None
    for tokens, params in {200: 90, 299: 90, 300: 80, 400: 70, 500: 60}.items():
        assert equal(**{**place, "tokens": tokens, "params": params + 9}) == Due(params=params)


def test_a_stage_in_rounds() -> None:
    place = {**PLACE, "target_params": 60, "tokens": 100, "params": 90}
    rounds = bound("interleaved", stages=4, rounds=2, restart=True)
    assert rounds(**place) == Due(params=85, again=True, stage=2)
    assert rounds(**{**place, "params": 85}) == Due(params=80, stage=2)
    # What an earlier stage left comes first.
    assert rounds(**{**place, "params": 100}) == Due(params=95, again=True, stage=2)
    late = bound("interleaved", stages=4)(**{**place, "params": 100})
    assert late == Due(params=90, again=True)
    assert bound("interleaved", stages=90)(**{**place, "params": 61}) is None


@pytest.mark.parametrize("shards", ["linear", "equal"])
def test_a_shard_is_found_without_a_list_of_all(shards: str) -> None:
    """`stages: 1000000000` took all memory of the machine, in `check`."""
    # Half of the tokens are behind half of the equal shards, and 71 % of the growing ones.
    stage = {"linear": 707_107, "equal": 500_001}[shards]
    sizes = [10**9 - 9 * 10**8 * i // 10**6 for i in (stage - 1, stage)]
    place = {"tokens": 1000, "start_params": 10**9, "params": sizes[0], "target_params": 10**8}
    many = bound("interleaved", stages=10**6, shards=shards)
    tracemalloc.start()
    try:
        due = many(**place, prune_from=0, prune_until=2000)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert due == Due(params=sizes[1], stage=0)
    assert most < 100_000

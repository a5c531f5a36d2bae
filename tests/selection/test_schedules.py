"""Schedules are pure functions of where the run is."""

from __future__ import annotations

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
}


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

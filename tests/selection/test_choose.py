"""Choosing: exact units on hand-made scores."""

from __future__ import annotations

import pytest
import torch

from effcompress import groups
from effcompress.errors import PluginError
from effcompress.model.families.llama import LLAMA
from effcompress.registry import REGISTRY, Bound, Plugin
from effcompress.selection.choose import choose
from effcompress.types import Due
from tests.conftest import shape

RAW = Bound(REGISTRY.get("selector", "least_salient"), {"normalise": "raw"})
MEANS = ("score_K", "mean_K", "params_K")
AXES = groups.from_config(LLAMA, shape("gqa_tied"))


def setup(scope: str = "lockstep"):
    space = [
        Bound(REGISTRY.get("space", "attention"), {"scope": scope}),
        Bound(REGISTRY.get("space", "ffn"), {"scope": scope}),
        Bound(REGISTRY.get("space", "hidden")),
    ]
    sets = groups.find(AXES, space)
    scores = {s.name: 100.0 + torch.arange(s.size, dtype=torch.float32) for s in sets}
    return sets, scores


def test_lockstep_takes_the_least_salient_of_every_layer() -> None:
    sets, scores = setup()
    for i, unit in enumerate((7, 3, 11)):
        scores[f"ffn.{i}"][unit] = 1.0 + i
    found = choose(sets, AXES, scores, Due(groups=1), 1000, RAW)
    assert found.plan == {"ffn.0": [7], "ffn.1": [3], "ffn.2": [11]}
    assert found.scores == {"ffn.0": [1.0], "ffn.1": [2.0], "ffn.2": [3.0]}
    assert found.removed == {"ffn": 1}
    freed = {k: sum(AXES.freed(n, AXES.widths) for n in AXES.axes(k)) for k in found.lowest}
    raw = {"attention": 300.0, "ffn": 6.0, "hidden": 100.0}
    assert found.lowest == pytest.approx({k: raw[k] / freed[k] for k in raw})
    assert found.params == AXES.count(found.widths)


def test_per_layer_takes_one_set_alone() -> None:
    sets, scores = setup("per_layer")
    scores["ffn.1"][5] = 1.0
    found = choose(sets, AXES, scores, Due(groups=1), 1000, RAW)
    assert found.plan == {"ffn.1": [5]}


def test_type_and_channel_together() -> None:
    sets, scores = setup()
    scores["hidden"][40] = 2.0
    for i in range(3):
        scores[f"attention.{i}"][i] = 1.0
    found = choose(sets, AXES, scores, Due(groups=2), 1000, RAW)
    assert found.plan == {"hidden": [40]} | {f"attention.{i}": [i] for i in range(3)}


def test_dead_units_are_never_chosen_again() -> None:
    sets, scores = setup()
    for i in range(3):
        scores[f"ffn.{i}"][:10] = torch.inf
    turns = Bound(REGISTRY.get("selector", "in_turns"))
    found = choose(sets, AXES, scores, Due(groups=20), 1000, turns)
    assert "ffn.0" in found.plan
    assert all(units[0] >= 10 for name, units in found.plan.items() if name.startswith("ffn"))
    assert found.widths["ffn.0"] == 30 - len(found.plan["ffn.0"])


def test_normalisations_by_hand() -> None:
    least = REGISTRY.get("selector", "least_salient")
    inputs = {
        "score_K": torch.tensor([6.0, 4.0]),
        "params_K": torch.tensor([300.0, 100.0]),
        "mean_K": torch.tensor([60.0, 5.0]),
    }
    wanted = {"raw": [6, 4], "per_parameter": [0.02, 0.04], "per_kind": [0.1, 0.8]}
    for how, value in wanted.items():
        got = Bound(least, {"normalise": how})(**inputs)
        assert got.tolist() == pytest.approx(value)


def test_the_mean_of_a_kind_is_that_of_its_living_units() -> None:
    """Units that earlier cuts took do not count, nor those that this one has taken already."""
    sets, scores = setup()
    for i in range(3):
        scores[f"ffn.{i}"] = torch.arange(40, dtype=torch.float32) + 1
        scores[f"ffn.{i}"][4:] = torch.inf  # 1, 2, 3, 4 live
    asked: list[tuple[float, float]] = []

    def noted(score_K, mean_K, params_K):
        asked.extend((float(s), float(m)) for s, m in zip(score_K, mean_K, strict=True) if s < 100)
        return score_K

    listening = Bound(Plugin("selector", "noted", noted, MEANS, {}, "t", "s.py:1"))
    choose(sets, AXES, scores, Due(groups=3), 1000, listening)
    assert asked == [(3.0, 7.5), (6.0, 9.0), (9.0, 10.5)]


def test_due_params_stops_at_the_size_and_never_below_the_target() -> None:
    sets, scores = setup()
    start = AXES.count()
    found = choose(sets, AXES, scores, Due(params=start - 3000), start // 2, RAW)
    largest = AXES.freed("hidden", AXES.widths)
    assert start - 3000 - largest < found.params <= start - 3000
    end = choose(sets, AXES, scores, Due(params=0), start // 2, RAW)
    assert end.params == pytest.approx(start // 2, rel=0.005)


def test_same_scores_same_plan() -> None:
    """Of equals those in front go, in every set: nothing is left to the order of a sort."""
    sets, scores = setup()
    for i in range(3):
        scores[f"ffn.{i}"] = torch.tensor([1.0, 2.0]).repeat_interleave(20)
        scores[f"ffn.{i}"][torch.arange(40) % 3 == i] = 0.5
    found = choose(sets, AXES, scores, Due(groups=20), 1000, RAW)
    for i in range(3):
        least = [u for u in range(40) if u % 3 == i]
        rest = [u for u in range(20) if u % 3 != i]
        assert found.plan[f"ffn.{i}"] == sorted([*least, *rest][:20])
    assert found.plan.keys() == {f"ffn.{i}" for i in range(3)}
    again = choose(sets, AXES, scores, Due(groups=20), 1000, RAW)
    assert (again.plan, again.scores) == (found.plan, found.scores)


def test_a_selector_that_returns_nonsense_is_named() -> None:
    sets, scores = setup()
    bad = Plugin("selector", "bad", lambda score_K: score_K[:1], ("score_K",), {}, "t", "s.py:3")
    with pytest.raises(PluginError, match=r"s\.py:3: selector 'bad' returned .* where one number"):
        choose(sets, AXES, scores, Due(groups=1), 1000, Bound(bad))


def test_blocks_are_compared_as_blocks() -> None:
    space = [
        Bound(REGISTRY.get("space", "ffn"), {"round_to": 16}),
        Bound(REGISTRY.get("space", "hidden")),
    ]
    sets = groups.find(AXES, space)
    scores = {s.name: torch.full((s.size,), 10.0) for s in sets}
    scores["hidden"][5] = 200.0  # a block of 8 FFN channels in 3 layers sums to 240
    scores["hidden"][:5] = scores["hidden"][6:] = 300.0
    found = choose(sets, AXES, scores, Due(groups=2), 1000, RAW)
    assert found.removed == {"hidden": 1, "ffn": 1}
    assert [len(found.plan[f"ffn.{i}"]) for i in range(3)] == [8, 8, 8]  # 40 -> 32
    assert found.plan["hidden"] == [5] and found.widths["ffn.1"] == 32


def test_what_went_with_its_layer_no_longer_counts() -> None:
    """Layer 0 is gone; the others go on in lockstep, by their own widths, down to the minimum."""
    space = [
        Bound(REGISTRY.get("space", "ffn"), {"minimum": 8}),
        Bound(REGISTRY.get("space", "layer"), {"minimum": 2}),
    ]
    sets = groups.find(AXES, space)
    scores = {s.name: 100.0 + torch.arange(s.size, dtype=torch.float32) for s in sets}
    for i in range(3):
        scores[f"layer.{i}"] += 1e6
    scores["layer.0"][:] = torch.inf
    for i in (1, 2):  # 10 of 40 are left in the living layers, all 40 in the dead one
        scores[f"ffn.{i}"][:30] = torch.inf
    found = choose(sets, AXES, scores, Due(groups=9), 1000, RAW)
    assert found.plan == {"ffn.1": [30, 31], "ffn.2": [30, 31]}
    assert found.widths["ffn.0"] == 0
    assert found.params == AXES.count(found.widths)


def test_of_a_pool_the_least_salient_goes_for_what_it_frees() -> None:
    """Whichever layer it is in; and where a query head is gone, a KV group frees less."""
    sets, scores = setup("global")
    scores["ffn.2"][9], scores["ffn.0"][4] = 1.0, 2.0
    found = choose(sets, AXES, scores, Due(groups=2), 1000, RAW)
    assert found.plan == {"ffn.2": [9], "ffn.0": [4]}

    space = [
        Bound(REGISTRY.get("space", "attention"), {"scope": "global"}),
        Bound(REGISTRY.get("space", "attention"), {"scope": "per_layer", "unit": "q_per_group"}),
    ]
    sets = groups.find(AXES, space)
    scores = {s.name: torch.full((s.size,), 100.0) for s in sets}
    scores["query.0"][0] = torch.inf
    scores["attention.0"][1], scores["attention.1"][2] = 1.0, 1.1
    found = choose(sets, AXES, scores, Due(groups=1), 1000, RAW)
    assert found.plan == {"attention.1": [2]}

"""What keeps methods from being compared: every flag provoked; which sizes are compared."""

from __future__ import annotations

import dataclasses

import pytest

from effcompress.report.comparison.facts import Attempt, Method, Tokens
from effcompress.report.comparison.flags import flags
from effcompress.report.comparison.rows import compare
from effcompress.report.comparison.sizes import sizes
from tests.report.made_up import DENSE, HELDOUT, PROTOCOL, TARGET, facts, failed, method

OTHER_CHECKPOINT = {"source": "SmolLM2-360M", "source_hash": "ff" * 8}
# kind -> (how the odd one differs, words of the flag, whether it is kept from being ranked)
ODD: dict[str, tuple[dict, tuple[str, ...], bool]] = {
    "checkpoint": (OTHER_CHECKPOINT, ("SmolLM2-360M (hash ffffffff)", "cccccccc"), True),
    "protocol": (
        {"protocol": {**PROTOCOL, "window": 2048, "bos": "one per window"}},
        ("window 2048 instead of 512", "bos one per window instead of none"),
        True,
    ),
    "held-out": (
        {"heldout": {**HELDOUT, "code": Tokens("12" * 8, 4088)}},
        ("code 4,088 tokens (hash 12121212) instead of code 8,176", "bbbbbbbb"),
        True,
    ),
    "calibration": (
        {"calibration": frozenset({Tokens("34" * 8, 2048)})},
        ("2,048 (hash 34343434) instead of 16,384 (hash 00000000)",),
        True,
    ),
    "training": ({"trained": 2_000_000}, ("2,000,000 tokens instead of 1,000,000",), True),
    "mixture": (
        {"shares": {"prose": 0.9, "code": 0.1}, "follows_losses": True},
        (
            "prose 90.0 %, code 10.0 %, then by held-out losses instead of prose 50.0 %",
            "code 50.0 %",
        ),
        True,
    ),
    "text": ({"text": {"prose": "dd" * 16, "code": "99" * 16}}, ("other text in code",), True),
    "dense": (
        {"before": {"prose": 21.37, "code": 9.92}},
        ("than usual_1: code 9.92 instead of 9.82",),
        True,
    ),
    "parameters": ({"params": TARGET + 700_000}, ("0.6 % more than the 113,000,000",), True),
    "environment": (
        {"environment": {"device": "cuda", "threads": "2", "torch": "2.13.0"}},
        ("device cuda instead of cpu", "times and memory"),
        False,
    ),
    "tasks": (
        {"tasks_after": {"piqa": 0.5}, "tasks_protocol": {"limit": 100, "shots": 0}},
        ("limit 100 instead of None", "accuracies"),
        False,
    ),
    "zeroed": (
        {"zeroed": 1234, "params": DENSE},
        ("1,234 weights that are zero", "134,515,008"),
        False,
    ),
}


def test_a_mixture_that_follows_losses_is_another_one() -> None:
    """From the same fractions at the start, and whatever each seed makes of them."""
    found = flagged([method("a"), method("b"), method("c", follows_losses=True)])
    assert [flag.kind for flag in found["c"]] == ["mixture"] and not found["a"]


def flagged(methods: list[Method]) -> dict[str, list]:
    found: dict[str, list] = {m.label: [] for m in methods}
    for label, flag in flags(methods, sizes(methods)):
        found[label].append(flag)
    return found


@pytest.mark.parametrize("kind", ODD)
def test_every_difference_is_flagged_and_only_where_it_is(kind: str) -> None:
    changes, words, unfair = ODD[kind]
    tasks = {"tasks_after": {"piqa": 0.5}, "tasks_protocol": {"limit": None, "shots": 0}}
    odd = method("odd", 2.0, **{**tasks, **changes})
    methods = [method("usual_1", 2.0, **tasks), odd, method("usual_2", 2.1, **tasks)]
    found = flagged(methods)
    assert not found["usual_1"] and not found["usual_2"]
    (flag,) = [f for f in found["odd"] if f.kind != "alone"]
    assert (flag.kind, flag.unfair) == (kind, unfair)
    for word in words:
        assert word in flag.words
    row = next(r for r in compare("x", methods).rows if r.label == "odd")
    assert row.notes and row.unfair == unfair
    assert not (unfair and row.mark)


@pytest.mark.parametrize("factor", [1.002, 0.998])
def test_another_dense_model_is_flagged_whether_it_is_better_or_worse(factor: float) -> None:
    before = dict(facts(0).before or {})
    other = {name: value * factor for name, value in before.items()}
    found = flagged([method("a"), method("odd", before=other), method("b")])
    assert [f.kind for f in found["odd"]] == ["dense"] and not found["a"] and not found["b"]
    near = {name: value * (1 + (factor - 1) / 4) for name, value in before.items()}
    assert not any(flagged([method("a"), method("near", before=near)]).values())


def test_every_method_has_one_vote_however_many_seeds_it_has() -> None:
    many = method("many", seeds=(0, 1, 2, 3, 4), trained=5)
    found = flagged([many, method("a", seeds=(0,)), method("b", seeds=(0,))])
    assert "training" in [f.kind for f in found["many"]]
    assert "training" not in [f.kind for name in "ab" for f in found[name]]


def test_alike_methods_have_no_flags() -> None:
    assert not any(flagged([method("a"), method("b", 2.2), method("c", 1.9)]).values())


def test_what_does_not_concern_a_method_is_not_held_against_it() -> None:
    """No text, or that of training, in place of calibration; the words of the continuation."""
    free = {"measures": "nothing", "calibration": frozenset()}
    rides = {"measures": "training", "calibration": frozenset()}
    other = {**PROTOCOL, "continuation": "greedy"}
    methods = [method("a"), method("b", **free), method("c", **rides), method("d", protocol=other)]
    assert not any(flagged(methods).values())
    said = dict(compare("x", methods).conditions)["calibration"]
    assert said == (
        "16,384 tokens, hash 00000000 (seed 0), 11111111 (seed 1), 22222222 (seed 2); measured on "
        "the text of training: c; none needed: b"
    )


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"source_hash": None}, "the weights it starts from"),
        ({"protocol": None}, "its evaluation protocol"),
        ({"heldout": {"prose": Tokens(None, 9), "code": Tokens(None, 9)}}, "its held-out tokens"),
        ({"measures": None}, "its calibration tokens"),
        ({"shares": None}, "its mixture of text"),
    ],
)
def test_a_record_that_does_not_say_is_told_so(changes: dict, name: str) -> None:
    found = flagged([method("a"), method("old", **changes), method("b")])
    (flag,) = found["old"]
    assert flag.kind == "not recorded" and name in flag.words and not flag.unfair
    assert not found["a"] and not found["b"]


def test_seeds_may_change_weights_and_calibration_but_not_within_a_seed() -> None:
    def random(label: str, shift: int = 0) -> Method:
        runs = [
            Attempt(s, "", facts(s, source_hash=f"{s + shift:x}" * 16), target=TARGET)
            for s in (0, 1)
        ]
        return Method(label, tuple(runs))

    assert not any(flagged([random("a"), random("b")]).values())
    found = flagged([random("a"), random("b"), random("c", shift=5)])
    assert [f.kind for f in found["c"]] == ["checkpoint"] and not found["a"]


def test_other_seeds_are_told_but_the_same_weights_are_no_other() -> None:
    found = flagged([method("a"), method("b"), method("late", seeds=(7,))])
    kinds = [f.kind for f in found["late"]]
    assert kinds == ["calibration", "seeds"], "its calibration was drawn with another seed"
    assert "has seeds 7; the others 0, 1, 2" in found["late"][1].words
    assert not found["a"]


def test_of_two_that_differ_the_first_is_the_usual() -> None:
    found = flagged([method("a"), method("b", trained=5)])
    assert not found["a"] and [f.kind for f in found["b"]] == ["training"]


@pytest.mark.parametrize("ratio", [1 + 2e-3, 1 - 2e-3])
def test_a_better_dense_model_is_flagged_as_well_as_a_worse_one(ratio: float) -> None:
    odd = method("odd", before={"prose": 21.37, "code": 9.82 * ratio})
    found = flagged([method("a"), odd, method("b")])
    assert [f.kind for f in found["odd"]] == ["dense"] and not found["a"] and not found["b"]
    near = method("near", before={"prose": 21.37, "code": 9.82 * (1 + (ratio - 1) / 4)})
    assert not any(flagged([method("a"), near]).values()), "rounding of other threads"


def test_each_method_has_one_vote_however_many_runs_it_has() -> None:
    """Two methods with one run each outvote one method with five."""
    free = {"measures": "nothing", "calibration": frozenset()}
    many = method("many", seeds=(0, 1, 2, 3, 4), trained=5, **free)
    found = flagged([many, *(method(label, seeds=(0,), **free) for label in "ab")])
    kinds = {label: [f.kind for f in some if f.kind != "seeds"] for label, some in found.items()}
    assert kinds == {"many": ["training"], "a": [], "b": []}
    assert "5 tokens instead of 1,000,000" in found["many"][0].words


def test_runs_at_the_same_time_are_told() -> None:
    def at(label: str, *begins: str) -> Method:
        day = "2026-01-01T{}+00:00"
        runs = [
            Attempt(s, "", facts(s, started=day.format(t), seconds=60.0), target=TARGET)
            for s, t in enumerate(begins)
        ]
        return Method(label, tuple(runs))

    apart = [at("a", "10:00:00", "10:01:00"), at("b", "10:01:59", "10:05:00")]
    assert [f.kind for f in flagged(apart)["b"]] == []
    close = [at("a", "10:00:00", "10:01:00"), at("b", "10:01:30", "10:05:00")]
    assert [f.kind for f in flagged(close)["b"]] == ["together"]
    assert [f.kind for f in flagged(close)["a"]] == ["together"]


def test_a_seed_that_failed_is_told_and_the_others_count() -> None:
    whole, part = method("a"), method("b")
    runs = (*part.attempts[:2], Attempt(2, "runs/b_2", None, "killed by SIGKILL", TARGET))
    methods = [whole, Method("b", runs)]
    (flag,) = flagged(methods)["b"]
    assert flag.words == "has no result of 1 of 3 runs (seed 2: killed by SIGKILL)"
    row = next(r for r in compare("x", methods).rows if r.label == "b")
    assert row.values["perplexity"].number == 2 and not row.reason


def sized(label: str, target: int | None, params: int, **changes: object) -> Method:
    one = method(label, seeds=(0, 1), target=target, params=params, **changes)
    runs = tuple(dataclasses.replace(a, target=target) for a in one.attempts)
    return Method(label, runs)


def test_methods_meet_at_the_size_they_were_asked_for() -> None:
    methods = [
        sized("a", 113_000_000, 113_400_000),
        sized("b", 113_000_000, 112_600_000),
        sized("c", None, 113_100_000),
        sized("d", 94_000_000, 94_100_000),
        sized("e", 94_000_000, 93_900_000),
        sized("near", 110_000_000, 110_000_000),
        sized("zeros", None, DENSE, zeroed=DENSE // 2),
        failed("lost", "x"),
    ]
    found = sizes(methods)
    assert [(s.params, sorted(s.labels)) for s in found] == [
        (113_000_000, ["a", "b", "c", "lost", "near"]),
        (94_000_000, ["d", "e"]),
        (DENSE - DENSE // 2, ["zeros"]),
    ]
    told = [
        (label, flag)
        for label, flag in flags(methods, found)
        if flag.kind in ("parameters", "alone")
    ]
    assert [(label, f.kind) for label, f in told] == [("near", "parameters"), ("zeros", "alone")]
    assert "2.7 % fewer than the 113,000,000 parameters" in told[0][1].words
    assert found[2].words == f"{DENSE - DENSE // 2:,} weights that are not zero"


def test_best_is_said_for_each_size() -> None:
    methods = [
        sized("a", 113_000_000, 113_000_000, quality=2.0),
        sized("b", 113_000_000, 113_000_000, quality=4.0),
        sized("c", 94_000_000, 94_000_000, quality=3.0),
        sized("d", 94_000_000, 94_000_000, quality=9.0),
    ]
    found = compare("x", methods)
    assert [(r.label, r.mark) for r in found.rows if r.size is not None] == [
        ("a", "best"),
        ("b", ""),
        ("c", "best"),
        ("d", ""),
    ]
    assert found.claims[1] == "At 94,000,000 parameters: the lowest perplexity is that of c."

"""A mixture that changes: every domain gives the sum of its fractions, and resuming is exact."""

from __future__ import annotations

import json
import random
from collections import Counter
from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from effcompress.data.stream import Stream, next_domain
from effcompress.errors import RunError
from effcompress.registry import REGISTRY, Bound
from effcompress.spec import DomainSpec, MixtureSpec

START = {"a": 0.5, "b": 0.3, "c": 0.2}


@pytest.fixture
def three(jsonl, texts):
    return {
        name: DomainSpec(jsonl=(jsonl(f"{name}.jsonl", texts(60, name)),), weight=weight)
        for name, weight in START.items()
    }


def drawn(stream: Stream, samples: int) -> list[str]:
    return [name for name, _ in stream.next(samples).samples]


def weights(rng: random.Random, *, empty: bool = False) -> dict[str, float]:
    given = [rng.random() ** 4 for _ in START]
    if empty:
        given[rng.randrange(3)] = 0.0
    return {name: w / sum(given) for name, w in zip(START, given, strict=True)}


def test_without_a_change_the_order_is_that_of_fixed_fractions(make, three):
    order, counts = [], [0, 0, 0]
    for _ in range(500):
        counts[chosen := next_domain([*START.values()], counts)] += 1
        order.append("abc"[chosen])
    assert drawn(make(three).stream(), 500) == order


@given(st.integers(0, 10**6), st.integers(1, 40), st.booleans())
def test_every_domain_gives_the_sum_of_its_fractions(seed, every, empty):
    """Never a whole sample more, and less than D - 1 = 2 fewer, whatever the fractions do."""
    rng, counts, since, owed = random.Random(seed), [0, 0, 0], [0, 0, 0], [0.0, 0.0, 0.0]
    fractions, due = [*START.values()], [0.0, 0.0, 0.0]
    for n in range(400):
        if n and n % every == 0:
            here = [c - s for c, s in zip(counts, since, strict=True)]
            owed = [o + w * sum(here) - c for o, w, c in zip(owed, fractions, here, strict=True)]
            since, fractions = [*counts], [*weights(rng, empty=empty).values()]
        here = [c - s for c, s in zip(counts, since, strict=True)]
        counts[next_domain(fractions, here, owed)] += 1
        due = [d + w for d, w in zip(due, fractions, strict=True)]
        assert all(c - d < 1 for c, d in zip(counts, due, strict=True))
        assert all(d - c < 2 for c, d in zip(counts, due, strict=True))


def test_the_stream_follows_its_fractions(make, three):
    stream, rng = make(three).stream(), random.Random(1)
    due, counts = Counter[str](), Counter[str]()
    for turn in range(300):
        samples = 1 + turn % 7
        counts.update(drawn(stream, samples))
        due.update({name: samples * weight for name, weight in stream.fractions.items()})
        assert all(-1 < due[name] - counts[name] < 2 for name in START)
        # Also to nearly the same: what is owed then decides alone.
        stream.reweigh(weights(rng) if turn % 3 == 0 else dict(stream.fractions))
    assert min(counts.values()) > 100


def test_changes_to_the_same_fractions_are_none(make, three):
    once, often = make(three).stream(), make(three).stream()
    order = [often.reweigh(START) or drawn(often, 1)[0] for _ in range(100)]
    assert Counter(order) == Counter(drawn(once, 100)) == {"a": 50, "b": 30, "c": 20}


def test_a_domain_that_is_switched_off_gives_nothing_more(make, three):
    stream = make(three).stream()
    drawn(stream, 50)
    stream.reweigh({"a": 0.0, "b": 0.25, "c": 0.75})
    counts = Counter(drawn(stream, 100))
    assert counts["a"] <= 1, "what it was owed"
    assert counts["b"] == pytest.approx(25, abs=2)


def test_resuming_anywhere_is_bit_identical(make, three):
    stream, rng = make(three).stream(7), random.Random(2)
    states, batches, changes = [], [], []
    for _ in range(30):
        states.append(json.dumps(stream.state_dict()))
        batches.append(stream.next(3))
        states.append(json.dumps(stream.state_dict()))
        batches.append(stream.next(2))
        changes.append(weights(rng))
        stream.reweigh(changes[-1])
    for start in (0, 1, 2, 25, 26, 59):
        resumed = make(three).stream(7)
        resumed.load_state_dict(json.loads(states[start]))
        for k in range(start, len(batches)):
            again = resumed.next(2 if k % 2 else 3)
            assert again.samples == batches[k].samples and again.ids_BT.equal(batches[k].ids_BT)
            if k % 2:
                resumed.reweigh(changes[k // 2])


def test_a_position_of_an_earlier_version_goes_on(make, three):
    stream = make(three).stream(7)
    stream.next(11)
    state = json.loads(json.dumps(stream.state_dict()))
    del state["mixture"]
    resumed = make(three).stream(7)
    resumed.load_state_dict(state)
    assert resumed.next(40).samples == stream.next(40).samples


def test_text_is_prepared_for_any_mixture(make, three):
    """A domain that gives all samples from the start reads none twice, if it has the text."""
    dynamic = Bound(REGISTRY.get("mixture", "constant"))
    with_most = {"mixture": MixtureSpec(method=dynamic), "when_dry": "stop"}
    only = {"a": 0.0, "b": 0.0, "c": 1.0}
    stream = make(three, train_tokens=32 * 60, **with_most).stream()
    stream.reweigh(only)
    assert drawn(stream, 60) == ["c"] * 60
    fifth = {**with_most, "mixture": MixtureSpec(method=dynamic, text=0.4)}
    for spec, room in ((fifth, 25), ({"when_dry": "stop"}, 13)):
        stream = make(three, train_tokens=32 * 60, **spec).stream()
        stream.reweigh(only)
        assert drawn(stream, room) == ["c"] * room
        with pytest.raises(RunError, match="domain 'c' has run out of text"):
            stream.next(1)


def test_fractions_sum_over_samples() -> None:
    """The accumulated sum that the docs state, on an example by hand."""
    fractions = [[0.5, 0.5]] * 2 + [[0.9, 0.1]] * 8
    sums = [list(accumulate(column)) for column in zip(*fractions, strict=True)]
    assert sums[0][-1] == pytest.approx(8.2)
    counts = [0, 0]
    for _ in range(2):
        counts[next_domain([0.5, 0.5], counts)] += 1
    owed, more = [0.5 * 2 - c for c in counts], [0, 0]
    for _ in range(8):
        more[next_domain([0.9, 0.1], more, owed)] += 1
    assert counts == [1, 1] and more == [7, 1]
